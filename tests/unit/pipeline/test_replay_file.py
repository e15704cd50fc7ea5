import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support.models import (
    HORIZON,
    START_MS,
    STEP_MS,
    CountingReference,
    counting_graph,
    counting_model,
    counting_spec,
    save,
)
from tidecast.service.cli import main
from tidecast.service.timestamps import format_time

CONFIG = """name = "one"
[data]
path = "f.csv"
time = "t"
step = "1min"
targets = ["value"]
covariates = ["wind"]
{series}
train_until = "2013-01-01T00:00:00Z"
validate_until = "2013-02-01T00:00:00Z"
"""
Row = tuple[str, int, float, float]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = counting_model(tmp_path_factory.mktemp("model"))
    (directory / "config.toml").write_text(CONFIG.format(series='series = "key"'))
    return directory


Replay = Callable[..., tuple[list[dict[str, object]], str]]


@pytest.fixture
def replay(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    def run(rows: list[Row], *flags: str, using: Path = model) -> tuple[list[dict[str, object]], str]:
        path = tmp_path / "f.csv"
        body = "".join(
            f"{key},{format_time(ts)},{'' if math.isnan(a) else a},{'' if math.isnan(b) else b}\n"
            for key, ts, a, b in rows
        )
        path.write_text("key,t,value,wind\n" + body)
        assert main(["replay", "--model", str(using), "--data", str(path), *flags]) == 0
        out = capsys.readouterr()
        return [json.loads(line) for line in out.out.splitlines()], out.err

    return run


def at(step: int) -> int:
    return START_MS + step * STEP_MS


def expected(rows: list[Row]) -> list[tuple[str, int, list[list[float]]]]:
    references: dict[str, CountingReference] = {}
    return [(k, ts, references.setdefault(k, CountingReference()).step((a, b), ts)) for k, ts, a, b in rows]


def got(lines: list[dict[str, object]]) -> list[tuple[str, int, list[list[float]]]]:
    out = []
    for line in lines:
        target = line["targets"]["value"]  # type: ignore[index]
        y = [[target[name][h] for name in ("p10", "p50", "p90")] for h in range(HORIZON)]
        out.append((line["series"], line["ts"], y))
    return out  # type: ignore[return-value]


def test_every_reading_gets_its_line_in_input_order_with_its_own_series_state(replay: Replay) -> None:
    rows = [(f"k{i % 3}", at(i // 3), float(i % 11), math.nan if i % 7 == 0 else 2.0) for i in range(60)]
    lines, err = replay(rows)
    assert got(lines) == expected(rows)
    assert "60 readings of 3 series, 60 forecasts" in err


def test_a_file_with_one_series_after_the_other_gives_the_same_forecasts(replay: Replay) -> None:
    merged = [(f"k{i % 3}", at(i // 3), float(i % 11), 2.0) for i in range(60)]
    grouped = sorted(merged, key=lambda row: row[0])
    lines, _ = replay(grouped)
    assert got(lines) == expected(grouped)
    assert sorted(got(lines)) == sorted(got(replay(merged)[0]))


def test_a_file_longer_than_one_window_keeps_its_states_and_its_order(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"k{i % 2}", at(i // 2), float(i % 5), 1.0) for i in range(50)]
    monkeypatch.setattr("tidecast.service.pipeline.replay_file._BATCH", 3)
    monkeypatch.setattr("tidecast.service.pipeline.replay_file.window_rows", lambda spec: 7)
    assert got(replay(rows)[0]) == expected(rows)


def test_late_readings_and_duplicates_give_no_line_and_are_counted(replay: Replay) -> None:
    rows = [("k", at(0), 1.0, 1.0), ("k", at(2), 2.0, 1.0), ("k", at(1), 3.0, 1.0), ("k", at(2), 4.0, 1.0)]
    lines, err = replay(rows)
    assert [line["ts"] for line in lines] == [at(0), at(2)]
    assert "no forecast for 1: late" in err and "no forecast for 1: duplicate" in err
    assert "1 missing steps filled in" in err


def test_a_dead_letter_gives_no_line_is_counted_and_does_not_stop_the_replay(replay: Replay) -> None:
    rows = [("k", at(0), 1.0, 1.0), ("k", at(1), 1e60, 1.0), ("k", at(2), 2.0, 1.0)]
    lines, err = replay(rows)
    assert [line["ts"] for line in lines] == [at(0), at(2)]
    assert "no forecast for 1: dead letter, value_out_of_range" in err


def test_a_gap_longer_than_asked_starts_the_series_again(replay: Replay) -> None:
    rows = [("k", at(0), 1.0, 1.0), ("k", at(4), 2.0, 1.0)]
    assert "3 missing steps filled in; 0 gaps" in replay(rows)[1]
    lines, err = replay(rows, "--max-gap-steps", "2")
    assert "1 gaps too long" in err
    assert got(lines)[1][2] == CountingReference().step((2.0, 1.0), at(4))


def test_readings_years_ahead_of_any_clock_are_forecast_too(replay: Replay) -> None:
    assert len(replay([("k", at(60_000_000), 1.0, 1.0)])[0]) == 1


def test_each_column_as_a_series_is_keyed_by_the_columns_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = counting_graph(features=1, diagnostics=1)
    spec = counting_spec(features=["value"], diagnostics=counting_spec().diagnostics[:1])
    reference = CountingReference()
    y = [reference.step(x[:1], ts) for x, ts in (([1.0], at(0)), ([math.nan], at(1)))][-1]
    spec = msgspec.structs.replace(
        spec,
        self_test=msgspec.structs.replace(
            spec.self_test, x=[[1.0], [None]], ts=[at(0), at(1)], y=[v for row in y for v in row]
        ),
    )
    directory = save(tmp_path / "m", graph, spec)
    text = CONFIG.format(series='series = "columns"').replace('["value"]', '["a", "b"]').replace('["wind"]', "[]")
    (directory / "config.toml").write_text(text)
    (tmp_path / "f.csv").write_text(f"t,a,b\n{at(0)},1,2\n{at(1)},3,\n")
    assert main(["replay", "--model", str(directory), "--data", str(tmp_path / "f.csv")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["series"], line["ts"]) for line in lines] == [("a", at(0)), ("b", at(0)), ("a", at(1)), ("b", at(1))]


def test_the_output_file_is_there_only_once_it_is_whole(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "f.csv", tmp_path / "out.jsonl"
    call = ["replay", "--model", str(model), "--data", str(data), "--out", str(out)]
    data.write_text(f"key,t,value,wind\nk,{at(0)},1,1\nk,{at(1)},oops,1\n")
    assert main(call) == 1
    assert "line 3, column 'value'" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv"]
    data.write_text(f"key,t,value,wind\nk,{at(0)},1,1\n")
    assert main(call) == 0
    assert len(out.read_text().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "out.jsonl"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"--model": "nowhere"}, "no model directory"),
        ({"--data": "nowhere.csv"}, "cannot read"),
        ({"--out": "no/such/folder/f"}, "cannot write"),
    ],
)
def test_a_wrong_path_is_an_error_in_words(
    model: Path, tmp_path: Path, wrong: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.csv").write_text(f"key,t,value,wind\nk,{at(0)},1,1\n")
    flags = {"--model": str(model), "--data": str(tmp_path / "f.csv"), "--out": "-"} | wrong
    assert main(["replay", *(text for pair in flags.items() for text in pair)]) in (1, 2)
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_a_config_that_is_not_of_this_model_is_refused_rather_than_read_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = counting_model(tmp_path / "m")
    (directory / "config.toml").write_text(CONFIG.format(series="").replace('"wind"', '"rain"'))
    (tmp_path / "f.csv").write_text(f"t,value,rain\n{at(0)},1,1\n")
    assert main(["replay", "--model", str(directory), "--data", str(tmp_path / "f.csv")]) == 2
    assert "rain" in capsys.readouterr().err


def test_a_series_with_a_reading_far_ahead_in_the_file_starts_again_as_in_a_worker(replay: Replay) -> None:
    rows = [("a", START_MS + i * STEP_MS, 1.0, 2.0) for i in (*range(5), 1_439, *range(5, 30))]
    lines, err = replay(rows)
    assert [line["ts"] for line in lines] == [ts for i, (_, ts, _, _) in enumerate(rows) if not 6 <= i < 10]
    assert "replay: 1 jumps ahead that later readings contradicted; the series then started again, cold" in err
    lines, err = replay(rows, "--late-recovery-readings", "0")
    assert len(lines) == 6 and "contradicted" not in err


def test_a_file_that_holds_its_readings_twice_starts_no_series_again(replay: Replay) -> None:
    rows = [("a", START_MS + i * STEP_MS, 1.0, 2.0) for i in (*range(30), *range(100, 130))]
    lines, err = replay(rows + rows)
    assert len(lines) == 60 and "contradicted" not in err


LONG = """
[input]
time = "when"
time_unit = "s"
key = "{place}"
name = "what"
value = "v"
fields = { value = { path = "temp", scale = 0.5 }, wind = "wind" }
"""


@pytest.mark.parametrize("of", ["the model's config", "--input"])
def test_the_long_form_of_a_file_gives_the_forecasts_of_the_wide_one(
    replay: Replay, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str
) -> None:
    rows: list[Row] = [
        (key, START_MS + i * STEP_MS, 2.0 * i + n, math.nan if i == 3 else 1.0 + i)
        for i in range(6)
        for n, key in enumerate("ab")
    ]
    wide, _ = replay(rows)
    blocks = [f"{ts // 1000},{key},temp,{2 * a}\n" for key, ts, a, _ in rows]
    blocks += [f"{ts // 1000},{key},wind,{'' if math.isnan(b) else b}\n" for key, ts, _, b in reversed(rows)]
    (tmp_path / "long.csv").write_text("when,place,what,v\n" + "".join(blocks) + f"{START_MS // 1000},a,spare,1\n")
    (tmp_path / "table.toml").write_text(LONG)
    flags = ["--input", str(tmp_path / "table.toml")]
    if of != "--input":
        model, flags = counting_model(tmp_path / "mapped"), []
        own = CONFIG.format(series="").replace('time = "t"\n', "")
        (model / "config.toml").write_text(own + LONG)
    assert main(["replay", "--model", str(model), "--data", str(tmp_path / "long.csv"), *flags]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == wide
    assert "replay: 1 row with names that are no features: 'spare' (1)" in err
    assert "replay: 2 rows without a value" in err
