"""Parts of readings that wait for others of the same series and time, and their bytes in the changelog."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

from tidecast.service.errors import ChangelogError
from tidecast.service.timestamps import MAX_TS_MS, MIN_TS_MS

MAX_GROUPS = 64  # of one series; beyond that the oldest is answered


class Group(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The parts of one reading. A value is there under its feature's name, NaN where it was said to be missing."""

    ts: int  # ms, of its first part
    values: dict[str, float]


class Waiting(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What waits of one series: groups in the order of time, all later than the newest reading that was answered."""

    answered: int  # offset of the last reading answered, -1 = none; the state's own offset is that of the last part
    groups: list[Group]

    @property
    def parts(self) -> int:
        """How many values wait."""
        return sum(len(group.values) for group in self.groups)


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Waiting)


def write_waiting(waiting: Waiting) -> bytes:
    """Its bytes; equal where it is equal."""
    return _encoder.encode(waiting)


def read_waiting(data: bytes) -> Waiting:
    """What `write_waiting` has written.

    Raises:
        ChangelogError: these bytes are something else, or hold what a worker does not write.
    """
    try:
        found = _decoder.decode(data)
        fine = (
            -1 <= found.answered < 2**63
            and 0 < len(found.groups) <= MAX_GROUPS
            and all(MIN_TS_MS <= group.ts <= MAX_TS_MS and group.values for group in found.groups)
            and all(one.ts < later.ts for one, later in pairwise(found.groups))
            and not any(math.isinf(value) for group in found.groups for value in group.values.values())
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        fine = False
    if not fine:
        raise ChangelogError("a changelog record has waiting parts that no worker writes")
    return found
