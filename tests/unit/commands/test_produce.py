import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.cli import Parser, main
from tidecast.service.commands import produce
from tidecast.service.config.loader import load
from tidecast.service.datafiles.readings import Reading, readings
from tidecast.service.datafiles.table import Columns, Table
from tidecast.service.errors import BrokerError, DataError, UsageError
from tidecast.service.feed import sources
from tidecast.service.feed.pacing import BATCH, paced, parse_speed
from tidecast.service.feed.sender import check_topic, send
from tidecast.service.input.files import DataFile
from tidecast.service.timestamps import parse_time

HOUR = 3_600_000
T0 = 1_700_000_400_000


class FakeClock:
    """Time that passes only by waiting; says stop once `stop_at` is reached."""

    def __init__(self, start_ms: float = 1_000_000.0, stop_at: float = math.inf) -> None:
        self.ms, self.stop_at = start_ms, stop_at
        self.waits: list[float] = []

    def now_ms(self) -> float:
        return self.ms

    def wait(self, seconds: float) -> bool:
        if seconds > 0:
            self.waits.append(seconds)
            self.ms = min(self.ms + seconds * 1_000, self.stop_at)
        return self.ms >= self.stop_at


def reading(ts: int, key: bytes = b"k") -> Reading:
    return Reading(ts, key, b"{}")


def table(rows: list[tuple[str, int]]) -> Table:
    return Table(
        ts=np.array([ts for _, ts in rows], dtype=np.int64),
        series=[key for key, _ in rows],
        x=np.arange(len(rows), dtype=np.float64).reshape(-1, 1),
        features=("a",),
    )


def csv(path: Path, rows: list[tuple[str, int, str]]) -> Path:
    path.write_text("key,t,a\n" + "".join(f"{key},{ts},{value}\n" for key, ts, value in rows))
    return path


COLUMNS = Columns("t", ("a",), series="key")


# --- pace


def test_a_file_at_its_own_pace_waits_as_long_as_its_times_are_apart() -> None:
    clock = FakeClock()
    sent = [
        (clock.ms - 1_000_000, [r.ts - T0 for r in batch])
        for batch in paced([reading(T0 + d) for d in (0, 0, 1_000, 3_500)], 1, clock)
    ]
    assert sent == [(0, [0, 0]), (1_000, [1_000]), (3_500, [3_500])]


def test_a_speed_factor_shortens_the_waits_by_it() -> None:
    clock = FakeClock()
    list(paced([reading(T0), reading(T0 + HOUR), reading(T0 + 3 * HOUR)], 3_600, clock))
    assert clock.waits == pytest.approx([1.0, 2.0])


def test_as_fast_as_it_goes_never_waits_and_sends_in_batches() -> None:
    clock = FakeClock()
    sizes = [len(b) for b in paced((reading(T0 + i * HOUR) for i in range(2 * BATCH + 1)), math.inf, clock)]
    assert sizes == [BATCH, BATCH, 1]
    assert clock.waits == []


def test_a_stream_that_fell_behind_sends_what_is_overdue_at_once_and_keeps_its_schedule() -> None:
    clock = FakeClock()
    sent = []
    for batch in paced([reading(T0 + d) for d in (0, 1_000, 2_000, 3_000, 20_000)], 1, clock):
        sent.append((clock.ms - 1_000_000, len(batch)))
        if len(sent) == 1:
            clock.ms += 2_500  # the producer blocked
    assert sent == [(0, 1), (2_500, 2), (3_000, 1), (20_000, 1)]


def test_a_stop_ends_the_wait_for_the_next_reading_and_keeps_what_was_due() -> None:
    clock = FakeClock(stop_at=1_000_500.0)
    sent = [r.ts - T0 for batch in paced([reading(T0), reading(T0 + 1_000)], 1, clock) for r in batch]
    assert sent == [0]


def test_a_stop_also_ends_a_stream_that_never_waits() -> None:
    clock = FakeClock(stop_at=0.0)
    assert sum(len(b) for b in paced((reading(T0) for _ in itertools.count()), math.inf, clock)) == BATCH


@pytest.mark.parametrize("text", ["0", "-1", "fast", "", "nan"])
def test_a_speed_that_is_not_a_positive_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_speed(text)


def test_speeds_are_factors_or_max() -> None:
    assert (parse_speed("1"), parse_speed("0.5"), parse_speed("MAX")) == (1, 0.5, math.inf)


