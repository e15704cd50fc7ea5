"""From records to readings, a batch at a time, as an `[input]` table says.

Documents are worked on as columns: each path is followed for all rows at once, and only where a row is unusual does
Python look at rows one by one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.input.canonical import DecodedReadings
from tidecast.service.input.columns import Columns, Level, enter, explode
from tidecast.service.input.config import InputConfig, key_paths, key_texts, matched_name, values_of
from tidecast.service.input.documents import Documents, format_of, read_documents
from tidecast.service.input.paths import MISSING, OF_ITEM, Path, parse_paths
from tidecast.service.input.rejected import MAX_KEY_BYTES, DeadLetterReason, RecordRejected, check_key, names, show
from tidecast.service.input.times import TimeReader
from tidecast.service.input.values import ValueReader

_MOST_KEYS = 100_000  # kept with what the regular expression makes of them

Reject = Callable[[int, RecordRejected], object]


@dataclass(slots=True)
class MappedBatch:
    """Readings, with a row for each: `batch` repeats a record for each of its readings, the series' name as its key.

    Rows are in the order of their records. A record that is not a reading has one row.
    """

    batch: Batch
    readings: DecodedReadings
    features: tuple[str, ...]
    source: Batch  # as it was read
    records: list[int] | None = None  # [rows] the record of each in `source`; None = row n is record n
    skipped: int = 0  # records that `skip_if` or `only_if` leaves out, or that hold no reading
    unused: Counter[str] = field(default_factory=Counter)  # long form: names that are no feature -> how many values
    unused_records: list[int] = field(default_factory=list)  # the record of each of these values, in any order


class InputMapper:
    """Maps batches as one table says. For one thread.

    Args:
        config: the table.
        features: of the model; None = all that a record has (those in `fields`, or every number).

    Raises:
        TidecastError: the format needs a package that is not installed, its schema cannot be read, or the table does
            not say where a feature is.
    """

    def __init__(self, config: InputConfig, features: Sequence[str] | None) -> None:
        self._config = config
        self._format = format_of(config)
        self._root = parse_paths(config.root) if config.root else ()
        self._explodes = [parse_paths(text) for text in config.explodes]
        self._times = TimeReader(config)
        time = parse_paths(config.time)
        self._record_time = time[-1].special == "@record"  # where no other path of the time leads anywhere
        self._time = time[:-1] if self._record_time else time
        self._keys = [parse_paths(text) for text in key_paths(config.key)]
        self._key_texts = key_texts(config.key)
        self._key_format = "{}".join(text.replace("{", "{{").replace("}", "}}") for text in self._key_texts).format
        self._regex = re.compile(config.key_regex) if config.key_regex else None
        self._matched: dict[bytes, bytes | None] = {}
        conditions = [(parse_paths(text), values_of(want), False) for text, want in config.skip_if.items()]
        conditions += [(parse_paths(text), values_of(want), True) for text, want in config.only_if.items()]
        of_record = [each for each in conditions if all(map(_of_record, each[0]))]
        self._outer = of_record if self._explodes or self._root else []  # those that need not wait for the items
        self._conditions = [each for each in conditions if each not in self._outer]
        self._values = ValueReader(config, features)

    def prepare(self, batch: Batch) -> None:
        """Fetch the schemas that these records need, where they are not here yet.

        Raises:
            InputUnavailable: the registry does not answer; a later try may succeed.
        """
        self._format.prepare(batch.values)

    def map(self, batch: Batch) -> MappedBatch:
        """The readings of a batch. Never raises, whatever the bytes; does no I/O."""
        documents = read_documents(batch.values, self._format)
        rejected, tombstones = documents.rejected, documents.tombstones
        unused: dict[str, list[int]] = {}
        columns = self._columns(batch, documents, unused)
        row_rejected: dict[int, RecordRejected] = {}
        reject = _rejecter(columns, row_rejected)
        keys = self._read_keys(columns, reject)
        ts = self._read_times(columns, reject)
        if self._config.long:
            features, x, records, kept, there = self._values.read_long(columns, keys, ts, row_rejected, unused)
            if kept is not None:
                row_rejected = {new: row_rejected[old] for new, old in enumerate(kept) if old in row_rejected}
                keys, ts = [keys[row] for row in kept], ts[kept]
        else:
            features, x, there = self._values.read_wide(columns, row_rejected)
            records = columns.level.records
        readings = DecodedReadings(ts, x, row_rejected, given=there)
        mapped = self._mapped(batch, features, records, keys, readings, rejected, tombstones)
        for name, theirs in unused.items():
            mapped.unused[name] = len(theirs)
            mapped.unused_records += theirs
        return mapped

    def _mapped(
        self,
        batch: Batch,
        features: tuple[str, ...],
        records: list[int],
        keys: list[bytes | None],
        readings: DecodedReadings,
        rejected: dict[int, RecordRejected],
        tombstones: list[int],
    ) -> MappedBatch:
        n = len(batch)
        if len(records) == n and not rejected and not tombstones and records == list(range(n)):  # nearly all batches
            return MappedBatch(_with_keys(batch, keys), readings, features, batch)
        forgets = self._forgets(batch, tombstones) if self._config.tombstones == "forget" else {}
        more = [*rejected, *forgets]
        skipped = n - len({*records, *more})
        order = np.argsort(np.array([*records, *more], dtype=np.int64), kind="stable").tolist()
        place = {old: new for new, old in enumerate(order)}
        all_records = [*records, *more]
        found = DecodedReadings(
            np.concatenate([readings.ts, np.zeros(len(more), dtype=np.int64)])[order],
            np.concatenate([readings.x, np.full((len(more), len(features)), np.nan, dtype=np.float32)])[order],
            {place[row]: rejection for row, rejection in readings.rejected.items()},
        )
        if readings.given is not None:
            nothing = np.zeros((len(more), len(features)), dtype=np.bool_)
            found.given = np.concatenate([readings.given, nothing])[order]
        for row, record in enumerate(more, len(records)):
            if record in rejected:
                found.rejected[place[row]] = rejected[record]
                keys.append(batch.keys[record])
            else:
                found.tombstones.append(place[row])
                keys.append(forgets[record])
        found.tombstones.sort()
        records = [all_records[old] for old in order]
        rows = _with_keys(batch.take(records), [keys[old] for old in order])
        rows.next_offsets = batch.next_offsets
        return MappedBatch(rows, found, features, batch, records, skipped)

    def items(self, batch: Batch) -> Level:
        """What readings are made of: the documents, or the items in them, without those that the table leaves out."""
        return self._columns(batch, read_documents(batch.values, self._format), {}).level

    # Which rows ----------------------------------------------------------------------------------------------

    def _columns(self, batch: Batch, documents: Documents, unused: dict[str, list[int]]) -> Columns:
        level = Level(documents.items, documents.records)
        if self._outer:
            level = level.take(self._wanted(Columns(level, batch), self._outer))
        if self._root:
            level = enter(Columns(level, batch), self._root, documents.rejected)
        for depth, paths in enumerate(self._explodes):
            level = explode(Columns(level, batch), paths, documents.rejected, unused, first=depth == 0)
        columns = Columns(level, batch)
        if self._conditions:
            columns = Columns(level.take(self._wanted(columns, self._conditions)), batch)
        return columns

    @staticmethod
    def _wanted(columns: Columns, conditions: Sequence[tuple[Sequence[Path], list[Any], bool]]) -> list[int]:
        keep = [True] * len(columns)
        for paths, values, wanted in conditions:
            keep = [old and (value in values) is wanted for old, value in zip(keep, columns.read(paths), strict=True)]
        return [row for row, kept in enumerate(keep) if kept]

    # Key and time --------------------------------------------------------------------------------------------

    def _read_keys(self, columns: Columns, reject: Reject) -> list[bytes | None]:
        if not self._config.rekeys:
            raw = columns.batch.keys
            keys = [raw[record] for record in columns.level.records]
        else:
            parts = [_texts_of_integers(columns.read(paths)) for paths in self._keys]
            if all(set(map(type, part)) == {str} for part in parts):
                texts: Any = parts[0] if self._key_texts == ["", ""] else map(self._key_format, *parts)
            else:
                texts = (self._key_of(row, values, reject) for row, values in enumerate(zip(*parts, strict=True)))
            keys = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
            if self._regex is not None:
                keys = [self._match(row, key, reject) for row, key in enumerate(keys)]
        bad = {key for key in set(keys) if key is None or not (key.isascii() and 1 <= len(key) <= MAX_KEY_BYTES)}
        for row, key in enumerate(keys) if bad else ():
            if key in bad:
                try:
                    check_key(key)
                except RecordRejected as rejection:
                    say = '; key in [input] says where the name of the series is: key = "tags.host"'
                    more = "" if key is not None or self._config.rekeys else say
                    reject(row, RecordRejected(rejection.reason, rejection.message + more))
        return keys

    def _key_of(self, row: int, values: Sequence[Any], reject: Reject) -> str | None:
        """The name of one row's series; None where a part of it is not there, which rejects the row."""
        text = self._key_texts[0]
        for value, between, paths in zip(values, self._key_texts[1:], self._keys, strict=True):
            if (part := _key_text(value)) is None:
                where = " | ".join(path.text for path in paths)
                kind = DeadLetterReason.MISSING_KEY if value is MISSING or value is None else DeadLetterReason.BAD_KEY
                reject(row, RecordRejected(kind, f"the name of the series is to be at {where!r}, got {show(value)}"))
                return None
            text += part + between
        return text

    def _match(self, row: int, key: bytes | None, reject: Reject) -> bytes | None:
        if key is None or self._regex is None:
            return None
        if key not in self._matched:
            if len(self._matched) >= _MOST_KEYS:
                self._matched.clear()
            name = matched_name(self._regex, key.decode("utf-8", "surrogatepass"))
            self._matched[key] = name.encode("utf-8", "surrogatepass") or None
        if (found := self._matched[key]) is None:
            text = key.decode("utf-8", "replace")
            message = f"key_regex {self._regex.pattern!r} matches nothing in the key {show(text)}"
            reject(row, RecordRejected(DeadLetterReason.BAD_KEY, message))
        return found

    def _forgets(self, batch: Batch, tombstones: list[int]) -> dict[int, bytes | None]:
        """The series that each record without a value names: known only where the name comes not from the value."""
        unnamed: dict[int, RecordRejected] = {}
        columns = Columns(Level([MISSING] * len(tombstones), tombstones), batch)
        keys = self._read_keys(columns, unnamed.setdefault)
        return {tombstones[row]: key for row, key in enumerate(keys) if row not in unnamed}

    def _read_times(self, columns: Columns, reject: Reject) -> NDArray[np.int64]:
        if not self._time:
            return self._times.read(columns.record_times(), reject, unit="ms")
        values = columns.read(self._time)
        if not self._record_time:
            return self._times.read(values, reject)
        there = [row for row, value in enumerate(values) if value is not MISSING and value is not None]
        if len(there) == len(values):
            return self._times.read(values, reject)
        ts = np.zeros(len(values), dtype=np.int64)
        stamps, absent = columns.record_times(), sorted(set(range(len(values))).difference(there))
        for rows, column, unit in ((there, values, None), (absent, stamps, "ms")):
            found: dict[int, RecordRejected] = {}
            if rows:
                ts[rows] = self._times.read([column[row] for row in rows], found.setdefault, unit=unit)
            for at, rejection in found.items():
                reject(rows[at], rejection)
        return ts


