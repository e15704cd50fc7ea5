"""A proposed table as TOML that can be saved as it is."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tidecast.service.wording import printable

_ORDER = ("preset", "format", "columns", "delimiter", "explode", "key", "key_regex", "time", "time_unit", "time_format")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 118


def toml_text(table: Mapping[str, Any], comments: Sequence[str]) -> str:
    """The table as `[input]`, below its comments; tables in it come last."""
    said = [printable(" ".join(text.split())) for text in comments]
    lines = [line for text in said for line in textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
    lines.append("[input]")
    names = sorted(table, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    lines += [f"{_key(name)} = {_value(table[name])}" for name in names if not isinstance(table[name], Mapping)]
    for name in names:
        if isinstance(table[name], Mapping):
            lines += ["", f"[input.{_key(name)}]"]
            lines += [f"{_key(each)} = {_value(value)}" for each, value in table[name].items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's too
    return json.dumps(value)
