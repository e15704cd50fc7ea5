"""Which models a state belongs to: where several run over the same readings, their states lie one after the other.

The state of a group of models has a part for each member: the member's own state and, as one more float32, the steps
that this member has taken since its initial state (exact up to 2**24, and no more are counted). Members are in the
order of their hashes. A group of one has its model's state alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidecast.service.model.compatibility import LAYOUT_BYTES, layout_hash
from tidecast.service.model.spec import ModelSpec

_HASH_BYTES = 6
UNKNOWN = b""  # the model of a record that names none
MOST_MEMBERS = 16
_ENTRY = struct.Struct(f"<{_HASH_BYTES}s{LAYOUT_BYTES}sI")
_MOST_STEPS = 2.0**24


class Member(NamedTuple):
    """One model, as a changelog record names it."""

    model: bytes  # [6] the hash in its id
    layout: bytes  # [8] see `layout_hash`
    size: int  # float32 numbers of its own state

    @property
    def hash(self) -> str:
        """As in the model's id, after the @."""
        return self.model.hex()


def member_of(spec: ModelSpec) -> Member:
    """The entry of a model."""
    return Member(bytes.fromhex(spec.hash)[:_HASH_BYTES], layout_hash(spec), spec.state_size)


def in_order(specs: Sequence[ModelSpec]) -> list[int]:
    """The order of the members of a group: their numbers, by hash."""
    return sorted(range(len(specs)), key=lambda nth: specs[nth].hash)


def write_table(members: Sequence[Member]) -> bytes:
    """The table of a record: how many, and an entry for each."""
    return bytes([len(members)]) + b"".join(_ENTRY.pack(*member) for member in members)


def table_hash(members: Sequence[Member]) -> bytes:
    """What a record of a group has in the place of the layout's hash."""
    return hashlib.sha256(write_table(members)).digest()[:LAYOUT_BYTES]


def table_bytes(count: int) -> int:
    """The length of the table of so many members."""
    return 1 + count * _ENTRY.size


def read_table(value: bytes, at: int, end: int) -> tuple[Member, ...] | None:
    """The table that begins at `at`; None where it is cut short."""
    count = value[at] if at < end else 0
    if not 1 < count <= MOST_MEMBERS or at + table_bytes(count) > end:
        return None
    return tuple(Member(*_ENTRY.unpack_from(value, at + table_bytes(nth))) for nth in range(count))


class StateLayout:
    """Where the state of each member is in the state of a group; `members`, in order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        more = len(members) > 1
        ends = np.cumsum([member.size + more for member in members]).tolist()
        self.size: int = ends[-1]  # float32 numbers
        self.slices = [slice(end - m.size - more, end - more) for end, m in zip(ends, members, strict=True)]
        self.steps_at = np.array(ends) - 1 if more else None  # [members] where the steps of each are

    def initial_state(self, specs: Sequence[ModelSpec]) -> NDArray[np.float32]:
        """[size], of the models in this order; read-only."""
        initial = np.zeros(self.size, dtype=np.float32)
        for part, spec in zip(self.slices, specs, strict=True):
            initial[part] = np.array(spec.initial_state, dtype=np.float32)
        initial.flags.writeable = False
        return initial


def sources(
    members: Sequence[Member], found: Sequence[Member], *, maker: int, heir: int, last: str = ""
) -> list[int | None]:
    """Which of the `found` states each member continues; None = none, it begins at its initial state.

    A state of the same model is continued exactly. Of a state whose model is not known, or is not here any more, the
    layout decides, as where one model follows another: the first goes to `maker`, the second to `heir`.

    Args:
        members: of the group that continues.
        found: what there is.
        maker: the member that takes a state of an unknown model.
        heir: the member that takes the state of a model that has gone.
        last: hash of the model that has answered: of several that have gone, its state goes first.
    """
    known = {each: nth for nth, each in enumerate(found)}
    taken: list[int | None] = [known.get(member) for member in members]
    for nth, each in sorted(enumerate(found), key=lambda pair: pair[1].hash != last):
        taker = maker if each.model == UNKNOWN else heir
        if nth not in taken and taken[taker] is None and members[taker].layout == each.layout:
            taken[taker] = nth
    return taken


def carry(
    taken: Sequence[int | None],
    source: StateLayout,
    states: NDArray[np.float32],
    steps: NDArray[np.int64],
    layout: StateLayout,
    target: NDArray[np.float32],
) -> None:
    """Put states of one group in their places in those of another.

    Args:
        taken: see `sources`.
        source: of `states`.
        states: [series, source state].
        steps: [series] since the initial state, for a source without steps of its own.
        layout: of `target`.
        target: [series, target state]; only parts of members with a source change.
    """
    for nth, of in enumerate(taken):
        if of is None:
            continue
        target[:, layout.slices[nth]] = states[:, source.slices[of]]
        if layout.steps_at is not None:
            target[:, layout.steps_at[nth]] = np.minimum(steps_of(source, states, steps, of), _MOST_STEPS)


def steps_of(
    layout: StateLayout, states: NDArray[np.float32], steps: NDArray[np.int64], member: int
) -> NDArray[np.int64]:
    """[series] the steps that a member has taken; `states` [series, state], `steps` [series] those of a lone model."""
    return steps if layout.steps_at is None else states[:, layout.steps_at[member]].astype(np.int64)
