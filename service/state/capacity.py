"""How many series a worker keeps in memory, where `--max-series auto` leaves that to the memory limit."""

from __future__ import annotations

from typing import Literal

from tidecast.service.memory_limit import MemoryLimit, memory_limit

MOST_SERIES = 1_000_000  # that `auto` chooses
# Measured, with some reserve: `python benchmarks/memory.py` and `benchmarks/memory_limit.py`.
BYTES_PER_SERIES = 512  # besides the state: the key, and where it is in a dict, a list and twelve arrays
RESERVED_BYTES = 224 << 20  # the worker without series: its modules, the Kafka client's buffers, the model
# During a swap, the states of the next model too. Before that, this half is for the process that checks the model.
_SHARE = 2


def most_series(setting: int | Literal["auto"], state_size: int, limit: MemoryLimit | None = None) -> int:
    """The number of series to keep: `setting`, or for "auto" what half of the memory limit has room for.

    Args:
        setting: `max_series` of the settings.
        state_size: float32 numbers of one state.
        limit: what counts as the memory limit; None = that of this process.
    """
    if setting != "auto":
        return setting
    room = (limit or memory_limit()).bytes - RESERVED_BYTES
    return max(1, min(MOST_SERIES, room // (_SHARE * bytes_per_series(state_size))))


def bytes_per_series(state_size: int) -> int:
    """Bytes of memory that a series takes, with a key of up to 50 bytes."""
    return 4 * state_size + BYTES_PER_SERIES
