"""What replay and produce share: the columns named in a model's config, and rows of a table as reading records."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidecast.service.datafiles.table import UNIVARIATE, Columns, Table
from tidecast.service.errors import UsageError

_encoder = msgspec.json.Encoder()


class Reading(NamedTuple):
    """One input record, ready for Kafka."""

    ts: int  # ms UTC
    key: bytes
    value: bytes


class DataSection(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `[data]` that replay and produce need; the rest is for the trainer."""

    time: str | None = None  # None where the config has a table [input]
    targets: list[str]
    covariates: list[str] = []
    series: str | None = None
    path: str | None = None
    units: dict[str, str] = {}
    validate_until: Any = None  # a TOML datetime or a text


class ModelDataConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a model directory's config.toml that the service reads."""

    name: str
    data: DataSection
    input: dict[str, Any] | None = None  # as it stands there: `tidecast.service.input.config.parse_input` reads it

    @property
    def columns(self) -> Columns:
        """How a file for this model is read."""
        each_column = self.data.series == "columns"
        return Columns(
            time=self.data.time or "",
            features=(*self.data.targets, *self.data.covariates),
            series=None if each_column else self.data.series,
            each_column=each_column,
            name=self.name,
        )

    @property
    def test_from(self) -> str | None:
        """ISO 8601 time where the rows start that the model was not trained on; None where the config has none."""
        moment = self.data.validate_until
        if isinstance(moment, datetime):
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        return None if moment is None else str(moment)


def read_model_config(model: Path | str) -> ModelDataConfig:
    """The config.toml next to the model file. `model` is the directory or the .onnx file in it.

    Raises:
        UsageError: the file is missing, cannot be read, or lacks a needed value.
    """
    path = Path(model)
    path = (path if path.is_dir() else path.parent) / "config.toml"
    if not path.exists():
        raise UsageError(
            f"there is no model directory at {model}" if not Path(model).exists() else f"there is no {path}",
            do="Give --model the directory that `tidecast train --out DIR` made; its config.toml names the columns.",
        )
    return read_data_config(path)


def read_data_config(path: Path) -> ModelDataConfig:
    """The same of a training config.

    Raises:
        UsageError: as `read_model_config`.
    """
    try:
        config = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ModelDataConfig)
        if config.data.time is None and config.input is None:
            raise msgspec.ValidationError("it has neither data.time nor a table [input]")
        return config
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}", do="It must be the config that the model was trained with.") from None


def check_features(columns: Columns, features: Sequence[str], model: Path | str) -> None:
    """Check that the columns are the model's features; one with another name would count as missing.

    Raises:
        UsageError: config.toml and model.onnx do not belong together.
    """
    names = [UNIVARIATE] if columns.each_column else list(columns.features)
    if sorted(names) != sorted(features):
        raise UsageError(
            f"config.toml in {model} names the features {', '.join(names)}, model.onnx has {', '.join(features)}",
            do="They must come from the same training run.",
        )


def keys(table: Table) -> list[bytes]:
    """Record keys [readings]; equal series share one bytes object."""
    known = {name: name.encode() for name in set(table.series)}
    return [known[name] for name in table.series]


def values(table: Table) -> Iterator[bytes]:
    """Record values, in order: flat JSON with `ts` in epoch ms and null for a missing value.

    Raises:
        UsageError: a feature is called `ts`.
    """
    names = table.features
    if "ts" in names:
        raise UsageError(
            "a feature cannot be called 'ts'", do="In a reading, ts is the event time. Rename the file's column."
        )
    encode = _encoder.encode
    for ts, row in zip(table.ts.tolist(), table.x.tolist(), strict=True):
        yield encode({"ts": ts, **dict(zip(names, row, strict=True))})  # msgspec writes NaN as null


def readings(table: Table) -> Iterator[Reading]:
    """All rows in order, each encoded when it is needed."""
    return map(Reading, table.ts.tolist(), keys(table), values(table))
