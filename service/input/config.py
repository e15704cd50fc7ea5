"""The `[input]` table: how the bytes of a topic become readings."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import warnings
from collections import Counter
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path as File
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

from tidecast.service.errors import UsageError
from tidecast.service.input.paths import MISSING, parse_paths
from tidecast.service.timestamps import parse_duration_ms

Format = Literal["json", "avro", "json-schema", "protobuf", "csv", "influx"]
Unit = Literal["s", "ms", "us", "ns"]

_LONGEST_JOIN_MS = 7 * 86_400_000
_IN_BRACES = re.compile(r"\{([^{}]+)\}")
# Texts that stand for a missing value.
MISSING_TEXTS = ("", "nan", "null", "none", "unavailable", "unknown")


class FieldConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One feature: value * scale + offset of what is at its path (with `name`: under its name)."""

    path: str
    scale: float = 1.0
    offset: float = 0.0


class JoinConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[input.join]`: parts of readings of one series and time that come in several records become one reading."""

    tolerance: str = "0"  # times that differ by at most this are one
    deadline: str = "0"  # a reading that is not complete is answered once its series has a part that is so much later

    @property
    def tolerance_ms(self) -> int:
        """In ms; raises UsageError where it is no duration, as `deadline_ms` does."""
        return parse_duration_ms(self.tolerance)

    @property
    def deadline_ms(self) -> int:
        """In ms."""
        return parse_duration_ms(self.deadline)


class SchemaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[input.schema]`: where the schemas of Avro, JSON Schema and Protobuf are."""

    registry: str = ""  # URL of a registry with Confluent's API
    file: str = ""  # .avsc; a descriptor set (protoc --descriptor_set_out). Files: relative to that of the table
    message: str = ""  # Protobuf: the message's full name
    username: str = ""
    password_file: str = ""
    ca_file: str = ""


class InputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table. The names and their meaning are in docs/input.md."""

    preset: str = ""
    format: Format = "json"
    schema: SchemaConfig = SchemaConfig()
    columns: list[str] = []  # CSV: the names of the columns of a line
    delimiter: str = ","
    root: str = ""  # the part of the document in which the other paths begin
    explode: str | list[str] = []  # lists or maps, from the outside in, each of whose items is a reading
    key: str = "@key"  # a path, or a text with paths in braces: "{site}/{machine}"
    key_regex: str = ""  # of the key, the groups, joined by / (without a group all that matches)
    time: str = "ts"
    time_unit: Unit | None = None  # of numbers; without it they are milliseconds
    time_format: str = ""  # as for strptime; without it ISO 8601
    time_zone: str = "UTC"  # of texts that name none
    fields: str | dict[str, str | FieldConfig] = ""  # feature -> path; or the path of a map that has all features
    name: str = ""  # long form: the path of the feature's name
    value: str = ""  # long form: the path of its value
    join: JoinConfig | bool | None = None  # None: see `join_of`
    skip_if: dict[str, Any] = {}  # path -> value or values; a record with one of them is left out
    only_if: dict[str, Any] = {}  # path -> value or values; other records are left out
    missing: tuple[str, ...] = MISSING_TEXTS  # texts, in upper or lower case, that stand for a missing value
    texts: dict[str, float] = {}  # texts, in upper or lower case, that stand for a number: { on = 1, off = 0 }
    decimal: Literal[".", ","] = "."  # of numbers that come as texts
    tombstones: Literal["forget", "ignore"] = "forget"  # what a record without a value does with its series

    @property
    def explodes(self) -> list[str]:
        """The paths to explode, from the outside in."""
        return [each for each in ([self.explode] if isinstance(self.explode, str) else self.explode) if each]

    @property
    def feature_fields(self) -> dict[str, FieldConfig] | None:
        """The features' fields; None where the features' own names are used."""
        if isinstance(self.fields, str):
            return None
        return {name: FieldConfig(path=each) if isinstance(each, str) else each for name, each in self.fields.items()}

    @property
    def long(self) -> bool:
        """True where each item has a feature's name and its value."""
        return bool(self.value)

    def join_of(self, features: int) -> JoinConfig | None:
        """How parts are joined for a model of so many features; None = each part is a reading.

        Without a setting, the long form with one value in a record is joined where the model has several features:
        otherwise the second value of a time would be a duplicate.
        """
        if self.join is None:
            return JoinConfig() if self.long and self.name and not self.explodes and features > 1 else None
        if isinstance(self.join, bool):
            return JoinConfig() if self.join else None
        return self.join

    @property
    def rekeys(self) -> bool:
        """True where a series' name is not the record's key, so that its readings may lie in several partitions."""
        return self.key != "@key" or bool(self.key_regex)


def preset_names() -> list[str]:
    """The presets, sorted."""
    return sorted(each.name.removesuffix(".toml") for each in _presets().iterdir() if each.name.endswith(".toml"))