# --- file


def test_series_one_after_the_other_in_the_file_come_out_merged_in_time(tmp_path: Path) -> None:
    path = csv(tmp_path / "f.csv", [(key, T0 + i * HOUR, str(i)) for key in "xyz" for i in range(3)])
    merged = sources.file_table(DataFile(path, COLUMNS))
    assert merged.series == list("xyzxyzxyz")
    assert np.diff(merged.ts).min() >= 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(T0, T0 + 10)), min_size=1, max_size=40))
def test_merging_never_changes_the_order_inside_a_series_so_a_late_reading_stays_late(
    rows: list[tuple[str, int]],
) -> None:
    made = table(rows)
    order = sources.stream_order(made.ts, made.series)
    assert sorted(order.tolist()) == list(range(len(rows)))
    for key in "abc":
        mine = [i for i in order.tolist() if rows[i][0] == key]
        assert mine == sorted(mine)
    latest: dict[str, int] = {}
    seen = []
    for i in order.tolist():
        key, ts = rows[i]
        latest[key] = max(latest.get(key, ts), ts)
        seen.append(latest[key])
    assert seen == sorted(seen)


def test_a_part_of_a_file_is_cut_by_time_and_count(tmp_path: Path) -> None:
    path = csv(tmp_path / "f.csv", [("x", T0 + i * HOUR, str(i)) for i in range(10)])
    part = sources.file_table(DataFile(path, COLUMNS), start=T0 + 2 * HOUR, until=T0 + 7 * HOUR, limit=3)
    assert part.x[:, 0].tolist() == [2, 3, 4]
    with pytest.raises(DataError, match="no readings"):
        sources.file_table(DataFile(path, COLUMNS), start=T0 + 100 * HOUR)


