"""Checks an ONNX file before a runtime opens it, using only the standard library.

ONNX files are protobuf messages. The wire format is simple enough to parse by hand, and this way the code sees the
bytes themselves: every node of every subgraph and function, every tensor, and the raw bytes of the content hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tidecast.service.errors import ModelError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # protobuf's own limit
_MAX_METADATA = 2 * 1024 * 1024  # bytes; a model of 1,000 features has 0.7 MB, most of it in its self-test

# Field numbers of onnx.proto: message -> field -> the message inside it. Only messages that can contain an operator or
# a tensor are parsed; others (names, shapes, documentation) are skipped.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "metadata", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "metadata": {},
}
_DOMAIN_FIELD = {"node": 7, "function": 10}
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_IR_VERSION, _GRAPH, _METADATA = 1, 7, 14
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14

_EXPORT_AGAIN = "Export the model again with `tidecast train`"


class _DamagedError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(slots=True)
class _Field:
    number: int
    value: int | memoryview  # an int for a varint, bytes for all else
    raw: memoryview  # tag, length and value as in the file


def content_hash(model: bytes) -> str:
    """The sha256 (hex) of a serialised ModelProto without its `metadata_props`.

    Precisely: over the raw bytes (tag, length, value) of every top-level field whose number is not 14, in the
    order of the file. A writer serialises the model, computes the hash, puts it into the metadata and serialises
    again; a reader needs no ONNX library to compute the same hash.

    Raises:
        ModelError: `model` is not a protobuf message.
    """
    digest = hashlib.sha256()
    try:
        for field in _fields(memoryview(model)):
            if field.number != _METADATA:
                digest.update(field.raw)
    except _DamagedError as damage:
        raise _not_onnx(str(damage)) from None
    return digest.hexdigest()


def read_metadata(model: bytes) -> dict[str, str]:
    """The `metadata_props` of a serialised ModelProto after checking that a runtime may open it.

    Raises:
        ModelError: not an ONNX model; too much metadata; an operator or function outside of the standard domain,
            anywhere; tensor data kept outside of the file, anywhere.
    """
    top: dict[int, int] = {}
    metadata: dict[str, str] = {}
    size = 0
    try:
        for field in _fields(memoryview(model)):
            top[field.number] = top.get(field.number, 0) + 1
            inside = _INSIDE["model"].get(field.number)
            if inside == "metadata":
                size += len(field.raw)
                if size > _MAX_METADATA:
                    raise ModelError(
                        f"the model has more than {_MAX_METADATA} bytes of metadata",
                        do=f"{_EXPORT_AGAIN}, with fewer features",
                    )
                key, value = _entry(field)
                if key in metadata:
                    raise _DamagedError(f"the metadata has {key!r} twice")
                metadata[key] = value
            elif inside is not None:
                _check(inside, field, 1)
    except _DamagedError as damage:
        raise _not_onnx(str(damage)) from None
    if top.get(_IR_VERSION, 0) < 1 or top.get(_GRAPH, 0) != 1:
        raise _not_onnx("it has no graph" if not top.get(_GRAPH) else "it has no version, or several graphs")
    return metadata


def _check(kind: str, message: _Field, depth: int) -> None:
    """Check one message; raises ModelError at the first operator or tensor that is not allowed."""
    if depth > _MAX_DEPTH:
        raise _DamagedError("its graphs are nested too deeply")
    inside, domain_field = _INSIDE[kind], _DOMAIN_FIELD.get(kind)
    for field in _fields(_bytes(message)):
        if field.number in inside:
            _check(inside[field.number], field, depth + 1)
        elif field.number == domain_field and bytes(_bytes(field)) not in _STANDARD_DOMAINS:
            domain = bytes(_bytes(field)).decode("utf-8", "replace")
            what = "an operator" if kind == "node" else "a function"
            raise ModelError(
                f"the model has {what} outside of the standard ONNX domain",
                got=domain,
                do=f"{_EXPORT_AGAIN}, or rewrite the graph with standard operators only",
            )
        elif kind == "tensor" and (
            field.number == _TENSOR_EXTERNAL_DATA or (field.number == _TENSOR_DATA_LOCATION and field.value != 0)
        ):
            raise ModelError(
                "the model keeps tensors in other files",
                got="external data",
                do="Save it as one file, with its weights inside (onnx.save(..., save_as_external_data=False))",
            )


def _fields(message: memoryview) -> Iterator[_Field]:
    """The fields of one message, in the order of the file."""
    position, end = 0, len(message)
    while position < end:
        start = position
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise _DamagedError(f"byte {start} of a message is not a field")
        value: int | memoryview
        if wire == _VARINT:
            value, position = _varint(message, position)
        else:
            if wire == _LENGTH:
                length, position = _varint(message, position)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise _DamagedError(f"byte {start} of a message has the unknown wire type {wire}")
            if length > end - position:
                raise _DamagedError("it is cut short")
            value = message[position : position + length]
            position += length
        yield _Field(number, value, message[start:position])


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number that starts at `position`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _DamagedError("it is cut short")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamagedError("a number in it has no end")


def _bytes(field: _Field) -> memoryview:
    if isinstance(field.value, int):
        raise _DamagedError(f"field {field.number} holds a number instead of a message")
    return field.value


def _entry(field: _Field) -> tuple[str, str]:
    """Key and value of one StringStringEntryProto."""
    parts = {1: "", 2: ""}
    for part in _fields(_bytes(field)):
        if part.number in parts:
            try:
                parts[part.number] = bytes(_bytes(part)).decode("utf-8")
            except UnicodeDecodeError:
                raise _DamagedError("its metadata is not UTF-8") from None
    return parts[1], parts[2]


def _not_onnx(why: str) -> ModelError:
    return ModelError("the model file is not ONNX", got=why, do=f"{_EXPORT_AGAIN}, or copy the whole file again")