def known_by(preset: str) -> list[str]:
    """Paths that lead somewhere in the documents that the preset is for: by these a proposal recognises it."""
    found: list[str] = _read_preset(preset).get("known_by", [])
    return found


def proposed_with(preset: str) -> dict[str, Any]:
    """What a proposal writes below the preset: names and values of a table that people are likely to change."""
    found: dict[str, Any] = _read_preset(preset).get("proposed", {})
    return found


def _read_preset(name: str) -> dict[str, Any]:
    return tomllib.loads((_presets() / f"{name}.toml").read_text(encoding="utf-8"))


def _presets() -> Any:
    return resources.files("tidecast.service.input") / "presets"


def read_input(file: str | File) -> InputConfig:
    """The `[input]` table of a TOML file, which may hold other tables too.

    Raises:
        UsageError: no such file, no such table, an unknown name, or a value that cannot be used.
    """
    path = File(file)
    if not path.is_file():
        raise UsageError("there is no such file", got=str(path), do="Give a TOML file with a table [input].")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", do="Correct the line that it names.") from error
    if not isinstance(table.get("input"), dict):
        raise UsageError(f"{path} has no table [input]", do="docs/input.md says what stands in it.")
    return parse_input(table["input"], where=str(path), folder=path.parent)


def parse_input(table: dict[str, Any], *, where: str = "[input]", folder: File | None = None) -> InputConfig:
    """Check a table, with what its preset fills in. Paths of files are taken from `folder`.

    Raises:
        UsageError: an unknown name, or a value that cannot be used.
    """
    if isinstance(preset := table.get("preset"), str) and preset:
        if preset not in (known := preset_names()):
            close = difflib.get_close_matches(preset, known, 1)
            raise UsageError(
                f"{where}: there is no preset of this name",
                got=preset,
                do=f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}.",
            )
        defaults = _read_preset(preset)
        for name, example in defaults.get("needs", {}).items():
            if name not in table:
                raise UsageError(f"{where}: the preset {preset} needs {name}", do=f"Write for example: {example}.")
        if "schema" in defaults["input"] and "schema" not in table:
            folder = File(str(_presets()))
        table = defaults["input"] | table
    for name in table:
        if name not in InputConfig.__struct_fields__:
            close = difflib.get_close_matches(name, InputConfig.__struct_fields__, 1)
            raise UsageError(
                f"{where} has the unknown field `{name}`",
                do=f"Did you mean {close[0]}?" if close else "The names are in docs/input.md.",
            )
    try:
        config = msgspec.convert(table, InputConfig)
    except msgspec.ValidationError as error:
        what, _, name = str(error).partition(" - at `$.")
        named = f"{name.rstrip('`')}: " if name else ""
        raise UsageError(f"{where}: {named}{what}", do="The names and types are in docs/input.md.") from error
    if folder is not None:
        files = {name: getattr(config.schema, name) for name in ("file", "password_file", "ca_file")}
        there = {name: str(folder / file) for name, file in files.items() if file}
        config = msgspec.structs.replace(config, schema=msgspec.structs.replace(config.schema, **there))
    try:
        _check(config)
    except UsageError as error:
        raise UsageError(f"{where}: {error.what}", got=error.got, do=error.do) from error
    return config


def input_table(config: InputConfig, folder: File) -> dict[str, Any]:
    """The table as TOML has it, for a file in `folder`: without what is as it is by default, a preset written out."""
    usual, built = (msgspec.to_builtins(each) for each in (InputConfig(), config))
    table: dict[str, Any] = {name: built[name] for name in built if built[name] != usual[name] and name != "preset"}
    if "schema" in table:
        table["schema"] = {name: value for name, value in table["schema"].items() if value}
    if file := config.schema.file:
        table["schema"]["file"] = os.path.relpath(File(file).resolve(), folder.resolve())
    return table


