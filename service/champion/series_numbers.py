"""Small numbers for the series that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLE = 1_024  # series at most that are compared at a time: those that come first


class SeriesNumbers:
    """Numbers below SAMPLE for at most so many series; the number of one that has gone is given to another."""

    def __init__(self) -> None:
        self._of: dict[bytes, int] = {}
        self._free = list(range(SAMPLE - 1, -1, -1))  # the smallest last

    def of(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """[keys] the number of each; SAMPLE for those that are not compared."""
        known = self._of
        for key in self._new(keys) if self._free else ():
            if not self._free:
                break
            known[key] = self._free.pop()
        return np.array([known.get(key, SAMPLE) for key in keys], dtype=np.int64)

    def _new(self, keys: Sequence[bytes]) -> Iterable[bytes]:
        return dict.fromkeys(key for key in keys if key not in self._of)

    def keep(self, active: NDArray[np.bool_]) -> None:
        """Forget the series whose number is not `active` [SAMPLE]."""
        gone = [key for key, number in self._of.items() if not active[number]]
        self._free += [self._of.pop(key) for key in gone]
        self._free.sort(reverse=True)
