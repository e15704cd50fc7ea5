"""The state of one series as one record of the changelog (`tidecast.service.state.record`), and back. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import ChangelogError
from tidecast.service.model.compatibility import LAYOUT_BYTES
from tidecast.service.model.members import (
    UNKNOWN,
    Member,
    StateLayout,
    carry,
    member_of,
    sources,
    steps_of,
    table_hash,
    write_table,
)
from tidecast.service.model.spec import ModelSpec
from tidecast.service.state.record import (
    CRC_BYTES,
    CRC_OF_WHOLE,
    GROUP_VERSION,
    VERSION,
    AheadClock,
    RecordHeader,
    read_header,
    state_bytes,
    write_record,
)
from tidecast.service.state.waiting import Waiting

_TIMES = ("offset", "last_ts", "steps", "seen_ms")


def _record(state_size: int, between: int) -> np.dtype[np.void]:
    """The layout of one record, without padding; `between`: bytes between the header and the state."""
    header = [("version", "u1"), ("layout", "u1", (LAYOUT_BYTES,))]
    times = [(name, "<i8") for name in _TIMES]
    table = [("between", "u1", (between,))] if between else []
    return np.dtype([*header, *times, *table, ("state", "<f4", (state_size,)), ("crc", "<u4")])


_ANY_KEY = b"key"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One series as it was after the reading at `offset`."""

    offset: int
    last_ts: int  # ms
    steps: int
    seen_ms: int
    state: NDArray[np.float32]  # [state], read-only
    ahead: AheadClock | None = None
    waiting: Waiting | None = None
    changed: bool = False  # the record has it in another form than that in which it is written now


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Several snapshots, as columns with a row for each series."""

    offsets: NDArray[np.int64]  # [series]
    last_ts: NDArray[np.int64]  # [series] ms
    steps: NDArray[np.int64]  # [series]
    seen_ms: NDArray[np.int64]  # [series]
    states: NDArray[np.float32]  # [series, state], read-only
    ahead: Mapping[int, AheadClock] = field(default_factory=dict)  # row -> of the series that have one
    waiting: Mapping[int, Waiting] = field(default_factory=dict)  # row -> of the series of which parts wait
    changed: Collection[int] = ()  # rows of series whose records have another form than that which is written now

    def __len__(self) -> int:
        return len(self.offsets)


def check_record(key: bytes, value: bytes, *, codec: Codec | None = None, end: int | None = None) -> RecordHeader:
    """Check a state as it stands in the changelog: the one check of a restore, and of list, show, export and import.

    In this order: checksum, version, layout (with `codec`), numbers, offset, key.

    Args:
        key: of the record.
        value: of the record.
        codec: of the model that is to continue from the state; None = of any model.
        end: the offset after the last reading of the input partition; None = not known.

    Raises:
        ChangelogError: the state cannot be used. `intact` tells whether somebody may have written it so.
    """
    header = read_header(value)
    if codec is not None and not codec.reads(header):
        raise ChangelogError(
            f"a changelog record has the state of another model, layout {header.layout.hex()}, "
            f"this model's is {codec.layout.hex()}",
            do="Serve the model that wrote it, or give this one a --changelog-topic of its own.",
            layout=header.layout,
            intact=True,
        )
    if codec is not None and not header.members and header.state_size != codec.lone_size:  # although the hash is right
        raise ChangelogError(f"a changelog record must have {codec.lone_size} numbers", got=header.state_size)
    if not header.state_size:
        raise ChangelogError("a changelog record has no state")
    if not np.isfinite(np.frombuffer(state_bytes(value), dtype="<f4")).all():
        raise ChangelogError("a changelog record has a state that is not finite")
    if end is not None and header.offset >= end:
        raise ChangelogError(
            f"a changelog record includes the reading at offset {header.offset}, but the input topic ends at {end}",
            intact=True,
            offset=header.offset,
        )
    try:
        key.decode()
    except UnicodeDecodeError:
        raise ChangelogError("the key of a changelog record is not UTF-8", got=key) from None
    if not key:
        raise ChangelogError("the key of a changelog record is empty")
    return header


class Codec:
    """Writes and reads the records of all models that share one state layout, or those of a group of models.

    Args:
        specs: of the members, in order; one = a model without others.
        heir: which of them continues with the state of a model that has gone, if its layout is the same.
        maker: hash, as in ids, of the model that made the records that name none; None = the heir.
        last: hash of the model that has answered; of states of several that have gone, the heir takes this one's.
    """

    def __init__(self, *specs: ModelSpec, heir: int = 0, maker: str | None = None, last: str = "") -> None:
        self._specs, self._heir, self._last = specs, heir, last
        self.states = StateLayout([member_of(spec) for spec in specs])
        self.members = self.states.members
        self._maker = next((nth for nth, member in enumerate(self.members) if member.hash == maker), heir)
        self.state_size = self.states.size
        self._table = write_table(self.members) + b"\0" if len(specs) > 1 else b""
        self.layout = table_hash(self.members) if self._table else self.members[0].layout
        self._version = GROUP_VERSION if self._table else VERSION
        self._dtype = _record(self.state_size, len(self._table))

    def made_by(self, maker: str | None, last: str | None) -> Codec:
        """The same, for records of another `maker`, after another model has answered; see above."""
        return Codec(*self._specs, heir=self._heir, maker=maker, last=last or "")

    @property
    def lone_size(self) -> int:
        """Numbers in the state of a record that names no model."""
        return self.members[self._maker].size

    def sources(self, found: Sequence[Member]) -> list[int | None]:
        """Which of these states each member continues, see `members.sources`."""
        return sources(self.members, found, maker=self._maker, heir=self._heir, last=self._last)

    def reads(self, header: RecordHeader) -> bool:
        """True where a record has the state of a member."""
        return any(of is not None for of in self.sources(_members(header)))

    @property
    def record_bytes(self) -> int:
        """The length of nearly every record, bytes."""
        return self._dtype.itemsize

    def encode(
        self,
        offsets: NDArray[np.int64],
        last_ts: NDArray[np.int64],
        steps: NDArray[np.int64],
        seen_ms: NDArray[np.int64],
        states: NDArray[np.float32],
        ahead: Mapping[int, AheadClock] | None = None,
        waiting: Mapping[int, Waiting] | None = None,
    ) -> list[bytes]:
        """One record for each series.

        Args:
            offsets: [series], of the last reading applied.
            last_ts: [series], ms.
            steps: [series], since the initial state.
            seen_ms: [series], ms.
            states: [series, state].
            ahead: row -> of the series that have one.
            waiting: row -> of the series of which parts wait.

        Raises:
            ChangelogError: a state is not finite, so it could not be restored.
        """
        if not np.isfinite(states).all():
            raise ChangelogError("a state that is not finite cannot go into the changelog")
        records = np.empty(len(offsets), dtype=self._dtype)
        records["version"] = self._version
        records["layout"] = np.frombuffer(self.layout, dtype=np.uint8)
        if self._table:
            records["between"] = np.frombuffer(self._table, dtype=np.uint8)
        records["offset"], records["last_ts"] = offsets, last_ts
        records["steps"], records["seen_ms"] = steps, seen_ms
        records["state"] = states
        size = self._dtype.itemsize
        starts = range(0, len(records) * size, size)
        data = records.view(np.uint8).data
        records["crc"] = [zlib.crc32(data[at : at + size - CRC_BYTES]) for at in starts]
        values = [data[at : at + size].tobytes() for at in starts]
        if ahead or waiting:
            ahead, waiting = ahead or {}, waiting or {}
            for row in {*ahead, *waiting}:
                header = replace(read_header(values[row]), ahead=ahead.get(row), waiting=waiting.get(row))
                values[row] = write_record(header, state_bytes(values[row]))
        return values

    def decode(self, value: bytes) -> Snapshot:
        """Read a record that `encode` wrote; the values are the same, bit for bit.

        Raises:
            ChangelogError: the record has an unknown version, another layout (see the error's `layout`) or a state that
                is not finite, or it is cut short or damaged.
        """
        header = check_record(_ANY_KEY, value, codec=self)
        state = np.frombuffer(state_bytes(value), dtype="<f4").astype(np.float32, copy=False)
        steps, changed = header.steps, header.members != (self.members if self._table else ())
        if changed:
            state, steps = self._carried(header, state[np.newaxis])
        times = header.offset, header.last_ts, steps, header.seen_ms
        return Snapshot(*times, state, header.ahead, header.waiting, changed)

    def _carried(self, header: RecordHeader, state: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """The state [1, state] of another group in this one's form [state], and its steps."""
        source, found = StateLayout(_members(header)), self.states.initial_state(self._specs)[np.newaxis].copy()
        taken, steps = self.sources(source.members), np.array([header.steps])
        carry(taken, source, state, steps, self.states, found)
        if len(self.members) == 1 and taken[0] is not None:
            steps = steps_of(source, state, steps, taken[0])
        found.flags.writeable = False
        return found[0], int(steps[0])

    def decode_many(self, values: Sequence[bytes]) -> Snapshots:
        """Like `decode` for each record, as columns, at a tenth of the cost per record.

        Raises:
            ChangelogError: as in `decode`, for the first record that it refuses.
        """
        whole = _columns(values, self._dtype, self._version, self.layout, self._table)
        if whole is None:
            whole = self._columns_of_others(values)
        if whole is not None:
            return whole
        found = [self.decode(value) for value in values]  # some have more than a state, or one is refused
        offsets, last_ts, steps, seen_ms = (
            np.array([getattr(each, name) for each in found], dtype=np.int64) for name in _TIMES
        )
        states = np.array([each.state for each in found], dtype=np.float32)
        states.flags.writeable = False
        clocks = {row: each.ahead for row, each in enumerate(found) if each.ahead is not None}
        waiting = {row: each.waiting for row, each in enumerate(found) if each.waiting is not None}
        changed = [row for row, each in enumerate(found) if each.changed]
        return Snapshots(offsets, last_ts, steps, seen_ms, states, clocks, waiting, changed)

    def _columns_of_others(self, values: Sequence[bytes]) -> Snapshots | None:
        """As `decode_many`, where all records have the states of one other group, as after its last change."""
        try:
            header = check_record(_ANY_KEY, values[0], codec=self)
        except ChangelogError:
            return None
        table = write_table(header.members) + b"\0" if header.members else b""
        dtype = _record(header.state_size, len(table))
        found = _columns(values, dtype, GROUP_VERSION if table else VERSION, header.layout, table)
        if found is None:
            return None
        source, states = StateLayout(_members(header)), np.empty((len(values), self.state_size), dtype=np.float32)
        states[:] = self.states.initial_state(self._specs)
        taken, steps = self.sources(source.members), found.steps
        carry(taken, source, found.states, steps, self.states, states)
        if len(self.members) == 1 and taken[0] is not None:
            steps = steps_of(source, found.states, steps, taken[0])
        states.flags.writeable = False
        return replace(found, states=states, steps=steps, changed=range(len(values)))


def _columns(
    values: Sequence[bytes], dtype: np.dtype[np.void], version: int, layout: bytes, between: bytes
) -> Snapshots | None:
    """The records as columns, if all are good and of this form, and have nothing but a state."""
    if not all(len(value) == dtype.itemsize for value in values):
        return None
    records = np.frombuffer(b"".join(values), dtype=dtype)
    states = records["state"].astype(np.float32)  # a copy, since the records are not aligned
    states.flags.writeable = False
    ours = (records["version"] == version) & (records["layout"] == np.frombuffer(layout, "u1")).all(1)
    if between:
        ours &= (records["between"] == np.frombuffer(between, "u1")).all(1)
    if not ours.all() or not set(map(zlib.crc32, values)) <= {CRC_OF_WHOLE} or not np.isfinite(states).all():
        return None
    offsets, last_ts, steps, seen_ms = (records[name].astype(np.int64) for name in _TIMES)
    return Snapshots(offsets, last_ts, steps, seen_ms, states)


def _members(header: RecordHeader) -> tuple[Member, ...]:
    """Whose states a record has."""
    return header.members or (Member(UNKNOWN, header.layout, header.state_size),)