def _of_record(path: Path) -> bool:
    """True where a path leads to the same from each item of a record."""
    return path.out is None or (bool(path.special) and path.special not in OF_ITEM)


def _rejecter(columns: Columns, rejected: dict[int, RecordRejected]) -> Reject:
    """What rejects rows. The sentence about what is missing says what is there."""

    def reject(row: int, rejection: RecordRejected) -> None:
        if row in rejected:
            return
        if rejection.reason in (DeadLetterReason.MISSING_TIME, DeadLetterReason.MISSING_KEY):
            item = columns.level.items[row]
            there = f"its fields are {names(item) or 'none'}" if isinstance(item, dict) else f"it is {show(item)}"
            if isinstance(item, list):
                there = 'it is a list: explode = "@item" makes each of its items a reading'
            rejection = RecordRejected(rejection.reason, f"{rejection.message}; {there}")
        rejected[row] = rejection

    return reject


def _with_keys(batch: Batch, keys: list[bytes | None]) -> Batch:
    """The batch with other keys; it shares the other columns."""
    columns = (batch.partitions, batch.offsets, batch.timestamps, keys, batch.values, batch.headers)
    return Batch(batch.topic, *columns, next_offsets=batch.next_offsets)


def _texts_of_integers(part: list[Any]) -> list[Any]:
    """The part of each key as a text, where all of them are integers, which is usual for ids."""
    integers = set(map(type, part)) == {int} and max(map(abs, part)) < 2**64
    return list(map(str, part)) if integers else part


def _key_text(value: Any) -> str | None:
    """The text of a part of a key; None where it cannot be one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else None
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else None
