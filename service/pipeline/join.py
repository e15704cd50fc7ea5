"""Parts of one reading that arrive in several records become one reading.

Of each series, parts wait in groups. A part belongs to the group whose time, that of its first part, is nearest and at
most the tolerance away; otherwise it begins another. A group is answered, after all earlier ones,
  - when it has all features of the model (a null counts), or else
  - when a part arrives that is later than its tolerance and at least its deadline later, or
  - when too many groups wait.
The record that closes a group stands for the reading. A part that is not later than the newest reading answered is
late: alone, it counts as a late reading or a duplicate. Only the series' own event times decide, so a replay of the
same records gives the same readings. What waits is part of the series' state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.canonical import DecodedReadings
from tidecast.service.input.config import JoinConfig
from tidecast.service.input.mapping import MappedBatch
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected
from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.clocks import ClockRecovery
from tidecast.service.pipeline.policy import Outcome, Policy
from tidecast.service.pipeline.segments import MAX_SEGMENT, Segment
from tidecast.service.state.store import SeriesStore
from tidecast.service.state.waiting import MAX_GROUPS, Group, Waiting
from tidecast.service.timestamps import NEVER, format_time

Int64 = NDArray[np.int64]


@dataclass(slots=True)
class _Piece:
    """What is made of some parts in a row, between which no series is removed: columns with a row for each reading."""

    rows: list[int] = field(default_factory=list)  # of the part that closed each, or that is no reading
    ts: list[int] = field(default_factory=list)  # ms
    x: list[Sequence[float]] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    outcome: list[int] = field(default_factory=list)
    rejected: dict[int, RecordRejected] = field(default_factory=dict)
    parts: list[int] = field(default_factory=list)  # rows of the parts by which series were seen
    of: list[int] = field(default_factory=list)  # their slots
    newest: dict[int, int] = field(default_factory=dict)  # slot -> ms of the newest reading answered
    first: dict[int, int] = field(default_factory=dict)  # slot -> offset of its first part here
    last: dict[int, int] = field(default_factory=dict)  # slot -> offset of the last part that was taken
    jumped: set[int] = field(default_factory=set)  # slots that may be ahead of their records now

    def add(self, row: int, ts: int, x: Sequence[float], slot: int, outcome: int = Outcome.FORECAST) -> None:
        self.rows.append(row)
        self.ts.append(ts)
        self.x.append(x)
        self.slots.append(slot)
        self.outcome.append(outcome)


class PartJoin:
    """Joins the parts of one pipeline's batches. It adds and removes series, and notes when they were seen.

    Args:
        store: with the series, and what waits of them.
        policy: time to live, and what becomes of duplicates.
        config: tolerance and deadline.
        features: of the model.
        clocks: which readings may start a series again.
        rekeys: True where parts of one series may come from several partitions.
    """

    def __init__(
        self,
        store: SeriesStore,
        policy: Policy,
        config: JoinConfig,
        features: Sequence[str],
        clocks: ClockRecovery,
        rekeys: bool,
    ) -> None:
        self._store, self._policy, self._features, self._rekeys = store, policy, tuple(features), rekeys
        self._tolerance = config.tolerance_ms
        self._wait = max(config.deadline_ms, self._tolerance + 1)
        self._far = clocks.limit if policy.late_recovery_readings else None
        self._nothing = (np.nan,) * len(features)

    def adopt(self, partition: int) -> None:
        """The partition's series came from elsewhere: forget what waits of features that this model does not have."""
        store, features = self._store, set(self._features)
        for slot in [slot for slot in store.waiting if store.partitions[slot] == partition]:
            waiting = store.waiting[slot]
            for group in waiting.groups:
                for name in group.values.keys() - features:
                    del group.values[name]
                    store.dropped_parts += 1
            waiting.groups = [group for group in waiting.groups if group.values]
            if not waiting.groups:
                del store.waiting[slot]

    def pieces(self, parts: BatchWork) -> Iterator[tuple[BatchWork, Segment]]:
        """The readings that these parts make, with all else that is in the batch. Nearly always there is one piece.

        Each must go through the model before the next one is asked for.
        """
        store, ttl, far, piece = self._store, self._policy.series_ttl_ms, self._far, _Piece()
        rekeys, tolerance, reading = self._rekeys, self._tolerance, Outcome.FORECAST
        keys, slots, known = parts.batch.keys, parts.slots.tolist(), True
        outcomes, arrived, offsets = parts.outcome.tolist(), parts.arrived.tolist(), parts.offsets.tolist()
        times, partitions, values = parts.readings.ts.tolist(), parts.batch.partitions, _values(parts, self._features)
        fresh = (~parts.replayed).tolist()
        seen: dict[int, int] = {}  # slot -> ms, by a part of this batch; only with a time to live
        for row, (slot, outcome, ts) in enumerate(zip(slots, outcomes, times, strict=True)):
            if outcome != reading and outcome != Outcome.TOMBSTONE:
                piece.add(row, ts, self._nothing, -1, outcome)
                if row in parts.rejected:
                    piece.rejected[len(piece.rows) - 1] = parts.rejected[row]
                continue
            key = keys[row]
            assert key is not None
            if slot < 0 or not known:
                found = store.find(key)
                slot = -1 if found is None else found
            reason = None if outcome == reading else "tombstone"
            if reason:
                piece.add(row, ts, self._nothing, -1, outcome)
            elif ttl > 0 and slot >= 0 and arrived[row] - seen.get(slot, int(store.seen_ms[slot])) > ttl:
                reason = "expired"
            if reason and slot >= 0:
                yield from self._finish(parts, piece)
                piece, known = _Piece(), False
                store.remove(key)
                parts.counts.resets[reason] += 1
                slot = -1
            if reason == "tombstone":
                continue
            if slot < 0:
                if store.full:
                    yield from self._finish(parts, piece)
                    piece, known = _Piece(), False
                    store.remove(store.least_recent())
                    parts.counts.resets["evicted"] += 1
                slot = store.add(key, partitions[row])
                seen.pop(slot, None)
            if rekeys and store.partitions[slot] != partitions[row]:
                piece.add(row, ts, self._nothing, -1, Outcome.DEAD)
                piece.rejected[len(piece.rows) - 1] = parts.moved(row, int(store.partitions[slot]))
                continue
            if ttl > 0:
                seen[slot] = arrived[row]
            piece.parts.append(row)
            piece.of.append(slot)
            newest = piece.newest.get(slot)
            if newest is None:
                newest = self._begin(piece, slot, offsets[row])
            again = False
            if ts > newest + tolerance or newest == NEVER:
                if self._take(parts, piece, row, slot, ts, values[row], fresh[row]):
                    piece.last[slot] = offsets[row]
            else:
                if far is not None and newest - ts > far and slot in piece.jumped:
                    # Whether the series is ahead is known once the readings before went through the model.
                    piece.parts.pop(), piece.of.pop()
                    yield from self._finish(parts, piece)
                    piece = _Piece(parts=[row], of=[slot])
                    newest = self._begin(piece, slot, offsets[row])
                again = far is not None and newest - ts > far and slot in store.ahead
                self._late(parts, piece, row, slot, ts, newest, fresh[row])
            if again or len(piece.rows) >= MAX_SEGMENT:  # the series may start again with this part
                yield from self._finish(parts, piece)
                piece = _Piece()
        yield from self._finish(parts, piece)

    def _begin(self, piece: _Piece, slot: int, offset: int) -> int:
        """The piece's first part of a series: returns its newest reading, in ms."""
        store = self._store
        newest = piece.newest[slot] = int(store.last_ts[slot])
        piece.first[slot] = offset
        if slot in store.waiting:  # until the piece is done, the offset is that of the last reading answered
            piece.last[slot] = int(store.offsets[slot])
            store.offsets[slot] = store.waiting[slot].answered
        return newest

    def _take(
        self,
        parts: BatchWork,
        piece: _Piece,
        row: int,
        slot: int,
        ts: int,
        values: Sequence[tuple[str, float]],
        fresh: bool,
    ) -> bool:
        """Put a part into its group, and answer what is due; False where it brings nothing new.

        `fresh`: it is not replayed.
        """
        waiting = self._store.waiting.get(slot)
        if waiting is None:
            waiting = self._store.waiting[slot] = Waiting(-1, [])
        groups, tolerance = waiting.groups, self._tolerance
        at = len(groups) - 1
        while at >= 0 and groups[at].ts > ts + tolerance:
            at -= 1
        if at > 0 and ts - groups[at - 1].ts <= groups[at].ts - ts:  # the one before is as near
            at -= 1
        if at < 0 or ts - groups[at].ts > tolerance:
            at += 1
            groups.insert(at, Group(ts, {}))
        group = groups[at].values
        before = len(group)
        for name, value in values:
            group.setdefault(name, value)
        new = len(group) - before
        if fresh:
            parts.counts.parts["taken" if new == len(values) else "repeated"] += 1
        if not new:
            piece.add(row, ts, self._nothing, slot, Outcome.DUPLICATE)
            if self._policy.dead_letter_duplicate:
                message = f"what this part has at {format_time(ts)} was there already"
                piece.rejected[len(piece.rows) - 1] = RecordRejected(DeadLetterReason.DUPLICATE, message)
            return False
        features, n = self._features, len(self._features)
        due = at if len(group) == n else -1
        while due + 1 < len(groups) and ts - groups[due + 1].ts >= self._wait:
            due += 1
        due = max(due, len(groups) - MAX_GROUPS - 1)
        if due < 0:
            return True
        newest = piece.newest[slot]
        for each in groups[: due + 1]:
            piece.add(row, each.ts, [each.values.get(name, np.nan) for name in features], slot)
            if fresh and len(each.values) < n:
                parts.counts.incomplete += 1
            if self._far is not None and each.ts - newest > self._far:
                piece.jumped.add(slot)
            newest = each.ts
        piece.newest[slot] = newest
        del groups[: due + 1]
        if not groups:
            del self._store.waiting[slot]
        return True

    def _late(self, parts: BatchWork, piece: _Piece, row: int, slot: int, ts: int, newest: int, fresh: bool) -> None:
        """A part that comes after its reading: alone, with the time of that reading where it belongs to it."""
        if fresh:
            parts.counts.parts["late"] += 1
        ts = newest if abs(newest - ts) <= self._tolerance else ts
        piece.add(row, ts, parts.readings.x[row].tolist(), slot)

    def _finish(self, parts: BatchWork, piece: _Piece) -> Iterator[tuple[BatchWork, Segment]]:
        """Hand the piece over, and afterwards put the offsets of what waits in place."""
        store, waiting = self._store, self._store.waiting
        first = np.fromiter(piece.first, dtype=np.int64, count=len(piece.first))
        store.mark_dirty(first, np.fromiter(piece.first.values(), dtype=np.int64, count=len(first)))
        of = np.array(piece.of, dtype=np.int64)
        store.mark_seen(of)
        store.seen_ms[of] = parts.arrived[piece.parts]
        work = _work_of(parts, piece)
        live = np.flatnonzero(work.outcome == Outcome.FORECAST)
        yield work, Segment(live, work.slots[live])
        last = np.fromiter(piece.last, dtype=np.int64, count=len(piece.last))
        answered = store.offsets[last]
        store.offsets[last] = np.maximum(answered, np.fromiter(piece.last.values(), dtype=np.int64, count=len(last)))
        for slot, offset in zip(piece.last, answered.tolist(), strict=True):
            if slot in waiting:
                waiting[slot].answered = offset


