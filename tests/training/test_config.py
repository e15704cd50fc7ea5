"""A config that cannot be trained with is refused with the setting's name, before torch is loaded."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from tidecast.service.errors import UsageError
from tidecast.service.input.config import parse_input, read_input
from tidecast.training.config import read_config, write_config

CONTRACT = """
name = "nyc-taxi"
[data]
path = "nyc_taxi.csv"
time = "timestamp"
step = "30min"
series = "station"
targets = ["passenger_count"]
covariates = []
train_until = "2014-12-20T00:00:00Z"
validate_until = "2015-01-25T08:00:00Z"
[model]
cell = "gru"
hidden = 64
layers = 1
horizon = 5
quantiles = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
lags = ["1d", "7d"]
calendar = ["day", "week"]
[fit]
window = 96
lanes = 32
epochs = 40
learning_rate = 0.003
clip = 1.0
seed = 0
members = 1
"""


def _read(tmp_path: Path, text: str):
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_every_name_of_the_contract_is_read(tmp_path):
    config = _read(tmp_path, CONTRACT)
    assert config.step_ms == 1_800_000
    assert config.lag_steps == [48, 336]
    assert config.history == 337
    assert config.score_horizons == [1, 5]
    assert config.features == ["passenger_count"]
    assert config.train_until_ms == 1_419_033_600_000


def test_series_columns_makes_one_univariate_model(tmp_path):
    config = _read(tmp_path, CONTRACT.replace('"station"', '"columns"'))
    assert config.targets == ["value"]
    assert config.columns.each_column
    assert config.columns.series is None


def test_toml_times_are_as_good_as_texts(tmp_path):
    config = _read(tmp_path, CONTRACT.replace('"2014-12-20T00:00:00Z"', "2014-12-20T00:00:00Z"))
    assert config.train_until_ms == 1_419_033_600_000


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("hidden = 64", "hiden = 64", "hiden"),
        ("hidden = 64", "hidden = 0", "model.hidden"),
        ('cell = "gru"', 'cell = "gpt"', "model.cell"),
        ("horizon = 5", 'horizon = "5"', "horizon"),
        ("0.05, 0.1", "0.1, 0.05", "model.quantiles"),
        ('["1d", "7d"]', '["45min"]', "model.lags"),
        ('step = "30min"', 'step = "half an hour"', "duration"),
        ('step = "30min"', 'step = "0"', "model.lags"),
        ("covariates = []", 'covariates = ["passenger_count"]', "data.covariates"),
        ('"2015-01-25T08:00:00Z"', '"2013-01-25T08:00:00Z"', "validate_until"),
        ('"2014-12-20T00:00:00Z"', '"soon"', "train_until"),
        ("clip = 1.0", "clip = 0.0", "fit.clip"),
        ('targets = ["passenger_count"]', "targets = []", "data.targets"),
        ('targets = ["passenger_count"]', 'targets = ["ts"]', "ts"),
        ("[data]", "[data", "TOML"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, before, after, said):
    assert before in CONTRACT
    with pytest.raises(UsageError, match=said):
        _read(tmp_path, CONTRACT.replace(before, after))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="no such training config"):
        read_config(tmp_path / "nothing.toml")


def test_the_config_of_a_model_directory_trains_it_again(tmp_path):
    config = _read(tmp_path, CONTRACT)
    model = tmp_path / "out" / "model"
    model.mkdir(parents=True)
    write_config(config, tmp_path / "nyc_taxi.csv", model)
    again = read_config(model / "config.toml")
    assert (model / str(again.data.path)).resolve() == tmp_path / "nyc_taxi.csv"
    assert again.model == config.model
    assert again.fit == config.fit


MAPPED = (
    CONTRACT.replace('time = "timestamp"\n', "").replace('series = "station"\n', "")
    + """
[input]
time = "at"
time_unit = "s"
key = "{site}/{machine}"
fields = { passenger_count = { path = "count", scale = 0.5 } }
skip_if = { quality = ["bad", 0] }
[input.schema]
file = "schemas/readings.avsc"
[input.join]
tolerance = "5s"
"""
)


def test_an_input_table_is_kept_as_it_is_in_the_model_directory_and_serves_from_there(tmp_path):
    config = _read(tmp_path, MAPPED)
    (model := tmp_path / "model").mkdir()
    write_config(config, tmp_path / "nyc_taxi.csv", model)
    again = read_config(model / "config.toml")
    for read in (again.input, read_input(model / "config.toml")):
        assert read is not None and config.input is not None
        assert Path(read.schema.file).resolve() == Path(config.input.schema.file).resolve()
        assert msgspec.structs.replace(read, schema=config.input.schema) == config.input
    written = tomllib.loads((model / "config.toml").read_text())["input"]
    assert written == {
        "time": "at",
        "time_unit": "s",
        "key": "{site}/{machine}",
        "fields": {"passenger_count": {"path": "count", "scale": 0.5, "offset": 0.0}},
        "skip_if": {"quality": ["bad", 0]},
        "schema": {"file": "../schemas/readings.avsc"},
        "join": {"tolerance": "5s", "deadline": "0"},
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            CONTRACT.replace('time = "timestamp"\n', ""),
            "data.time must be the column of times, or there must be a table",
        ),
        (MAPPED.replace("[data]", '[data]\ntime = "t"'), "data.time must be left out where there is a table [input]"),
        (MAPPED.replace("[data]", '[data]\nseries = "s"'), "data.series must be left out"),
        (MAPPED.replace('time = "at"', 'tme = "at"'), "[input] has the unknown field `tme`"),
        (CONTRACT.replace("[data]", 'input = "a.toml"\n[data]'), "Expected `object | null`, got `str`"),
    ],
)
def test_a_config_says_only_once_how_its_file_is_read(tmp_path, text, wrong):
    with pytest.raises(UsageError) as error:
        _read(tmp_path, text)
    assert wrong in str(error.value)


def test_another_table_takes_the_place_of_the_configs_own_columns_but_not_of_a_series_for_each_column(tmp_path):
    table = parse_input({"time": "mine"})
    (tmp_path / "c.toml").write_text(CONTRACT)
    config = read_config(tmp_path / "c.toml", instead=table)
    assert (config.input, config.data.time, config.data.series) == (table, None, None)
    (tmp_path / "c.toml").write_text(CONTRACT.replace('"station"', '"columns"'))
    with pytest.raises(UsageError, match="columns"):
        read_config(tmp_path / "c.toml", instead=table)


def test_a_preset_is_written_out_with_what_was_set_otherwise(tmp_path):
    plain = CONTRACT.replace('time = "timestamp"\n', "").replace('series = "station"\n', "")
    config = _read(tmp_path, plain + '[input]\npreset = "telegraf"\nkey = "@key"\n')
    write_config(config, tmp_path / "nyc_taxi.csv", tmp_path)
    read = read_config(tmp_path / "config.toml").input
    assert config.input is not None and config.input.time == "timestamp"
    assert read == msgspec.structs.replace(config.input, preset="")
