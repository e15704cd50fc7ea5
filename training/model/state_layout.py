"""How the flat state of the graph is laid out, taken apart and put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tidecast.service.model.spec import StateSlice

Parts = list[tuple[str, tuple[int, ...]]]


class StateLayout:
    """The named slices of a state [batch, size].

    Args:
        first: names and shapes of the slices that have the batch first where they are used: [batch, slice].
        rest: likewise of those that have it last: [slice, batch].
        queues: names of those that lose their oldest entry at each step: the first of their first axis.
    """

    def __init__(self, first: Parts, rest: Parts, queues: Sequence[str]) -> None:
        self.slices: list[StateSlice] = []
        self.size = 0
        for name, shape in (*first, *rest):
            self.slices.append(StateSlice(name=name, start=self.size, shape=shape))
            self.size += math.prod(shape)
        self._first = self._pieces(first, queues)
        self._rest = self._pieces(rest, queues)
        self._empty = [name for name, shape in (*first, *rest) if 0 in shape]

    @staticmethod
    def _pieces(parts: Parts, queues: Sequence[str]) -> list[tuple[str, int]]:
        """What the slices are cut into, with sizes: of a queue the oldest entry and "+" the others."""
        out = []
        for name, shape in parts:
            size = math.prod(shape)
            entry = size // shape[0] if name in queues and shape[0] else size
            out += [(piece, count) for piece, count in ((name, entry), (name + "+", size - entry)) if count]
        return out

    def unpack(self, state: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state [batch, size] by names, and of each queue what stays of it, without its oldest entry.

        Of the first of the two, a queue is its oldest entry alone: it is due.
        """
        rest = [size for _, size in self._rest]
        sizes = [*(size for _, size in self._first), sum(rest)]
        *rows, small = state.split_with_sizes(sizes, dim=1) if len(sizes) > 1 else [state]
        columns = small.T.split_with_sizes(rest)
        empty = dict.fromkeys(self._empty, small[:, :0].T)
        found: list[dict[str, Tensor]] = [{}, {}]
        for (piece, _), part in zip([*self._first, *self._rest], [*rows, *columns], strict=True):
            found[piece.endswith("+")][piece.removesuffix("+")] = part
        return {**empty, **found[0]}, {**empty, **found[1]}


def columns(part: Tensor, targets: int) -> Tensor:
    """[rows * targets, batch] as [rows, targets * batch]: each target of each series is a column of its own."""
    return part if targets == 1 else part.reshape(part.shape[0] // targets, -1)
