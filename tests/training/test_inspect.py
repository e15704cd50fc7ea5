"""`tidecast inspect`: what it finds in awkward files, what it proposes, its one sentence for those it cannot use."""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest

from tests.support.daily import write_daily
from tidecast.service.errors import DataError, UsageError
from tidecast.service.timestamps import format_time
from tidecast.training.commands import inspect as command
from tidecast.training.config import read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.inspection.gap_plot import bins, gaps
from tidecast.training.inspection.inspect import InspectOptions, inspect

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
START, HOUR = 1_704_067_200_000, 3_600_000  # a Monday, 2024-01-01


def table(path, columns):
    rows = zip(*columns.values(), strict=True)
    text = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def hours(steps, step=HOUR):
    return [format_time(START + i * step) for i in range(steps)]


def load(steps, week=8.0):
    """A daily wave, lower at weekends."""
    i = np.arange(steps)
    noise = np.random.default_rng(1).normal(0, 0.7, steps)
    return 40 + 10 * np.sin(2 * np.pi * i / 24) - week * (i // 24 % 7 >= 5) + noise


def run(file, capsys, **given):
    names = ("targets", "time", "series", "write_config", "plots", "input")
    args = argparse.Namespace(file=str(file), json=given.pop("json", False), **{n: given.get(n) for n in names})
    assert command.run(args) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------ what it finds


def test_the_awkward_daily_file_is_described_as_it_was_made(tmp_path):
    found = inspect(write_daily(tmp_path))
    assert (found.time_column.name, found.readings.keys.column, found.readings.keys.names) == (
        "time",
        "sensor",
        ["a", "b"],
    )
    assert found.steps.step_ms == HOUR
    assert (found.steps.gaps, found.steps.missing, found.steps.long) == (2, 33, 1)
    assert (found.steps.longest[0].series, found.steps.longest[0].steps) == ("b", 30)
    assert (found.order.duplicates, found.order.unsorted) == (1, 0)
    assert list(found.values) == ["load", "heat"]
    missing = sum(i % 37 == 5 for i in range(500)) * 2 - sum(i % 37 == 5 for i in [100, 101, 102, *range(200, 230)])
    assert (found.values["load"].missing, found.values["load"].longest_missing) == (missing, 1)


def test_the_proposed_config_is_valid_and_loads_the_file_it_was_made_from(tmp_path):
    made = write_daily(tmp_path)
    (tmp_path / "out").mkdir()
    config_path = tmp_path / "out" / "proposed.toml"
    found = inspect(made, relative_to=config_path.parent)
    config_path.write_text(found.proposal.text, encoding="utf-8")
    config = read_config(config_path)
    assert config == found.proposal.config
    assert (config.data.series, config.data.targets, config.data.covariates) == ("sensor", ["load"], ["heat"])
    assert (config.model.horizon, config.model.lags, config.model.calendar) == (24, ["1d"], ["day"])
    dataset = load_dataset(config, config_path.parent / str(config.data.path))
    ts = np.concatenate([s.ts for s in dataset.stretches])
    share = [(ts < until).mean() for until in (config.train_until_ms, config.validate_until_ms)]
    assert share == pytest.approx([0.7, 0.85], abs=0.03)


def test_seasons_of_day_and_week_become_lags_and_calendar(tmp_path):
    found = inspect(table(tmp_path / "load.csv", {"time": hours(24 * 70), "load": load(24 * 70)}))
    seasons = found.values["load"].seasons
    assert seasons.day.explained > 0.5 and seasons.week_beyond_day > 0.1 and seasons.strongest.period in ("1d", "1w")
    assert (found.proposal.config.model.lags, found.proposal.config.model.calendar) == (["1d", "7d"], ["day", "week"])


def test_noise_has_no_season_and_a_period_that_is_neither_day_nor_week_is_found(tmp_path):
    rng = np.random.default_rng(2)
    wave = 5 * np.sin(2 * np.pi * np.arange(2000) / 50) + rng.normal(0, 1, 2000)
    columns = {"time": hours(2000, 60_000), "noise": rng.normal(0, 1, 2000), "wave": wave}
    found = inspect(table(tmp_path / "pump.csv", columns), InspectOptions(targets=["wave"]))
    assert found.values["noise"].seasons.strongest is None
    assert found.values["wave"].seasons.strongest.steps == 50
    assert (found.proposal.config.model.lags, found.proposal.config.model.horizon) == (["50min"], 12)


def test_outliers_are_counted_with_where_and_one_far_reading_is_named(tmp_path):
    values = load(600)
    values[100], values[300] = 95, 4000
    found = inspect(table(tmp_path / "load.csv", {"time": hours(600), "load": values}))
    v = found.values["load"]
    assert v.outliers == 2
    assert [spot.time for spot in v.first_outliers] == [hours(600)[100], hours(600)[300]]
    assert any("4000" in note and "far beyond" in note for note in found.notes)


def test_a_far_reading_of_a_covariate_is_proposed_to_be_masked_as_it_spoils_the_scaler(tmp_path):
    wind = load(600) * np.random.default_rng(7).uniform(0.5, 1.5, 600)
    for far, expected in ((wind[100], "keep"), (9000, "mask")):
        wind[100] = far
        found = inspect(table(tmp_path / "load.csv", {"time": hours(600), "load": load(600), "wind": wind}))
        assert found.values["load"].outliers == 0
        assert found.proposal.config.data.outliers == expected
    assert "1 in wind" in found.proposal.text


def test_a_level_that_moves_and_stays_is_found_where_it_moves(tmp_path):
    values = load(24 * 120) + np.where(np.arange(24 * 120) < 24 * 60, 0, 60)
    found = inspect(table(tmp_path / "load.csv", {"time": hours(24 * 120), "load": values}))
    (shift,) = found.values["load"].shifts
    assert shift.time.startswith("2024-03-0") or shift.time.startswith("2024-02-2")
    assert shift.after - shift.before == pytest.approx(60, abs=8)


def test_columns_that_a_model_cannot_use_are_set_aside_with_the_reason(tmp_path):
    n = 500
    columns = {
        "row": range(n), "time": hours(n), "hour": [i % 24 for i in range(n)], "load": load(n),
        "load2": 2 * load(n) + 1, "always": [3] * n, "gone": ["NA"] * n, "rare": [1 if i % 3 else "" for i in range(n)],
        "mostly": [i * 0.5 if i % 4 == 0 else "" for i in range(n)], "wind_dir": [i * 37 % 361 for i in range(n)],
        "note": [f"n{i}" for i in range(n)],
    }  # fmt: skip
    found = inspect(table(tmp_path / "wide.csv", columns))
    why = {role.name: role.why for role in found.roles if role.role != "value"}
    assert list(found.values) == ["load"]
    expected = {
        "row": "counts", "hour": "calendar", "load2": "same as load", "always": "constant", "gone": "no value",
        "rare": "constant", "mostly": "missing", "wind_dir": "angle", "note": "text",
    }  # fmt: skip
    for name, word in expected.items():
        assert word in why[name], name


def test_cells_that_are_no_numbers_are_a_finding_with_their_line_not_an_end(tmp_path):
    cells = [f"{v:.2f}" for v in load(300)]
    cells[7], cells[9], cells[11] = "ERR", "ERR", "inf"
    found = inspect(table(tmp_path / "load.csv", {"time": hours(300), "load": cells}))
    assert found.values["load"].refused == 3
    assert any("3 cells" in note and "line 9: 'ERR'" in note for note in found.notes)


def test_unsorted_rows_and_many_duplicates_are_reported(tmp_path):
    time = hours(200)
    time[50], time[51] = time[51], time[50]
    values = load(200).round(3)
    time[120] = time[119]
    time[150], values[150] = time[149], values[149]  # says the same again
    found = inspect(table(tmp_path / "load.csv", {"time": time, "load": values}))
    assert (found.order.duplicates, found.order.contradictions, found.order.unsorted) == (2, 1, 1)
    assert found.order.first_duplicate == hours(200)[119]


def test_two_columns_that_only_together_are_the_key_become_one_key_and_the_config_reads_the_file(tmp_path):
    rows = [(t, s, v) for t in hours(200) for s in "ab" for v in "xy"]
    time, site, kind = zip(*rows, strict=True)
    target = tmp_path / "config.toml"
    found = inspect(
        table(tmp_path / "load.csv", {"time": time, "site": site, "kind": kind, "v": load(800)}), relative_to=tmp_path
    )
    target.write_text(found.proposal.text, encoding="utf-8")
    config = read_config(target)
    assert config.input is not None and config.input.key == "{site}/{kind}"
    dataset = load_dataset(config, tmp_path / "load.csv")
    assert {s.series for s in dataset.stretches} == {"a/x", "a/y", "b/x", "b/y"}
    assert (dataset.readings, dataset.duplicates) == (800, 0)


def test_irregular_readings_are_proposed_without_step_and_lags_and_a_little_jitter_is_not(tmp_path):
    rng = np.random.default_rng(3)
    for share, step in ((0.9, "0"), (0.02, "1h")):
        time = [format_time(START + int(HOUR * (i + share * rng.uniform()))) for i in range(800)]
        config = inspect(table(tmp_path / "load.csv", {"time": time, "load": load(800)})).proposal.config
        assert config.data.step == step
        assert config.model.lags == ([] if step == "0" else ["1d", "7d"])


@pytest.mark.parametrize(
    ("unit", "named"), [(1_000, "s"), (1, None), (0.001, "us")], ids=["seconds", "milliseconds", "microseconds"]
)
def test_epochs_are_distinguished_by_their_size_and_the_config_reads_them(tmp_path, unit, named):
    time = [round((START + i * HOUR) / unit) for i in range(300)]
    file = table(tmp_path / "load.csv", {"timestamp": time, "load": load(300)})
    found = inspect(file)
    assert found.readings.ts[0] == START and found.steps.step_ms == HOUR
    config = found.proposal.config
    assert (config.input.time_unit if config.input else None) == named
    assert load_dataset(config, file).stretches[0].ts[:2].tolist() == [START, START + HOUR]


def test_times_that_lost_their_unit_on_the_way_into_the_file_are_doubted(tmp_path):
    lost = [format_time(START // 1000 + i * 3600) for i in range(300)]  # seconds, written as if they were ms
    found = inspect(table(tmp_path / "load.csv", {"time": lost, "load": load(300)}))
    assert any("wrong unit" in note for note in found.notes)


def test_an_epoch_under_a_name_that_says_nothing_is_pointed_out(tmp_path):
    with pytest.raises(DataError, match=r"no column of times.*'c0' could be epoch seconds"):
        inspect(table(tmp_path / "load.csv", {"c0": [START // 1000 + i * 3600 for i in range(300)], "c1": load(300)}))


def test_parquet_and_gz_say_the_same_as_csv(tmp_path):
    columns = {"time": hours(400), "sensor": ["a", "b"] * 200, "load": load(400).round(3)}
    columns["time"] = [t for t in hours(200) for _ in range(2)]
    plain = inspect(table(tmp_path / "load.csv", columns))
    zipped = inspect(table(tmp_path / "load.csv.gz", columns))
    frame = polars.DataFrame(columns).with_columns(polars.col("time").str.to_datetime(time_zone="UTC"))
    frame.write_parquet(tmp_path / "load.parquet")
    parquet = inspect(tmp_path / "load.parquet")
    for other in (zipped, parquet):
        assert other.steps == plain.steps and other.order == plain.order
        assert other.report()["values"] == plain.report()["values"]
        assert other.proposal.config.model == plain.proposal.config.model
    assert parquet.readings.keys.names == ["a", "b"]


def test_units_in_brackets_reach_the_config(tmp_path):
    found = inspect(table(tmp_path / "load.csv", {"time": hours(300), "power (kW)": load(300)}))
    assert found.proposal.config.data.units == {"power (kW)": "kW"}
    assert '"power (kW)" = "kW"' in found.proposal.text


def test_a_target_that_leaves_its_trained_range_is_reported(tmp_path):
    values = load(1000) + np.linspace(0, 100, 1000)
    found = inspect(table(tmp_path / "load.csv", {"time": hours(1000), "load": values}))
    assert any("outside the range" in note for note in found.notes)


# ------------------------------------------------------------------ what it cannot use


def sentence(path, text, **options):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        inspect(path, InspectOptions(**options))
    return str(error.value)


def rows(head, make, n=100):
    return head + "\n" + "".join(make(i) + "\n" for i in range(n))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("time,v\n", "no rows"),
        ("time,v\n2024-01-01,1\n", "too few readings"),
        (rows("time,v", lambda i: f"2024-01-01,{i % 9}"), "99 of its rows repeat a time"),
        (rows("a,b", lambda i: f"{i / 7},{i % 5}"), "no column of times"),
        (rows("year,month,day,v", lambda i: f"2024,1,{i % 28 + 1},{i / 3}"), "made into one"),
        (rows("time,v", lambda i: f"{hours(100)[i]},hello {i}"), "no column of numbers"),
        (rows("time,v", lambda i: f"{hours(100)[i]},7"), "no column of numbers"),
        (rows("time,v", lambda i: f"{hours(100)[i][: 19 if i < 60 else 20]},{i}"), "have a zone and some have none"),
        (rows("time,v", lambda i: f"{hours(100)[i] if i != 70 else 'soon'},{i % 9}"), "'soon'"),
        (rows("when,v", lambda i: f"{i % 28 + 1:02d}/01/2024 10:00,{i}"), "neither ISO 8601 nor epoch"),
        (rows("time;v", lambda i: f"{hours(100)[i]};1,5"), "semicolons"),
        (rows("1,2.5", lambda i: f"{i},{i / 3}"), "no header"),
        ('{"time": "2024-01-01", "v": 1}\n', "JSON, not CSV"),
        ("time,v,v\n2024-01-01,1,2\n", "same name"),
        ("time,v\n2024-01-01,1,2\n", "line 2"),
    ],
    ids=["empty", "header only", "one row", "one time", "no time", "split date", "all text", "constant", "mixed zones",
         "bad time", "day or month first", "semicolons", "no header", "json", "same name", "ragged"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_gets_one_sentence_that_says_why(tmp_path, text, what):
    said = sentence(tmp_path / "bad.csv", text)
    assert what in said and "bad.csv" in said
    assert "\n" not in said and len(said) < 400


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    text = rows("time,v", lambda i: f"{hours(100)[i]},{i % 9}")
    assert "no column 'moment'. Its columns are time, v" in sentence(tmp_path / "bad.csv", text, time="moment")
    assert "no column 'sensor'" in sentence(tmp_path / "bad.csv", text, series="sensor")
    with pytest.raises(UsageError, match="cannot be forecast, got 'w'"):
        inspect(tmp_path / "bad.csv", InspectOptions(targets=["w"]))


# ------------------------------------------------------------------ the command


def test_the_command_prints_tables_and_a_config_and_writes_it_only_where_nothing_is(tmp_path, capsys):
    file = write_daily(tmp_path)
    target = tmp_path / "new" / "proposed.toml"
    out = run(file, capsys)
    assert "Values" in out and "Worth knowing" in out and "\x1b" not in out
    assert "[data]" in out and 'targets = ["load"]' in out
    out = run(file, capsys, write_config=str(target))
    assert f"tidecast train {target}" in out
    assert (target.parent / str(read_config(target).data.path)).samefile(file)
    with pytest.raises(UsageError, match="would overwrite"):
        run(file, capsys, write_config=str(target))


def test_a_place_that_cannot_be_written_to_is_said_in_one_sentence(tmp_path, capsys):
    file = write_daily(tmp_path)
    for given in ({"plots": str(file)}, {"write_config": str(file / "new.toml")}):
        with pytest.raises(UsageError, match=r"cannot make the directory .*daily\.csv"):
            run(file, capsys, **given)


def test_json_is_one_object_that_other_programs_can_read(tmp_path, capsys):
    found = json.loads(run(write_daily(tmp_path), capsys, json=True))
    assert found["step"] == "1h" and found["series"]["names"] == ["a", "b"]
    assert found["values"]["load"]["missing"] > 0
    assert found["config"]["data"]["targets"] == ["load"]


def test_each_column_can_be_a_series_of_one_shared_model(tmp_path, capsys):
    columns = {"time": hours(400), **{f"s{i}": load(400, week=i) * (i + 1) for i in range(3)}}
    columns["s1"] = columns["s1"] + np.random.default_rng(5).normal(0, 3, 400)
    file = table(tmp_path / "wide.csv", columns)
    assert "--series columns" in run(file, capsys)
    target = tmp_path / "wide.toml"
    run(file, capsys, series="columns", write_config=str(target))
    config = read_config(target)
    assert config.each_column and config.data.targets == ["s0", "s1", "s2"] and config.data.covariates == []


def test_the_plots_are_pictures_of_some_size(tmp_path, capsys):
    out = run(write_daily(tmp_path), capsys, plots=str(tmp_path / "plots"))
    for name in ("series", "seasons", "gaps"):
        picture = tmp_path / "plots" / f"{name}.png"
        assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000
        assert str(picture) in out


@pytest.mark.parametrize("steps", [100, 240, 241, 999])
def test_every_bin_of_the_picture_of_gaps_is_due_whole_steps_and_none_is_lost(tmp_path, steps):
    found = inspect(table(tmp_path / "load.csv", {"time": hours(steps), "load": load(steps)}))
    edges = bins(found, 240)
    counts = np.histogram(found.readings.ts, edges)[0]
    assert counts.sum() == steps and len(counts) <= 240
    np.testing.assert_array_equal(counts, np.diff(edges) / HOUR)  # all came: each bin is full, and no bin is fuller


def test_the_picture_of_gaps_shows_the_series_that_have_them(tmp_path):
    rows = [(t, f"s{s}") for i, t in enumerate(hours(80)) for s in range(35) if s != 20 or i < 50]
    time, sensor = zip(*rows, strict=True)
    found = inspect(table(tmp_path / "many.csv", {"time": time, "sensor": sensor, "v": load(len(rows))}))
    axis = gaps(found).axes[0]
    assert axis.get_yticklabels()[0].get_text() == "s20"
    assert "30 of 35 series" in axis.get_title(loc="left") + axis.get_title()


def test_inspecting_needs_no_torch():
    inspection = ", ".join(f"tidecast.training.inspection.{name}" for name in ("inspect", "report", "plots"))
    modules = f"{inspection}, tidecast.training.commands.inspect"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data at ../shared/data")
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("nyc_taxi/nyc_taxi_dev.csv", ("30min", None, ["passenger_count"], 48, ["1d", "7d"])),
        ("nyc_weather/weather.csv", ("1h", "origin", ["temp"], 24, ["1d"])),
        ("ett/ETTh1.csv", ("1h", None, ["OT"], 24, ["1d"])),
        ("nab/machine_temperature_system_failure.csv", ("5min", None, ["value"], 12, [])),
    ],
)
def test_the_configs_proposed_for_real_files_are_what_a_person_would_write(file, expected):
    config = inspect(DATA / file).proposal.config
    assert (
        config.data.step,
        config.data.series,
        config.data.targets,
        config.model.horizon,
        config.model.lags,
    ) == expected
