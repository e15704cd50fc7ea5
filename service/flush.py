"""The rolling flush: which states go into the changelog with the next commit.

A state is a function of the input log, so it need not be written at every commit. Each series that has moved on is
written once in `seconds`, the one that has waited longest first; so what durability costs depends on how many series
there are, and not on how often they are read. `bytes_per_second` bounds it altogether; beyond it the flush takes
longer, and a restore has more to replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from service.broker.base import Headers, Outgoing
from service.changelog import Codec
from service.series import SeriesTable

GROUP_HEADER = "group"  # whose states these are: two groups on one changelog would mix theirs


class RollingFlush:
    """Chooses and encodes the changelog records of a table."""

    def __init__(
        self,
        table: SeriesTable,
        codec: Codec,
        *,
        topic: str,
        group: str,
        seconds: float,
        bytes_per_second: float,
        clock: Callable[[], float],
    ) -> None:
        self._table, self._codec, self._topic = table, codec, topic
        self._seconds, self._bytes_per_second, self._clock = seconds, bytes_per_second, clock
        self._headers: Headers = [(GROUP_HEADER, group.encode())]
        self._flushed_at = clock()

    def due(self, everything_of: Collection[int] = (), without: Collection[int] = ()) -> Outgoing:
        """Tombstones of the series forgotten, then the states due; they count as flushed from now on.

        Of the partitions `everything_of`, all that no flushed state holds: others take over without a replay. Of the
        partitions `without`, nothing: they are in the midst of a replay, and what is committed for them stays.
        """
        table = self._table
        out = Outgoing(topic=self._topic)
        for key, partition in table.buried:
            if partition not in without:
                out.append(key, None, partition=partition, headers=self._headers)
        table.buried = [(key, partition) for key, partition in table.buried if partition in without]
        slots = self._slots(everything_of, without)
        if len(slots):
            values = self._codec.encode(
                table.offsets[slots],
                table.last_ts[slots],
                table.steps[slots],
                table.seen_ms[slots],
                table.states[slots],
            )
            n = len(slots)
            out.keys += [table.key_of(slot) for slot in slots.tolist()]
            out.values += values
            out.partitions += table.partitions[slots].tolist()
            out.headers += [self._headers] * n
            out.timestamps += [None] * n
            table.dirty_since[slots] = -1
        return out

    def anything_due(self, without: Collection[int] = ()) -> bool:
        """True where some series has moved on since its state was last written, in other partitions than these."""
        return any(p not in without for _, p in self._table.buried) or len(self._dirty(without)) > 0

    def snapshots(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """`partition -> offset` before which every reading is inside some flushed state, given where each goes on."""
        table = self._table
        dirty = np.flatnonzero(table.dirty_since >= 0)
        out = dict(offsets)
        if len(dirty):
            owners, since = table.partitions[dirty], table.dirty_since[dirty]
            for partition, offset in offsets.items():
                mine = since[owners == partition]
                if len(mine):
                    out[partition] = min(offset, int(mine.min()))
        return out

    def _slots(self, everything_of: Collection[int], without: Collection[int]) -> NDArray[np.int64]:
        table, now = self._table, self._clock()
        passed, self._flushed_at = now - self._flushed_at, now
        dirty = self._dirty(without)
        if not len(dirty):
            return dirty
        owners = table.partitions[dirty]
        whole = np.isin(owners, list(everything_of))
        rest, owners = dirty[~whole], owners[~whole]
        budget = max(1, int(self._bytes_per_second * min(passed, self._seconds) / self._codec.record_bytes))
        share = min(1.0, passed / self._seconds, budget / max(len(rest), 1))
        chosen = [dirty[whole]]
        for partition in np.unique(owners).tolist():
            mine = rest[owners == partition]
            count = min(len(mine), math.ceil(share * len(mine)))
            if count < len(mine):  # those that have waited longest: they hold the snapshot offset back
                mine = mine[np.argpartition(table.dirty_since[mine], count - 1)[:count]]
            chosen.append(mine)
        return np.concatenate(chosen)

    def _dirty(self, without: Collection[int]) -> NDArray[np.int64]:
        dirty = np.flatnonzero(self._table.dirty_since >= 0)
        return dirty[~np.isin(self._table.partitions[dirty], list(without))] if without else dirty