def _check(config: InputConfig) -> None:
    def need(holds: bool, what: str, got: object, do: str) -> None:
        if not holds:
            raise UsageError(what, got=got, do=do)

    fields = config.feature_fields
    need(bool(config.time), "time is empty", "", 'Say where it is: time = "timestamp", or "@record".')
    paths = [("explode", text) for text in config.explodes] + [("key", text) for text in key_paths(config.key)]
    paths += [(name, getattr(config, name)) for name in ("root", "time", "name", "value")]
    paths += [(name, text) for name in ("skip_if", "only_if") for text in getattr(config, name)]
    if fields is None:
        need(not (config.long and config.fields), "fields must be a table where value is set", config.fields,
             "Name the features: fields = { temperature = \"TEMP_01\" }.")  # fmt: skip
        paths.append(("fields", str(config.fields)))
    elif config.long:
        twice = [name for name, count in Counter(field.path for field in fields.values()).items() if count > 1]
        need(not twice, "fields has a name for two features", ", ".join(twice), "Give each feature its own.")
    else:
        paths += [(f"fields.{name}", field.path) for name, field in fields.items()]
    for name, text in paths:
        try:
            alternatives = parse_paths(text) if text or name not in ("root", "name", "value", "fields") else ()
        except UsageError as error:
            raise UsageError(f"{name}: {error.what}", got=error.got, do=error.do) from error
        need(not any(path.special == "@record" for path in alternatives[:-1]), f"{name}: @record is not the last",
             text, "Write what is tried before it first: \"ts | @record\".")  # fmt: skip
    need(fields is None or bool(fields), "fields is an empty table", None, "Name the features, or leave it out.")
    rest = _IN_BRACES.sub("", config.key)
    need("{" not in rest and "}" not in rest, "a brace in key has no partner, or nothing in it", config.key,
         "Write it like \"{site}/{machine}\".")  # fmt: skip
    need("ts" not in (fields or {}), "a feature cannot have the name ts", "ts", "It is the time; choose another name.")
    need(bool(config.value) or not config.name, "name is set without value", config.name,
         "Say where the value is: value = \"value\".")  # fmt: skip
    need(not config.join or not config.long or bool(config.name), "join is set, but no name", config.value,
         "Say where the feature's name is: name = \"metric\".")  # fmt: skip
    if isinstance(config.join, JoinConfig):
        for name, text in (("tolerance", config.join.tolerance), ("deadline", config.join.deadline)):
            try:
                ms = parse_duration_ms(text)
            except UsageError as error:
                raise UsageError(f"join.{name}: {error.what}", got=error.got, do=error.do) from error
            need(ms <= _LONGEST_JOIN_MS, f"join.{name} is too long", text, "Give at most 7d.")
    if config.key_regex:
        try:
            re.compile(config.key_regex)
        except re.error as error:
            raise UsageError(
                f"key_regex is no regular expression: {error}",
                got=config.key_regex,
                do=r"Correct it; brackets that are meant as they are are written \( and \[.",
            ) from error
    try:
        ZoneInfo(config.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = "" if available_timezones() else " This machine has no time zones: pip install tzdata."
        raise UsageError(
            "time_zone is no time zone", got=config.time_zone, do=f"Write it like Europe/Berlin, or UTC.{known}"
        ) from error
    need(not config.time_format or _names_a_day(config.time_format), "time_format is no form of a time with its day",
         config.time_format, "Write it as for strptime, with %z for a zone: %d.%m.%Y %H:%M:%S.")  # fmt: skip
    if config.format == "csv":
        need(bool(config.columns), "format csv needs columns", None, 'Name them: columns = ["time", "temp"].')
        twice = [name for name, count in Counter(config.columns).items() if count > 1 and name]
        need(not twice, "columns has a name twice", ", ".join(twice), 'Name columns that you do not need "".')
        need(len(config.delimiter) == 1 and config.delimiter not in '"\r\n', "delimiter must be one character",
             config.delimiter, "Write for example \";\"; a tab is \"\\t\".")  # fmt: skip
    if config.format in ("avro", "protobuf"):
        given = bool(config.schema.registry) + bool(config.schema.file)
        need(given == 1, f"format {config.format} needs one of schema.registry and schema.file", given or None,
             'Write for example: schema.registry = "http://127.0.0.1:8081".')  # fmt: skip


def _names_a_day(form: str) -> bool:
    """True where a moment can be read back from its text in this form: its day, and the time of the day or none."""
    moment = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    try:
        with warnings.catch_warnings():  # Python 3.13 warns of a form without a year, which is refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            read = datetime.strptime(moment.strftime(form), form)
    except (ValueError, re.error):
        return False
    at = (read.hour, read.minute)
    return "%Z" not in form and read.date() == moment.date() and at in ((22, 13), (22, 0), (0, 0))


def key_paths(key: str) -> list[str]:
    """The paths in a key: those in braces, or the key itself."""
    return _IN_BRACES.findall(key) if "{" in key else [key]


def key_texts(key: str) -> list[str]:
    """The texts before, between and behind the paths of a key."""
    return _IN_BRACES.split(key)[::2] if "{" in key else ["", ""]


def matched_name(expression: re.Pattern[str], key: str) -> str:
    """What a `key_regex` makes of a key: its groups, joined by /, or all that matches; "" where it does not match."""
    match = expression.search(key)
    groups = [] if match is None else [group for group in match.groups() if group is not None] or [match[0]]
    return "/".join(groups)


def values_of(condition: Any) -> list[Any]:
    """The value or values of a condition; "absent" = the path leads nowhere, or to null."""
    values = condition if isinstance(condition, list) else [condition]
    return [v for each in values for v in ((MISSING, None) if each == "absent" else (each,))]
