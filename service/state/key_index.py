"""Where a key's series probably has its slot, for many keys at once.

A dict of many series is not in the processor's cache: it waits for memory four times at each key, one key after the
other. Arrays fetch for many keys at once. So each key has two cells, as in cuckoo hashing (Pagh and Rodler, 2004), that
may hold its slot, and a slot's row holds the key itself. A guess that does not hold is looked up in the dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_CELLS = 4  # for each slot: few keys share one
_WORD = 8  # bytes
_WIDEST = 64  # bytes of a row; a longer key is never guessed


class KeyIndex:
    """For the `slots` slots of a store, none of which it knows at first. What it finds is true to a key's last byte."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        bits = int(_CELLS * slots).bit_length()
        self._cells = np.zeros(1 << bits, dtype=np.int32)
        self._shift = np.uint64(64 - bits)
        self._begin(2 * _WORD)

    def _begin(self, width: int) -> None:
        """Rows of `width` bytes, of which nothing is known."""
        self._width = width
        # [slots] the key, filled up with zeros, and in the last byte its length and one; all zero = not known
        self._rows = np.zeros(self.slots, dtype=f"V{width}")
        # [words, 2] odd, and nobody's to know: which names share a cell is a matter of luck
        factors = np.random.default_rng().integers(1 << 63, size=(width // _WORD, 2), dtype=np.uint64)
        self._factors = factors * np.uint64(2) + np.uint64(1)

    def find(self, keys: Sequence[bytes | None], look_up: Callable[[Sequence[bytes | None]], Int64]) -> Int64:
        """The slots [keys] as `look_up` gives them, which is asked for those that are not guessed."""
        try:
            lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))  # type: ignore[arg-type]
        except TypeError:  # a record without a key
            return look_up(keys)
        longest = int(lengths.max(initial=0))
        if longest >= self._width < _WIDEST:
            self._begin(min(_WIDEST, (longest // _WORD + 1) * _WORD))
        # numpy cuts off what is longer than a row, and fills up what is shorter
        rows = np.fromiter(keys, dtype=f"S{self._width}", count=len(keys)).view(self._rows.dtype)
        fits = lengths < self._width
        rows.view(np.uint8).reshape(-1, self._width)[:, -1] = np.where(fits, lengths + 1, 0)
        cells = self._cells_of(rows)
        slots = self._cells[cells[:, 0]].astype(np.int64)
        wrong = np.flatnonzero((self._rows.take(slots) != rows) | ~fits)
        if len(wrong):
            slots[wrong] = second = self._cells[cells[wrong, 1]].astype(np.int64)
            wrong = wrong[(self._rows.take(second) != rows[wrong]) | ~fits[wrong]]
        if len(wrong):
            slots[wrong] = found = look_up([keys[i] for i in wrong.tolist()])
            known = wrong[(found >= 0) & fits[wrong]]
            self._learn(slots[known], rows[known], cells[known])
        return slots

    def remove(self, slot: int) -> None:
        """The slot is no longer that of the key that it had."""
        self._rows[slot] = b""

    def _cells_of(self, rows: NDArray[np.void]) -> Int64:
        """[rows, 2]"""
        words = rows.view(np.uint64).reshape(-1, len(self._factors))  # [rows, words]
        mixed = words @ self._factors
        mixed ^= mixed >> np.uint64(32)  # numbered names lie on a lattice, which products alone would keep
        cells: Int64 = ((mixed * self._factors[0]) >> self._shift).view(np.int64)
        return cells

    def _learn(self, slots: Int64, rows: NDArray[np.void], cells: Int64) -> None:
        """These have these keys. The first cell stays with whom it belongs to, so that two do not take turns in it."""
        self._rows[slots] = rows
        holders = self._rows.take(self._cells[cells[:, 0]])
        taken = self._cells_of(holders)[:, 0] == cells[:, 0]
        self._cells[np.where(taken, cells[:, 1], cells[:, 0])] = slots
