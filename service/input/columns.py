"""Documents and the items that they are exploded into, and the columns that paths lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec

from tidecast.service.broker.port import Batch
from tidecast.service.input.paths import HEADER, MISSING, OF_ITEM, Path, Step, opened
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected, show


@dataclass(slots=True)
class Level:
    """Documents, or the items of the lists in the level around it."""

    items: list[Any]
    records: list[int]  # [items] the record of each
    outer: Level | None = None
    parents: Sequence[int] = ()  # [items] the row of each one's item in the outer level
    names: Sequence[Any] = ()  # [items] the name of each in its map, or its number in its list

    def take(self, rows: Sequence[int]) -> Level:
        """These rows alone."""
        columns = (self.parents, self.names) if self.outer is not None else ()
        parents, names = ([column[row] for row in rows] for column in columns) if columns else ((), ())
        return Level([self.items[r] for r in rows], [self.records[r] for r in rows], self.outer, parents, names)


class Columns:
    """The columns of one level's rows."""

    def __init__(self, level: Level, batch: Batch) -> None:
        self.level, self.batch = level, batch
        self._found: dict[tuple[int, tuple[Step, ...]], list[Any]] = {}

    def __len__(self) -> int:
        return len(self.level.items)

    def read(self, paths: Sequence[Path]) -> list[Any]:
        """[rows] what the first path that leads somewhere gives; MISSING where none does. The list is the caller's."""
        values = self._one(paths[0])
        for path in paths[1:]:
            empty = [row for row, value in enumerate(values) if value is MISSING or value is None]
            if not empty:
                break
            others = self._one(path)
            for row in empty:
                if others[row] is not MISSING:
                    values[row] = others[row]
        return values

    def record_times(self) -> list[Any]:
        """[rows] ms, the records' own timestamps; MISSING where they have none."""
        stamps = self.batch.timestamps
        return [stamps[record] if stamps[record] > 0 else MISSING for record in self.level.records]

    def _one(self, path: Path) -> list[Any]:
        if path.special and path.special not in OF_ITEM:
            return self._special(path)
        level, rows = self.level, None
        depth = 0
        while level.outer is not None and (path.out is None or depth < path.out):
            rows = list(level.parents) if rows is None else [level.parents[row] for row in rows]
            level, depth = level.outer, depth + 1
        if path.special == "@name":
            values: Sequence[Any] = level.names if level.outer is not None else [MISSING] * len(level.items)
        else:
            values = self._walk(level, depth, path.steps)
        return [*values] if rows is None else [values[row] for row in rows]

    def _walk(self, level: Level, depth: int, steps: tuple[Step, ...]) -> list[Any]:
        """[rows of the level] what the steps lead to; what paths have in common is followed once."""
        if not steps:
            return level.items
        if (depth, steps) not in self._found:
            before, step = self._walk(level, depth, steps[:-1]), steps[-1]
            try:
                if not isinstance(step, str):
                    raise TypeError
                values = list(map(itemgetter(step), before))
            except (KeyError, TypeError, IndexError):
                follow = Path("", "", 0, (step,)).follow
                values = [
                    each.get(step, MISSING) if type(each) is dict else MISSING if each is MISSING else follow(each)
                    for each in before
                ]
            self._found[depth, steps] = values
        return self._found[depth, steps]

    def _special(self, path: Path) -> list[Any]:
        records, batch = self.level.records, self.batch
        if path.special == "@record":
            return self.record_times()
        if path.special == "@topic":
            return [batch.topic] * len(self)
        if path.special.startswith(HEADER):
            name = path.special.removeprefix(HEADER)
            return [_header(batch.headers[record], name) for record in records]
        texts = [_text(batch.keys[record]) for record in records]
        return [path.follow(_json(text)) for text in texts] if path.steps else texts


def enter(columns: Columns, paths: Sequence[Path], rejected: dict[int, RecordRejected]) -> Level:
    """What each document has at its root, as one item; a record that has nothing there is rejected."""
    level = columns.level
    found = list(map(opened, columns.read(paths)))
    rows = [row for row, item in enumerate(found) if item is not MISSING and item is not None]
    for row in set(range(len(found))).difference(rows):
        message = f"there is nothing at the root {_written(paths)!r}, only {show(level.items[row])}"
        rejected.setdefault(level.records[row], RecordRejected(DeadLetterReason.WRONG_TYPE, message))
    return Level([found[r] for r in rows], [level.records[r] for r in rows], level, rows, [MISSING] * len(rows))


def explode(
    columns: Columns,
    paths: Sequence[Path],
    rejected: dict[int, RecordRejected],
    unused: dict[str, list[int]],
    *,
    first: bool,
) -> Level:
    """The items of the lists or maps at these paths.

    Where `@item` is the last of several paths, an item without such a list is itself the only one, unless it is a list.

    Args:
        columns: of the level around it.
        paths: of the lists.
        rejected: gets the records that have something else there, or, where it is the first list, nothing.
        unused: gets the records of items of an outer list that have nothing there.
        first: whether no list is around it.
    """
    level, where = columns.level, _written(paths)
    or_itself = len(paths) > 1 and paths[-1].special == "@item" and not paths[-1].steps
    items: list[Any] = []
    parents: list[int] = []
    names: list[Any] = []
    for row, found in enumerate(columns.read(paths[:-1] if or_itself else paths)):
        if or_itself and (found is MISSING or found is None):
            found = level.items[row]
            found = found if isinstance(found, list | tuple) else [found]
        found = opened(found)
        if isinstance(found, dict):
            items += found.values()
            names += found.keys()
        elif isinstance(found, list | tuple):
            items += found
            names += range(len(found))
        elif first or not (found is MISSING or found is None):
            message = f"there must be a list or map of readings at {where!r}, got {show(found)}"
            rejected.setdefault(level.records[row], RecordRejected(DeadLetterReason.WRONG_TYPE, message))
        else:
            unused.setdefault(f"(nothing at {where})", []).append(level.records[row])
        parents += [row] * (len(items) - len(parents))
    return Level(items, [level.records[row] for row in parents], level, parents, names)


def _written(paths: Sequence[Path]) -> str:
    return " | ".join(path.text for path in paths)


def _text(value: bytes | None) -> Any:
    """The text of a key or header; the bytes themselves where they are no UTF-8."""
    if value is None:
        return MISSING
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _header(headers: Sequence[tuple[str, bytes]], name: str) -> Any:
    return next((_text(value) for key, value in headers if key == name), MISSING)


def _json(text: Any) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, TypeError, RecursionError):
        return MISSING