def test_a_loop_continues_one_step_after_its_end() -> None:
    rows = [("x", T0), ("y", T0), ("x", T0 + HOUR), ("y", T0 + HOUR)]
    first = [r.ts for r in itertools.islice(sources.looped(table(rows)), 10)]
    assert first == [T0 + (i // 2) * HOUR for i in range(10)]


def test_now_moves_the_first_reading_to_now_on_the_same_grid() -> None:
    made = table([("x", T0), ("x", T0 + HOUR), ("x", T0 + 2 * HOUR)])
    now = T0 + 1_000 * HOUR + 123_456
    shifted = sources.shifted(made, sources.now_shift(made, now))
    assert shifted.ts[0] == T0 + 1_000 * HOUR


def test_a_missing_value_is_null_and_a_number_keeps_all_its_digits() -> None:
    made = Table(np.array([T0]), ["k"], np.array([[0.1, np.nan, 1e300]]), ("a", "b", "c"))
    assert [json.loads(r.value) for r in readings(made)] == [{"ts": T0, "a": 0.1, "b": None, "c": 1e300}]


def test_a_feature_called_ts_is_refused_rather_than_overwriting_the_time() -> None:
    with pytest.raises(UsageError, match="ts"):
        list(readings(Table(np.array([T0]), ["k"], np.array([[1.0]]), ("ts",))))


# --- sine and machine


def test_sines_are_the_same_for_the_same_seed_and_step_by_the_rate() -> None:
    def some(seed: int) -> list[Reading]:
        return list(itertools.islice(sources.sine_readings(series=3, rate=4, start_ms=T0, seed=seed), 30))

    assert some(1) == some(1) != some(2)
    assert [r.ts for r in some(1)] == [T0 + 250 * (i // 3) for i in range(30)]
    assert {r.key for r in some(1)} == {b"sine-0", b"sine-1", b"sine-2"}


def test_a_rate_that_is_not_a_whole_number_of_ms_does_not_drift() -> None:
    last = next(itertools.islice(sources.sine_readings(series=1, rate=3, start_ms=T0), 3_000, None))
    assert last.ts == T0 + 1_000_000


@pytest.mark.parametrize("wrong", [{"series": 0}, {"rate": 0.0}, {"rate": 2e3}, {"noise": -1.0}])
def test_invalid_numbers_for_sines_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        sources.sine_readings(**({"series": 1, "rate": 1.0, "start_ms": T0} | wrong))


def machine(clock: FakeClock, **options: object) -> Iterator[list[Reading]]:
    values = itertools.count()
    return sources.machine_readings(
        lambda: {"cpu": float(next(values)), "disk": None},
        clock,
        **({"interval_ms": 1_000, "host": "box"} | options),  # type: ignore[arg-type]
    )


def test_the_machine_is_read_when_due_on_a_grid_of_whole_intervals() -> None:
    clock = FakeClock(start_ms=T0 + 300.0)
    batches = list(itertools.islice(machine(clock), 2))
    assert [[r.key for r in b] for b in batches] == [[b"box/cpu", b"box/disk"]] * 2
    assert [json.loads(b[0].value) for b in batches] == [
        {"ts": T0 + 1_000, "value": 1.0},
        {"ts": T0 + 2_000, "value": 2.0},
    ]
    assert json.loads(batches[0][1].value)["value"] is None


def test_a_suspended_machine_skips_the_readings_it_missed() -> None:
    clock = FakeClock(start_ms=float(T0))
    stream = machine(clock)
    first = next(stream)[0].ts
    clock.ms += 5_400
    assert [first, next(stream)[0].ts, next(stream)[0].ts] == [T0 + 1_000, T0 + 6_000, T0 + 7_000]


def test_a_wide_machine_is_one_series_with_every_sensor_as_a_feature() -> None:
    [one] = next(machine(FakeClock(start_ms=float(T0)), wide=True))
    assert one.key == b"box"
    assert json.loads(one.value) == {"ts": T0 + 1_000, "cpu": 1.0, "disk": None}


def test_this_machines_own_sensors_give_numbers_in_range() -> None:
    read = sources.machine_sensors(FakeClock())
    read()
    now = read()
    for name in ("cpu_percent", "memory_percent", "disk_percent"):
        assert now[name] is not None and 0 <= now[name] <= 100


# --- sending


class Recorder:
    def __init__(self, fails_at: int | None = None) -> None:
        self.keys: list[bytes | None] = []
        self.flushed = 0
        self.fails_at = fails_at

    def produce(self, outgoing: OutgoingBatch) -> None:
        if self.fails_at is not None and len(self.keys) >= self.fails_at:
            raise BrokerError("gone")
        self.keys += outgoing.keys

    def flush(self, timeout_s: float) -> None:
        self.flushed = len(self.keys)

    def close(self) -> None:
        pass


def test_the_end_of_a_stream_flushes_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    producer = Recorder()
    batches = [[reading(T0, b"a"), reading(T0, b"b")], [reading(T0, b"a")]]
    assert send(batches, producer, "readings", 1.0, "sent") == 0
    assert producer.flushed == 3
    assert "sent 3 readings of 2 series" in capsys.readouterr().err


def test_an_unavailable_broker_is_an_error_with_the_count_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokerError):
        send([[reading(T0)], [reading(T0)]], Recorder(fails_at=1), "readings", 1.0, "sent")
    assert "1 readings were sent" in capsys.readouterr().err


def test_a_missing_topic_is_refused_with_the_command_that_creates_it() -> None:
    broker = MemoryBroker()
    config = load({"input_topic": "sensors"}, {})
    with pytest.raises(BrokerError, match="tidecast topics create --input-topic sensors"):
        check_topic(broker, config)
    broker.create_topic("sensors", 1)
    check_topic(broker, config)


# --- the command


def columns(*flags: str) -> Columns:
    parser = Parser("tidecast produce")
    produce.configure(parser)
    return produce.file_of(parser.parse(["file", *flags]), "weather.csv.gz").columns


CONFIG = """name = "w"
[data]
path = "weather.csv"
time = "t"
step = "1h"
series = "key"
targets = ["a"]
covariates = ["b"]
train_until = 2013-01-01T00:00:00Z
validate_until = 2013-02-01T00:00:00Z
"""


def test_columns_come_from_the_models_config_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    model = ("--model", str(tmp_path))
    assert columns(*model) == Columns("t", ("a", "b"), series="key", name="w")
    assert columns(*model, "--series", "id", "--time", "when") == Columns("when", ("a", "b"), series="id", name="w")
    assert columns(*model, "--series", "columns", "--features", "b, c") == Columns(
        "t", ("b", "c"), each_column=True, name="w"
    )


def test_a_model_with_a_series_for_each_column_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.replace('"key"', '"columns"'))
    assert columns("--model", str(tmp_path)) == Columns("t", ("a", "b"), each_column=True, name="w")


LONG = """t,site,metric,v
2013-01-01,x,temp,1.5
2013-01-02,x,temp,2.5
2013-01-01,x,spare,7
"""
TABLE = '[input]\ntime = "t"\nkey = "site"\nname = "metric"\nvalue = "v"\nfields = { a = "temp" }\n'


@pytest.mark.parametrize("where", ["--input", "--model"])
def test_a_long_file_is_sent_as_readings_by_a_table_or_by_the_models_own(tmp_path, capsys, where) -> None:
    (tmp_path / "long.csv").write_text(LONG)
    (tmp_path / "table.toml").write_text(TABLE)
    own = CONFIG.replace('time = "t"\n', "").replace('series = "key"\n', "").replace('covariates = ["b"]\n', "")
    (tmp_path / "config.toml").write_text(own + TABLE)
    given = tmp_path / "table.toml" if where == "--input" else tmp_path
    assert main(["produce", "file", str(tmp_path / "long.csv"), where, str(given), "--speed", "max", "--dry-run"]) == 0
    sent, said = capsys.readouterr()
    assert [json.loads(line) for line in sent.splitlines()] == [
        {"key": "x", "value": {"ts": parse_time(day), "a": value}}
        for day, value in (("2013-01-01", 1.5), ("2013-01-02", 2.5))
    ]
    assert "1 row with names that are no features: 'spare' (1)" in said


def test_a_table_and_a_flag_that_says_the_same_are_refused_and_a_wide_table_needs_features(tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text(TABLE)
    table = ("--input", str(tmp_path / "table.toml"))
    for flag in ("--time", "--series"):
        with pytest.raises(UsageError, match=f"what {flag} would say"):
            columns(*table, flag, "x")
    (tmp_path / "table.toml").write_text('[input]\ntime = "t"\n')
    with pytest.raises(UsageError, match="produce needs --features"):
        columns(*table)
    assert columns(*table, "--features", "a,b", "--name", "n") == Columns("", ("a", "b"), name="n")


def test_flags_that_say_how_a_file_is_read_win_over_the_models_table(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.replace('time = "t"\n', "").replace('series = "key"\n', "") + TABLE)
    model = ("--model", str(tmp_path))
    assert columns(*model, "--time", "when", "--series", "id") == Columns("when", ("a", "b"), series="id", name="w")
    with pytest.raises(UsageError, match="produce needs --time"):
        columns(*model, "--series", "id")


def test_a_model_of_one_value_takes_it_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.replace('"key"', '"columns"'))
    (tmp_path / "table.toml").write_text(TABLE)
    found = columns("--model", str(tmp_path), "--input", str(tmp_path / "table.toml"))
    assert found == Columns("", ("value",), name="w")


def test_without_a_key_column_the_key_is_the_files_name() -> None:
    assert columns("--time", "t", "--features", "a").name == "weather"


def test_a_dry_run_prints_the_records_and_needs_no_kafka(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv(tmp_path / "f.csv", [("x", T0, "1.5"), ("y", T0, "NA"), ("x", T0 + HOUR, "2")])
    flags = ["--time", "t", "--series", "key", "--features", "a", "--speed", "max", "--limit", "2", "--dry-run"]
    assert main(["produce", str(path), *flags]) == 0
    out = capsys.readouterr()
    assert [msgspec.json.decode(line) for line in out.out.splitlines()] == [
        {"key": "x", "value": {"ts": T0, "a": 1.5}},
        {"key": "y", "value": {"ts": T0, "a": None}},
    ]
    assert "printed 2 readings of 2 series" in out.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "needs FILE"),
        (["file", "f.csv"], "--time"),
        (["f.csv", "--data", "g.csv"], "one file is enough"),
        (["sinus"], "Did you mean sine?"),
        (["sine", "--data", "f.csv"], "tidecast produce sine has no --data. It is for: file."),
        (["machine", "--from", "2013-01-01"], "tidecast produce machine has no --from. It is for: file."),
        (["sine", "--limit", "0"], "--limit"),
        (["sine", "--series", "many"], "--series"),
        (["machine", "--interval", "1ms"], "--interval"),
        (["f.csv", "--time", "t", "--features", "a", "--from", "soon"], "--from"),
        (["f.csv", "--model", "/nowhere"], "model"),
    ],
)
def test_a_wrong_call_is_refused_before_connecting_to_kafka(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["produce", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
