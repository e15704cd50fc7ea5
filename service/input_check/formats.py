"""Which format the values of records are in, as far as bytes tell."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tidecast.service.datafiles.cells import is_number
from tidecast.service.errors import TidecastError
from tidecast.service.input.config import known_by, parse_input, preset_names, proposed_with
from tidecast.service.input.documents import Json, format_of
from tidecast.service.input.paths import MISSING, parse_paths
from tidecast.service.input.rejected import RecordRejected

_MOST = 200  # values looked at
_NEARLY_ALL = 0.9
_MOST_ARE = 0.5
_JSON = Json()
_TO_FILL_IN = {"registry": "http://127.0.0.1:8081"}
_LINE = re.compile(
    r"""(?:[^,\s\\]|\\.)+                                       # the measurement
        (?:,(?:[^,=\s\\]|\\.)+=(?:[^,=\s\\]|\\.)+)*[ ]+           # its tags
        (?:[^,=\s\\"]|\\.)+=(?:"(?:[^"\\]|\\.)*"|[^,\s"]+)        # its fields
        (?:,(?:[^,=\s\\"]|\\.)+=(?:"(?:[^"\\]|\\.)*"|[^,\s"]+))*
        (?:[ ]+-?\d+)?\s*""",
    re.VERBOSE,
)
_NAME = re.compile(r"[^\W\d][\w .%°()/-]*")  # of a column
# What a format that is not read begins with.
_KNOWN_STARTS = {
    b"Obj\x01": "Avro files, one in each record (tidecast reads Avro with a registry, or bare with a schema file)",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "Parquet files",
    b"<": "XML",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\xef\xbb\xbf": "UTF-8 with a byte order mark, which is no JSON",
}


@dataclass(slots=True)
class Guess:
    """What the values seem to be.

    Attributes:
        table: what an [input] table must say of it.
        readable: a mapper can read it without anything that a person must fill in.
        say: sentences about it, each a comment of the proposal.
        schemas: ids of the registry's schemas that the values name.
    """

    name: str
    table: dict[str, Any] = field(default_factory=dict)
    readable: bool = True
    say: list[str] = field(default_factory=list)
    schemas: list[int] = field(default_factory=list)


def guess_format(values: Sequence[bytes | None]) -> Guess:
    """The format of most values."""
    there = [value for value in values if value][-_MOST:]
    if not there:
        return Guess("nothing", readable=False, say=["All records are without a value."])
    if _share(there, _is_json) > _MOST_ARE:
        return Guess("JSON")
    if _share(there, lambda value: value[0] == 0 and len(value) > 5) >= _NEARLY_ALL:
        return _of_a_registry(there)
    if known := next((what for start, what in _KNOWN_STARTS.items() if there[-1].startswith(start)), None):
        return Guess(known, readable=False, say=[f"The values are {known}. tidecast cannot read that."])
    texts = [text for value in there if (text := _text(value)) is not None]
    if len(texts) >= _NEARLY_ALL * len(there):
        lines = [line for text in texts for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if lines and _share(lines, lambda line: _LINE.fullmatch(line) is not None) >= _MOST_ARE:
            return Guess("InfluxDB line protocol", {"format": "influx"})
        if (found := _csv(texts)) is not None:
            return found
    if (preset := _with_own_schema(there)) is not None:
        return Guess("Protobuf", {"preset": preset})
    if _share(there, is_protobuf) >= _NEARLY_ALL:
        table = {"format": "protobuf", "schema": {"file": "messages.desc", "message": "package.Message"}}
        say = [
            "The values look like Protobuf. Write the descriptors with",
            "`protoc --include_imports --descriptor_set_out=messages.desc FILE.proto`, and the message's full name.",
        ]
        return Guess("binary, such as Protobuf", table, False, say)
    begins = there[-1][:8].hex(" ")
    if len(texts) >= _NEARLY_ALL * len(there):
        return Guess("texts", readable=False, say=["The values are texts of no format that tidecast knows."])
    table = {"format": "avro", "schema": {"file": "reading.avsc"}}
    say = [f"The values are binary (they begin with {begins}), perhaps Avro without a registry: give its schema."]
    return Guess("binary, such as Avro without a registry", table, False, say)


def _with_own_schema(values: Sequence[bytes]) -> str | None:
    """The preset that brings a schema of its own which reads nearly all of the values; None = there is none."""
    for name in preset_names():
        config = parse_input({"preset": name} | proposed_with(name))
        if not config.schema.file:
            continue
        try:
            read = format_of(config).read
        except TidecastError:  # its package is not installed
            continue
        signs = [path for sign in known_by(name) for path in parse_paths(sign)]

        def known(value: bytes, read: Any = read, signs: Any = signs) -> bool:
            try:
                return all(sign.follow(document) is not MISSING for document in read(value) for sign in signs)
            except RecordRejected:
                return False

        if _share(values, known) >= _NEARLY_ALL:
            return name
    return None


def _of_a_registry(values: Sequence[bytes]) -> Guess:
    """Values that begin with a zero and the number of a schema."""
    schemas = sorted({int.from_bytes(value[1:5]) for value in values})
    bodies = [value[5:] for value in values]
    if _share(bodies, _is_json) >= _NEARLY_ALL:
        return Guess("JSON Schema of a schema registry", {"format": "json-schema"})
    if _share(bodies, lambda body: body[0] == 0 and is_protobuf(body[1:])) >= _NEARLY_ALL:
        kind, name = "protobuf", "Protobuf"
    else:
        kind, name = "avro", "Avro"
    ids = ", ".join(map(str, schemas[:5])) + (", …" if len(schemas) > 5 else "")
    say = [
        f"The values seem to be {name} of a schema registry (schema {ids}). Write the URL of yours below.",
        "Then give this file to `tidecast input check --propose --input`: the schemas say what the fields are.",
    ]
    return Guess(f"{name} of a schema registry", {"format": kind, "schema": {**_TO_FILL_IN}}, False, say, schemas)


def _csv(texts: Sequence[str]) -> Guess | None:
    """Lines with the same number of columns, some of which are numbers."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    for delimiter in ";\t|,":
        try:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True)]
        except csv.Error:
            continue
        if not rows:
            return None
        width, often = Counter(map(len, rows)).most_common(1)[0]
        if width < 2 or often < _MOST_ARE * len(rows):
            continue
        header = next((row for row in rows if len(row) == width and all(map(_NAME.fullmatch, row))), None)
        data = [row for row in rows if len(row) == width and row != header]
        cells = [cell for row in data for cell in row]
        comma = delimiter != "," and not any("." in cell and is_number(cell) for cell in cells)
        comma = comma and any(re.fullmatch(r"-?\d+,\d+", cell) for cell in cells)
        if not any(is_number(cell.replace(",", ".") if comma else cell) for cell in cells):
            continue
        if header is None or len(set(header)) < width:
            header = [f"column{number}" for number in range(1, width + 1)]
            say = ["The lines name no columns: give each the name that it should have."]
        else:
            say = []
        table: dict[str, Any] = {"format": "csv", "columns": header}
        table |= {"delimiter": delimiter} if delimiter != "," else {}
        return Guess("CSV lines", table | ({"decimal": ","} if comma else {}), say=say)
    return None


def is_protobuf(value: bytes) -> bool:
    """True where the bytes are fields of Protobuf, to the last one."""
    at, fields = 0, 0
    while at < len(value):
        tag, at = _varint(value, at)
        if at < 0 or not 1 <= tag >> 3 <= 2_000:
            return False
        kind = tag & 7
        if kind == 0:
            _, at = _varint(value, at)
            if at < 0:
                return False
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(value, at)
            if at < 0:
                return False
            at += length
        else:
            return False
        fields += 1
    return at == len(value) and fields > 0


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """(number, where the next byte is; -1 where there is no number)."""
    number = shift = 0
    while at < len(value) and shift < 70:
        byte, at = value[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    return 0, -1


def _is_json(value: bytes) -> bool:
    """True for what format = "json" reads: an object, a list or a number, or several lines of objects."""
    try:
        return all(isinstance(each, dict | list | int | float) for each in _JSON.read(value))
    except RecordRejected:
        return False


def _text(value: bytes) -> str | None:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\r\n\t" for each in text) else None


def _share(values: Sequence[Any], holds: Any) -> float:
    return sum(bool(holds(value)) for value in values) / len(values)
