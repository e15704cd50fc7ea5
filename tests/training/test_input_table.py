"""Files that are not one reading a row: `inspect` finds their `[input]` table, and the trainer reads the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_inspect import HOUR, START, hours, load, table
from tidecast.service.broker.port import Batch
from tidecast.service.errors import DataError, UsageError
from tidecast.service.input.config import JoinConfig, parse_input, read_input
from tidecast.service.input.mapping import InputMapper
from tidecast.service.timestamps import format_time
from tidecast.training.config import read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.inspection.inspect import InspectOptions, inspect

CASE = Path(__file__).parents[2].parent / "shared" / "cases" / "data" / "02-long-format-value-set-aside" / "influx.csv"
NAMES = ("temp", "load")


def long_rows(steps: int = 200, keys: tuple[tuple[str, ...], ...] = (("a",),), shift: int = 0) -> list[dict[str, Any]]:
    """In blocks, as databases write them: a feature of a series after the other."""
    return [
        {"at": START + i * HOUR + n * shift, "key": key, "name": name, "value": round(float(x) + 100 * n, 3)}
        for k, key in enumerate(keys)
        for n, name in enumerate(NAMES)
        for i, x in enumerate(load(steps) + 3 * k + np.random.default_rng(n).normal(0, 2, steps))
    ]


def write(path: Path, rows: list[dict[str, Any]], columns: dict[str, Any]) -> Path:
    """A CSV file of columns: what each row gives."""
    return table(path, {name: [each(row) for row in rows] for name, each in columns.items()})


TIME = {"time": lambda row: format_time(row["at"])}
VALUE = {"value": lambda row: row["value"]}
NAME = {"metric": lambda row: row["name"]}
PLACES = (("north", "m1"), ("north", "m2"), ("south", "m1"), ("south", "m2"))
SHAPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, str | None]]] = {
    "melted": (long_rows(), TIME | {"variable": lambda row: row["name"]} | VALUE, {"key": "@key", "name": "variable"}),
    "one numeric column of any name": (
        long_rows(), TIME | {"parameter": lambda row: row["name"], "concentration": lambda row: row["value"]},
        {"name": "parameter", "value": "concentration"},
    ),
    "a type and a value": (
        long_rows(), TIME | {"sensor_type": lambda row: row["name"]} | VALUE, {"name": "sensor_type"},
    ),
    "with units, states and counters": (
        long_rows(),
        {"id": lambda row: int(row["at"] + row["value"])} | TIME | NAME | VALUE
        | {"unit": lambda row: {"temp": "degC", "load": "kW"}[row["name"]], "quality": lambda row: "good"},
        {"name": "metric", "value": "value", "key": "@key"},
    ),
    "a key": (
        long_rows(keys=(("a",), ("b",))), TIME | {"device": lambda row: row["key"][0]} | NAME | VALUE,
        {"key": "device"},
    ),
    "a key of two columns": (
        long_rows(keys=PLACES),
        TIME | {"site": lambda row: row["key"][0], "m": lambda row: row["key"][1]} | NAME | VALUE,
        {"key": "{site}/{m}"},
    ),
    "epoch seconds": (
        long_rows(), {"timestamp": lambda row: row["at"] // 1000} | NAME | VALUE, {"time_unit": "s"},
    ),
    "names that need quotes": (
        long_rows(), {"@time": lambda row: format_time(row["at"]), "metric.name": lambda row: row["name"]} | VALUE,
        {"time": '"@time"', "name": '"metric.name"'},
    ),
    "seconds apart": (long_rows(shift=7_000), TIME | NAME | VALUE, {"name": "metric"}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_file_is_recognised_and_the_proposed_config_loads_every_reading(tmp_path, shape):
    rows, columns, wanted = SHAPES[shape]
    file = write(tmp_path / "export.csv", rows, columns)
    found = inspect(file, relative_to=tmp_path)
    (tmp_path / "config.toml").write_text(found.proposal.text, encoding="utf-8")
    config = read_config(tmp_path / "config.toml")
    assert config.input is not None
    assert {name: getattr(config.input, name) for name in wanted} == wanted
    assert config.input.join is not None
    assert config.input.join == JoinConfig(tolerance="10s" if shape == "seconds apart" else "0", deadline="1h")
    assert (config.data.targets, config.data.covariates) == (["temp"], ["load"])
    dataset = load_dataset(config, file)
    series = len({row["key"] for row in rows})
    assert (dataset.readings, dataset.quality.series) == (len(rows) // 2, series)
    assert dataset.missing == {"temp": 0, "load": 0} and dataset.rows == [] and dataset.duplicates == 0
    assert len(found.readings.ts) == len(rows) // 2
    assert found.steps.step_ms == HOUR


@pytest.mark.parametrize(
    ("column", "value"), [("sensor", "value"), ("origin", "temp"), ("tag", "value"), ("device", "reading")]
)
def test_a_key_of_like_series_stays_a_key(tmp_path, column, value):
    rows = long_rows()
    columns = TIME | {column: lambda row: row["name"], value: lambda row: row["value"]}
    found = inspect(write(tmp_path / "f.csv", rows, columns))
    assert found.proposal.config.input is None
    assert (found.proposal.config.data.series, found.proposal.config.data.targets) == (column, [value])


def test_a_wide_file_with_a_column_called_type_stays_wide(tmp_path):
    rows = long_rows()
    columns = TIME | {"type": lambda row: row["name"]} | VALUE | {"second_value": lambda row: row["at"] % 977}
    assert inspect(write(tmp_path / "f.csv", rows, columns)).proposal.config.input is None


def test_series_on_the_command_line_takes_each_row_of_a_long_file_as_a_reading(tmp_path):
    file = write(tmp_path / "f.csv", long_rows(), TIME | NAME | VALUE)
    config = inspect(file, InspectOptions(series="metric")).proposal.config
    assert config.input is None and config.data.series == "metric" and config.data.targets == ["value"]


def test_sparse_rows_of_one_time_are_joined_and_no_feature_is_lost(tmp_path):
    time = [at for at in hours(200) for _ in "ab"]
    temp, hum = load(200).round(2), (load(200) * 2 + np.random.default_rng(5).normal(0, 3, 200)).round(2)
    columns = {
        "time": time,
        "temp": [x for value in temp for x in (value, "")],
        "hum": [x for value in hum for x in ("", value)],
    }
    file = table(tmp_path / "sparse.csv", columns)
    found = inspect(file, relative_to=tmp_path)
    config = found.proposal.config
    assert config.input is not None and config.input.join is not None
    dataset = load_dataset(config, file)
    assert (dataset.readings, dataset.missing) == (200, {"temp": 0, "hum": 0})


def test_true_duplicates_are_not_taken_for_sparse_rows(tmp_path):
    time = [at for at in hours(100) for _ in "ab"]
    values = [x if i % 3 else "" for i, x in enumerate(load(200).round(2))]
    file = table(tmp_path / "f.csv", {"time": time, "temp": values, "hum": values[::-1]})
    assert inspect(file).proposal.config.input is None


def test_a_given_table_is_used_and_kept_and_flags_that_say_the_same_are_refused(tmp_path):
    columns = {"when": lambda row: row["at"] // 1000, "tag": lambda row: row["name"], "v": lambda row: row["value"]}
    file = write(tmp_path / "f.csv", long_rows(), columns)
    given = parse_input({"time": "when", "time_unit": "s", "name": "tag", "value": "v",
                         "fields": {"heat": {"path": "temp", "scale": 2.0}, "load": "load"}})  # fmt: skip
    found = inspect(file, InspectOptions(table=given), relative_to=tmp_path)
    assert found.proposal.config.input == given
    assert list(found.values) == ["heat", "load"]
    (tmp_path / "c.toml").write_text(found.proposal.text, encoding="utf-8")
    assert read_config(tmp_path / "c.toml").input == given
    for flag in ("time", "series"):
        with pytest.raises(UsageError, match=f"--{flag}"):
            inspect(file, InspectOptions(table=given, **{flag: "tag"}))  # type: ignore[arg-type]


def test_rows_that_are_not_used_are_said_by_inspect_and_in_the_dataset(tmp_path):
    rows = long_rows()
    rows += [{**rows[0], "value": 9.0}, {**rows[1], "value": ""}]
    file = write(tmp_path / "f.csv", rows, TIME | NAME | VALUE)
    found = inspect(file, InspectOptions(targets=["load"]), relative_to=tmp_path)
    assert any(note.startswith("1 row for a series, time and feature that had a value") for note in found.notes)
    assert any(note.startswith("1 row without a value") for note in found.notes)
    config = found.proposal.config
    dataset = load_dataset(config, file)
    assert (dataset.duplicates, dataset.quality.contradictions) == (1, 1)
    (empty, doubled) = dataset.rows
    assert "without a value" in empty and "(1 with another value)" in doubled


def test_a_cell_that_is_no_number_is_refused_with_its_line(tmp_path):
    rows = long_rows()
    rows[7]["value"] = "ERR"
    with pytest.raises(DataError, match="line 9, column 'value': not a finite number, got 'ERR'"):
        inspect(write(tmp_path / "f.csv", rows, TIME | NAME | VALUE))


def command(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TIDECAST_")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tidecast")), *args], cwd=folder, env=env, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not CASE.is_file(), reason="the case is not at ../shared/cases")
def test_the_influx_export_that_was_once_trained_on_its_table_number_is_read_by_its_fields():
    found = inspect(CASE)
    config = found.proposal.config
    assert config.input is not None and (config.input.key, config.input.value) == ("location", "_value")
    assert (config.data.targets, len(found.readings.ts)) == (["temperature"], 300)
    assert {role.name: role.role for role in found.roles}["pressure"] == "set aside"  # the same wave as temperature


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_long_export_goes_from_inspect_to_forecasts_and_the_models_config_reads_a_topic_of_its_rows(tmp_path):
    rows = long_rows(240, keys=(("roof",), ("cellar",)))
    columns = {
        "": lambda row: "", "result": lambda row: "_result", "table": lambda row: NAMES.index(row["name"]),
        "_time": TIME["time"], "_value": VALUE["value"], "_field": NAME["metric"],
        "location": lambda row: row["key"][0],
    }  # fmt: skip
    file = write(tmp_path / "influx.csv", rows, columns)
    command("inspect", "influx.csv", "--write-config", "my.toml", folder=tmp_path)
    command("train", "my.toml", "--out", "model", "--epochs", "1", folder=tmp_path)
    done = command("replay", "--model", "model", "--data", "influx.csv", "--out", "f.jsonl", folder=tmp_path)
    forecasts = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert "480 readings of 2 series, 480 forecasts" in done.stderr
    assert list(forecasts[0]["targets"]) == ["temp"]
    replayed = [(f["series"], f["ts"]) for f in forecasts]
    assert sorted(replayed) == sorted({(row["key"][0], row["at"]) for row in rows})
    assert [ts for _, ts in replayed] == sorted(ts for _, ts in replayed)

    # The same model directory as --input of serve: the rows as a topic's records.
    head, *lines = [line.split(",") for line in file.read_text().splitlines()]
    values = [json.dumps(dict(zip(head, line, strict=True))).encode() for line in lines]
    n = len(values)
    batch = Batch("t", [0] * n, list(range(n)), [0] * n, [None] * n, values, [()] * n)
    mapped = InputMapper(read_input(tmp_path / "model" / "config.toml"), NAMES).map(batch)
    assert not mapped.readings.rejected and not mapped.unused
    found = {}
    for key, ts, row in zip(mapped.batch.keys, mapped.readings.ts.tolist(), mapped.readings.x.tolist(), strict=True):
        found |= {(key.decode(), ts, name): x for name, x in zip(NAMES, row, strict=True) if x == x}
    assert found == {(row["key"][0], row["at"], row["name"]): float(np.float32(row["value"])) for row in rows}
