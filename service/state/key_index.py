"""A hash index from keys to slots, for many keys at once.

A dict of many series does not fit in the CPU cache: each lookup waits for memory four times, one key after the other.
Arrays are read for many keys at once. Each key has two cells that may hold its slot, as in cuckoo hashing (Pagh and
Rodler, 2004), and the row of the slot holds the key itself. A key that is not found this way is looked up in the dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_CELLS = 4  # per slot, so that few keys share one
_WORD = 8  # bytes
_WIDEST = 64  # bytes of a row; longer keys are always looked up


class KeyIndex:
    """An index of the `slots` slots of a store, empty at first. Keys are compared in full, so a slot found is right."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        bits = int(_CELLS * slots).bit_length()
        self._cells = np.zeros(1 << bits, dtype=np.int32)
        self._shift = np.uint64(64 - bits)
        self._begin(2 * _WORD)

    def _begin(self, width: int) -> None:
        """Start with empty rows of `width` bytes."""
        self._width = width
        # [slots] the key, padded with zeros; the last byte is its length plus one; all zero = empty
        self._rows = np.zeros(self.slots, dtype=f"V{width}")
        # [words, 2] odd and random, so that nobody can choose names that share a cell
        factors = np.random.default_rng().integers(1 << 63, size=(width // _WORD, 2), dtype=np.uint64)
        self._factors = factors * np.uint64(2) + np.uint64(1)

    def find(self, keys: Sequence[bytes | None], look_up: Callable[[Sequence[bytes | None]], Int64]) -> Int64:
        """The slots [keys], the same as `look_up(keys)`, which is called only for keys that are not found here."""
        try:
            lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))  # type: ignore[arg-type]
        except TypeError:  # a record without a key
            return look_up(keys)
        longest = int(lengths.max(initial=0))
        if longest >= self._width < _WIDEST:
            self._begin(min(_WIDEST, (longest // _WORD + 1) * _WORD))
        # numpy cuts keys that are longer than a row, and pads shorter ones
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
        """Forget the key of a slot."""
        self._rows[slot] = b""

    def _cells_of(self, rows: NDArray[np.void]) -> Int64:
        """[rows, 2]"""
        words = rows.view(np.uint64).reshape(-1, len(self._factors))  # [rows, words]
        mixed = words @ self._factors
        mixed ^= mixed >> np.uint64(32)  # without this, numbered names would fill the cells unevenly
        cells: Int64 = ((mixed * self._factors[0]) >> self._shift).view(np.int64)
        return cells

    def _learn(self, slots: Int64, rows: NDArray[np.void], cells: Int64) -> None:
        """Enter keys. A first cell in use by its own key is kept, so that two keys do not keep replacing each other."""
        self._rows[slots] = rows
        holders = self._rows.take(self._cells[cells[:, 0]])
        taken = self._cells_of(holders)[:, 0] == cells[:, 0]
        self._cells[np.where(taken, cells[:, 1], cells[:, 0])] = slots
