"""Paths into a record: `fields.temperature`, `readings[0].value`, `attributes[key=host.name].value`.

A path begins at the record's document (or at its `root`), or, where lists are exploded, at the item of the innermost
list. `../` is one level out, `/` the document. Names that hold a dot, a slash or a bracket are quoted: `"x.y"`.
Alternatives are divided by ` | `: the first that is there, and not null, counts. `@key`, `@record`, `@topic` and
`@header:NAME` are parts of the record itself, `@name` and `@item` the name (or number) and the whole of the innermost
item (`../@name`: of the one around it). `@key.id` reads a key that is JSON; a text that is JSON is read as such
wherever a path leads into it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from tidecast.service.errors import UsageError

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()  # what a path that leads nowhere gives
SPECIAL = ("@key", "@record", "@topic", "@name", "@item")
HEADER = "@header:"
OF_ITEM = ("@name", "@item")  # the special names that are not of the record as a whole

_STEP = re.compile(
    r'\.?"(?P<quoted>[^"]*)"|\[(?P<index>-?\d+)\]|\[(?P<field>[^=\]]+)=(?P<value>[^\]]*)\]|\.?(?P<name>[^.\[\]"|/{}]+)'
)


@dataclass(frozen=True, slots=True)
class Find:
    """`[field=value]`: the first item of a list whose field has this value."""

    field: str
    value: str


Step = str | int | Find


@dataclass(frozen=True, slots=True)
class Path:
    """One way into a record.

    Attributes:
        text: as it was written.
        special: one of `SPECIAL`, `@header:NAME`, or "" for the document or item.
        out: how many levels out of the innermost item; None = the document.
        steps: from there.
    """

    text: str
    special: str
    out: int | None
    steps: tuple[Step, ...]

    def follow(self, value: Any) -> Any:
        """What the steps lead to from `value`; MISSING where one leads nowhere."""
        for step in self.steps:
            value = opened(value)
            if isinstance(step, str):
                value = value.get(step, MISSING) if isinstance(value, dict) else MISSING
            elif not isinstance(value, list | tuple):
                return MISSING
            elif isinstance(step, int):
                value = value[step] if -len(value) <= step < len(value) else MISSING
            else:
                value = next(
                    (each for each in value if isinstance(each, dict) and step.field in each
                     and str(each[step.field]) == step.value), MISSING)  # fmt: skip
            if value is MISSING:
                return MISSING
        return value


def opened(value: Any) -> Any:
    """What is in a text that is a JSON object or list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return msgspec.json.decode(value)
        except (ValueError, RecursionError):
            return value
    return value


def parse_paths(text: str) -> tuple[Path, ...]:
    """The alternatives of a path.

    Raises:
        UsageError: it is not a path.
    """
    return tuple(_parse(part.strip(), text) for part in text.split(" | "))


def _parse(text: str, whole: str) -> Path:
    if text.startswith(HEADER):
        if text == HEADER:
            raise UsageError("the name of the header is missing", got=whole, do="Write it like @header:device.")
        return Path(text, text, 0, ())
    rest, special = text, ""
    out: int | None = 0
    if text.startswith("/"):
        out, rest = None, text[1:]
    while out is not None and rest.startswith("../"):
        out, rest = out + 1, rest[3:]
    if rest.startswith("@"):
        special = next((each for each in SPECIAL if re.match(rf"{each}(?![\w])", rest)), "")
        whole_only = len(rest) > len(special) and special in ("@record", "@topic", "@name")
        if not special or whole_only or (out != 0 and special not in OF_ITEM):
            raise UsageError(
                f"@ begins a path only in {', '.join(SPECIAL)} and {HEADER}NAME",
                got=whole,
                do='Correct the path; a field whose name begins with @ is quoted: "@timestamp".',
            )
        rest = rest[len(special) :]
    steps: list[Step] = []
    while rest:
        match = _STEP.match(rest)
        if match is None:
            raise UsageError(
                f"a path cannot be read at {rest!r}",
                got=whole,
                do='Write it like fields.temperature, readings[0].value or tags."a.b", alternatives as "a | b".',
            )
        found = match.groupdict()
        if found["index"] is not None:
            steps.append(int(found["index"]))
        elif found["field"] is not None:
            steps.append(Find(found["field"], found["value"]))
        else:
            steps.append(found["name"] if found["quoted"] is None else found["quoted"])
        rest = rest[match.end() :]
    if not steps and not special and out == 0:
        raise UsageError("a path is empty", got=whole, do="Write it like fields.temperature; @item is the whole item.")
    return Path(text, special, out, tuple(steps))