def _values(parts: BatchWork, features: Sequence[str]) -> list[list[tuple[str, float]]]:
    """[parts] the values that each has, with the names of their features."""
    given = parts.readings.given
    assert given is not None
    rows, columns = given.nonzero()
    pairs = list(
        zip(map(features.__getitem__, columns.tolist()), parts.readings.x[rows, columns].tolist(), strict=True)
    )
    if len(pairs) == len(given) and (np.diff(rows) == 1).all():
        return [[pair] for pair in pairs]
    bounds = np.searchsorted(rows, np.arange(len(given) + 1)).tolist()
    return [pairs[start:end] for start, end in pairwise(bounds)]


def _work_of(parts: BatchWork, piece: _Piece) -> BatchWork:
    """A piece as columns; what is counted is counted with the parts."""
    rows, n, mapped = np.array(piece.rows, dtype=np.int64), len(piece.rows), parts.mapped
    ts = np.array(piece.ts, dtype=np.int64)
    x = np.array(piece.x, dtype=np.float32).reshape(n, parts.readings.x.shape[1])
    outcome = np.array(piece.outcome, dtype=np.int8)
    readings = DecodedReadings(ts, x, tombstones=np.flatnonzero(outcome == Outcome.TOMBSTONE).tolist())
    records = piece.rows if mapped.records is None else [mapped.records[row] for row in piece.rows]
    return BatchWork(
        mapped=MappedBatch(parts.batch.take(piece.rows), readings, mapped.features, mapped.source, records),
        readings=readings,
        partitions=parts.partitions[rows],
        offsets=parts.offsets[rows],
        timestamps=parts.timestamps[rows],
        slots=np.array(piece.slots, dtype=np.int64),
        arrived=parts.arrived[rows],
        arrived_at=parts.arrived_at[rows],
        furthest_ahead=int((ts - parts.arrived_at[rows]).max(initial=0)),
        outcome=outcome,
        warm=np.zeros(n, dtype=np.bool_),
        y=np.empty((n, *parts.y.shape[1:]), dtype=np.float32),
        score=np.empty((n, parts.score.shape[1]), dtype=np.float32),
        replayed=parts.replayed[rows],
        counts=parts.counts,
        rejected=piece.rejected,
    )
