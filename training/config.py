"""The training config: one TOML file that says all that is needed to train a model again.

The names are a contract (see the README's table of settings); an unknown name is an error, never ignored.
"""

from __future__ import annotations

import os
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from tidecast.service.datafiles.table import Columns
from tidecast.service.errors import UsageError
from tidecast.service.input.config import InputConfig, input_table, parse_input
from tidecast.service.timestamps import parse_duration_ms, parse_time

DEFAULT_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[data]`: where the readings are and how its columns are to be read."""

    path: str | None = None  # CSV or Parquet, relative to the config file; `--data` overrides it
    time: str | None = None  # needed without a table [input]
    step: str
    targets: list[str]
    series: str | None = None
    covariates: list[str] = []
    train_until: str
    validate_until: str
    max_gap: int = 24  # steps: more than this missing and the series starts again, as in the worker
    missing: Literal["mask", "fill"] = "mask"  # fill: carry the last value forward, in training rows only
    outliers: Literal["keep", "clip", "mask"] = "keep"  # in training rows only
    outlier_threshold: float = 6.0  # deviations from the running median
    units: dict[str, str] = {}


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[model]`: the shape of the forecaster."""

    cell: Literal["gru", "lstm", "rnn"] = "gru"
    hidden: int = 64
    layers: int = 1
    horizon: int = 1
    quantiles: list[float] = msgspec.field(default_factory=lambda: list(DEFAULT_QUANTILES))
    lags: list[str] = []
    calendar: list[Literal["day", "week", "year"]] = []
    history: int | None = None  # steps of past values kept in the state; default: the longest lag, at least 24
    dropout: float = 0.1
    scale: Literal["auto", "global", "local"] = "auto"  # local: each series by its own recent past; see choose_scale
    transform: Literal["none", "sqrt", "log"] = "none"  # what is forecast of a target: sqrt suits counts, log sizes
    interval_adaptation: float = 0.02  # how fast intervals follow what they missed; 0 = not at all
    alarm_rate: float = 0.0  # false alarms a week of each series, of an anomaly score; 0 = none
    adapt: Literal["auto", "online", "none"] = "auto"  # learn each series on while it is served; auto: where it wins
    experts: int | None = None  # linear experts besides the ridge; default: chosen from the data; 0 = none
    score_horizons: list[int] | None = None  # steps ahead at which the graph scores itself; default: 1 and `horizon`


class FitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[fit]`: how the weights are found."""

    window: int = 96
    lanes: int = 32
    epochs: int = 40
    learning_rate: float = 0.003
    weight_decay: float = 0.3
    clip: float = 1.0
    patience: int = 8  # epochs without a better validation loss before it stops
    seed: int = 0
    members: int = 1
    threads: int = 1  # more gain little on a small model, and lose much where they share cores; 0 = one for each core
    max_minutes: float = 0.0  # 0 = no limit; the best so far is kept


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. Durations come as texts ("30min"), times as ISO 8601 (UTC unless it says otherwise)."""

    name: str
    data: DataConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()
    input: InputConfig | None = None  # how the rows of the file become readings, instead of data.time and data.series

    @property
    def each_column(self) -> bool:
        """Whether each target column is a series of one shared univariate model."""
        return self.data.series == "columns"

    @property
    def targets(self) -> list[str]:
        """The targets by the names that the model knows them by."""
        return ["value"] if self.each_column else self.data.targets

    @property
    def features(self) -> list[str]:
        """Targets first, then covariates."""
        return [*self.targets, *self.data.covariates]

    @property
    def columns(self) -> Columns:
        """How `tidecast.service.input.files.DataFile` is to read the file."""
        return Columns(
            time=self.data.time or "",
            features=(*self.data.targets, *self.data.covariates),
            series=None if self.each_column else self.data.series,
            each_column=self.each_column,
            name=self.name,
        )

    @property
    def step_ms(self) -> int:
        """Milliseconds between readings; 0 = irregular."""
        return parse_duration_ms(self.data.step)

    @property
    def lag_steps(self) -> list[int]:
        """The lags in steps, ascending."""
        return sorted(parse_duration_ms(lag) // self.step_ms for lag in self.model.lags)

    @property
    def history(self) -> int:
        """Past values of each target kept in the state, in steps, the newest included."""
        longest = max(self.lag_steps, default=0)
        return self.model.history or max(longest + 1, *self.score_horizons, 24)

    @property
    def train_until_ms(self) -> int:
        """Rows before it fit scalers and weights."""
        return _moment(self.data.train_until)

    @property
    def validate_until_ms(self) -> int:
        """Rows before it (and from `train_until` on) stop the training early and calibrate the intervals."""
        return _moment(self.data.validate_until)

    @property
    def score_horizons(self) -> list[int]:
        """Steps ahead at which the graph scores its own earlier forecasts."""
        return sorted(set(self.model.score_horizons or [1, self.model.horizon]))


def _moment(value: str) -> int:
    try:
        return parse_time(value)
    except ValueError as error:
        raise UsageError(
            "train_until and validate_until are times", got=value, do='Write them like "2014-12-20T00:00:00Z".'
        ) from error


def read_config(path: Path | str, *, instead: InputConfig | None = None) -> Config:
    """Read and check a training config. `instead` takes the place of its [input], data.time and data.series.

    Raises:
        UsageError: no such file, not TOML, an unknown name, a wrong type or a value out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("there is no such training config", got=str(path), do="Give the path of a TOML file.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        data = table.get("data")
        if isinstance(data, dict):  # TOML has a type for times; texts are accepted too
            table["data"] = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in data.items()}
        mapping = msgspec.convert(table.pop("input", None), dict[str, Any] | None)
        config = msgspec.convert(table, Config)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", do="Fix the line that it names.") from error
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path}: {error}", do="The names and types are in the README, under 'Training config'."
        ) from error
    if mapping is not None:
        mapped = parse_input(mapping, where=f"{path}: [input]", folder=path.parent)
        config = msgspec.structs.replace(config, input=mapped)
    if instead is not None:
        if config.each_column:
            raise UsageError(f'{path} has data.series = "columns", and cannot be used with another table [input]',
                             do="Make each column a series by the table: by its key, or by the long form.")  # fmt: skip
        data = msgspec.structs.replace(config.data, time=None, series=None)
        config = msgspec.structs.replace(config, input=instead, data=data)
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse values that cannot be trained with.

    Raises:
        UsageError: with the name of the setting, what was got, and what it must be.
    """
    model, fit, data = config.model, config.fit, config.data

    def need(holds: bool, name: str, got: object, must: str) -> None:
        if not holds:
            raise UsageError(f"{name} must be {must}", got=got, do="Change it in the training config.")

    need(bool(config.name) and len(config.name) <= 200, "name", config.name, "a name of 1 to 200 characters")
    need(bool(data.targets), "data.targets", data.targets, "a list of at least one column")
    columns = [*data.targets, *data.covariates]
    need(len(set(columns)) == len(columns), "data.targets and data.covariates", columns, "columns that differ")
    if config.input is None:
        need(data.time is not None, "data.time", None, "the column of times, or there must be a table [input]")
    for name in ("time", "series") if config.input is not None else ():
        need(getattr(data, name) is None, f"data.{name}", getattr(data, name),
             "left out where there is a table [input], which says it")  # fmt: skip
    need("ts" not in columns, "a feature's name", "ts", "anything but ts, which is the event time")
    need(
        not (config.each_column and data.covariates),
        "data.covariates",
        data.covariates,
        'empty with series = "columns"',
    )
    need(data.outlier_threshold > 0, "data.outlier_threshold", data.outlier_threshold, "above 0")
    need(data.max_gap >= 0, "data.max_gap", data.max_gap, "0 or more")
    for name in ("hidden", "layers", "horizon"):
        need(getattr(model, name) >= 1, f"model.{name}", getattr(model, name), "1 or more")
    quantiles = model.quantiles
    need(
        len(quantiles) > 0 and all(0 < q < 1 for q in quantiles) and quantiles == sorted(set(quantiles)),
        "model.quantiles", quantiles, "ascending numbers between 0 and 1",
    )  # fmt: skip
    need(0 <= model.interval_adaptation <= 0.5, "model.interval_adaptation", model.interval_adaptation, "0 to 0.5")
    need(0 <= model.dropout < 1, "model.dropout", model.dropout, "at least 0 and below 1")
    step = config.step_ms
    need(0 <= model.alarm_rate <= 1_000, "model.alarm_rate", model.alarm_rate, "0 to 1,000 alarms a week")
    need(step > 0 or not model.alarm_rate, "model.alarm_rate", model.alarm_rate, "0 where data.step is 0 (irregular)")
    need(step > 0 or not model.lags, "model.lags", model.lags, "empty where data.step is 0 (irregular)")
    for lag in model.lags:
        ms = parse_duration_ms(lag)
        need(ms > 0 and ms % step == 0, "model.lags", lag, f"whole multiples of data.step = {data.step}")
    need(config.history > max(config.lag_steps, default=0) and config.history >= max(config.score_horizons),
         "model.history", model.history, "longer than the longest lag and than every scored horizon")  # fmt: skip
    need(all(1 <= h <= model.horizon for h in config.score_horizons),
         "model.score_horizons", model.score_horizons, f"from 1 to model.horizon = {model.horizon}")  # fmt: skip
    for name in ("window", "lanes", "epochs", "patience", "members"):
        need(getattr(fit, name) >= 1, f"fit.{name}", getattr(fit, name), "1 or more")
    for name in ("learning_rate", "clip"):
        need(getattr(fit, name) > 0, f"fit.{name}", getattr(fit, name), "above 0")
    need(config.train_until_ms < config.validate_until_ms, "data.validate_until", str(data.validate_until),
         "later than data.train_until")  # fmt: skip


def write_config(config: Config, data: Path, directory: Path) -> None:
    """`config.toml` in a model directory: what was in force, with the data's path relative to it."""
    path = os.path.relpath(data.resolve(), directory.resolve())
    kept = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, path=path))
    table: dict[str, Any] = msgspec.to_builtins(kept)
    del table["input"]
    if config.input is not None:
        table["input"] = input_table(config.input, directory)
    for section in ("data", "model"):  # TOML has no null
        table[section] = {k: v for k, v in table[section].items() if v is not None}
    (directory / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
