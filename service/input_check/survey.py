"""What documents have: the paths to single values, and the lists and maps that may hold readings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidecast.service.broker.port import Batch
from tidecast.service.input.columns import Columns, Level
from tidecast.service.input.config import MISSING_TEXTS
from tidecast.service.input.paths import HEADER, MISSING, Path, opened, parse_paths

_MOST_LEAVES = 400  # of one level; more are not looked at
_MOST_NUMBERS = 16  # a longer list of numbers is no list of features
_DEEPEST = 8
_MOST_ARE = 0.6
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?(?<=[\d.])(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_PLAIN = re.compile(r'[^.\[\]"|/{}@\s]([^.\[\]"|/{}]*[^.\[\]"|/{}\s])?')

Place = tuple[str | int, ...]  # names, and numbers of items, from the item on


@dataclass(slots=True)
class Leaf:
    """A path that leads to single values, or that is a part of the record itself.

    Attributes:
        path: as a table writes it, from the innermost items.
        place: its steps; of a part of the record, at most a name.
        values: [rows of the level], MISSING where it leads nowhere.
        out: how many levels out of the innermost item it begins.
        decimal: what numbers that are texts have before their fraction.
    """

    path: str
    place: Place
    values: list[Any]
    out: int = 0
    decimal: str = "."

    @property
    def word(self) -> str:
        """Its last name as people compare names: `devEui` -> "dev_eui"."""
        name = next((step for step in reversed(self.place) if isinstance(step, str)), "")
        return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()

    @property
    def in_document(self) -> bool:
        """Whether it is in the record's value, not in its headers, or the name of an item."""
        return not self.path.lstrip("./").startswith("@") or self.path == "@item"

    @property
    def known(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value is not MISSING and value is not None]

    @property
    def numeric(self) -> bool:
        """True where most of what is there are numbers, perhaps written as texts."""
        known = [v for v in self.known if not (isinstance(v, str) and v.strip().lower() in MISSING_TEXTS)]
        return bool(known) and sum(_is_number(value, self.decimal) for value in known) >= _MOST_ARE * len(known)

    @property
    def textual(self) -> bool:
        """True where all that is there are texts, and most of them no numbers."""
        known = self.known
        return bool(known) and all(isinstance(value, str) for value in known) and not self.numeric


@dataclass(slots=True)
class Survey:
    """One level's leaves, and its branches: paths to lists and maps of items, with how many items each has in all."""

    level: Level
    leaves: list[Leaf] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)


def path_text(place: Place, out: int = 0) -> str | None:
    """The path as a table writes it; None where it cannot be written. No steps: the whole item."""
    text = "../" * out
    if not place:
        return text or "@item"
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        if '"' in step or not step:
            return None
        plain = _PLAIN.fullmatch(step)
        text += ("." if text and not text.endswith("/") else "") + (step if plain else f'"{step}"')
    return text


def survey(level: Level, out: int = 0, decimal: str = ".") -> Survey:
    """Look at all items of a level; `out`: how many levels it is out of the innermost."""
    found = Survey(level)
    columns: dict[Place, list[Any]] = {}
    branches: dict[Place, list[Any]] = {}
    for row, item in enumerate(level.items):
        for place, value in _walk(item, (), branches):
            if place not in columns:
                if len(columns) >= _MOST_LEAVES:
                    continue
                columns[place] = [MISSING] * len(level.items)
            columns[place][row] = value
    for place, values in columns.items():
        if (text := path_text(place, out)) is not None and (place or out == 0):
            found.leaves.append(Leaf(text, place, values, out, decimal))
    for place, held in branches.items():
        if (text := path_text(place)) is not None and _holds_items(held):
            found.branches[text] = sum(len(each) for each in held)
    return found


def all_leaves(level: Level, batch: Batch, root: Sequence[Path] = (), decimal: str = ".") -> list[Leaf]:
    """Those of the innermost items, of what is around them, and of headers, with a value for each innermost row.

    `root`: of the table; what it holds is not listed a second time as a part of the document around it.
    """
    found: list[Leaf] = []
    rows, each, out = list(range(len(level.items))), level, 0
    roots = [path.steps for path in root]
    while True:
        for leaf in survey(each, out, decimal).leaves:
            if each.outer is not None or not any(leaf.place[: len(steps)] == steps for steps in roots):
                found.append(Leaf(leaf.path, leaf.place, [leaf.values[row] for row in rows], out, decimal))
        if each.outer is None:
            break
        names = [each.names[row] for row in rows]
        if all(isinstance(name, str) for name in names) and names:
            found.append(Leaf("../" * out + "@name", ("@name",), names, out))
        rows, each, out = [each.parents[row] for row in rows], each.outer, out + 1
    for header in {name: None for record in level.records for name, _ in batch.headers[record]}:
        texts = Columns(level, batch).read(parse_paths(f"{HEADER}{header}")) if header.isprintable() else []
        if any(isinstance(text, str) for text in texts):
            found.append(Leaf(f"{HEADER}{header}", (header,), texts, out + 1))
    return found


def _walk(value: Any, place: Place, branches: dict[Place, list[Any]]) -> Iterator[tuple[Place, Any]]:
    """The single values in an item; lists and maps on the way are added to `branches`."""
    if len(place) > _DEEPEST:
        return
    value = opened(value)
    if isinstance(value, dict):
        if _is_map(value):
            branches.setdefault(place, []).append(value)
        for name, each in value.items():
            yield from _walk(each, (*place, str(name)), branches)
    elif isinstance(value, list | tuple):
        if any(isinstance(each, dict | list | tuple) for each in value):
            branches.setdefault(place, []).append(value)
        elif len(value) <= _MOST_NUMBERS:
            for number, each in enumerate(value):
                yield (*place, number), each
    else:
        yield place, value


def _is_map(value: dict[Any, Any]) -> bool:
    """True where the entries are items rather than fields: objects of one form, lists of objects, or s1, s2, s3."""
    entries = list(value.values())
    if entries and all(isinstance(each, list) and each and all(isinstance(e, dict) for e in each) for each in entries):
        return True
    if len(entries) >= 2 and all(isinstance(each, dict) and each for each in entries):
        one_form = len({frozenset(each) for each in entries}) == 1
        return one_form and sum(_is_number(each) for each in entries[0].values()) >= 2
    numbered = len({re.sub(r"\d+$", "", str(name)) for name in value}) == 1
    numbered = numbered and all(re.search(r"\d$", str(name)) for name in value)
    return len(entries) >= 3 and numbered and all(each is None or _is_number(each) for each in entries)


def _holds_items(held: Sequence[Any]) -> bool:
    """True where items have a number somewhere."""
    for each in held:
        for item in each.values() if isinstance(each, dict) else each:
            if any(_is_number(value) for _, value in _walk(item, (), {})) or _nested_number(item):
                return True
    return False


def _nested_number(item: Any) -> bool:
    branches: dict[Place, list[Any]] = {}
    for _ in _walk(item, (), branches):
        pass
    return any(_holds_items(held) for held in branches.values())


def _is_number(value: Any, decimal: str = ".") -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip().replace(",", ".") if decimal == "," else value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)
