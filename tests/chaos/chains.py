"""Chains: one model stepping one series on from some state, reading after reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.chaos.readings import Readings, Series
from tidecast.service.model.session import Float32, Model


@dataclass(frozen=True, slots=True)
class Start:
    """A model takes up a series. Readings are counted from 0 in their series.

    Attributes:
        one: the series.
        model: its place in the list of models.
        first: the first reading that it steps.
        shown: the first one that it answers; those from `first` on are silent before it.
        last: the last one, inclusive.
        begun: the reading at which the count of steps is 0; before `first` where a state was carried.
        state: [state], before `first`.
    """

    one: Series
    model: int
    first: int
    shown: int
    last: int
    begun: int
    state: Float32


@dataclass(frozen=True, slots=True)
class Chain:
    """What came of it; each array has a row for each reading from `start.first` to `start.last`.

    Attributes:
        start: how it began.
        y: [readings, horizon, targets, quantiles].
        score: [readings, diagnostics].
        states: [readings, state], after each step.
    """

    start: Start
    y: Float32
    score: Float32
    states: Float32

    def steps(self, reading: int) -> int:
        """How many steps the state has after this reading."""
        return reading + 1 - max(self.start.begun, *(at for at in (0, *self.start.one.restarts) if at <= reading))

    def state(self, reading: int) -> Float32:
        """[state], after this reading."""
        return self.states[reading - self.start.first]


def advance(model: Model, readings: Readings, starts: Sequence[Start]) -> list[Chain]:
    """A chain for each start, all of one model; step k of all is one call: rows of a batch do not know each other."""
    spec = model.spec
    sizes = np.array([s.last + 1 - s.first for s in starts], np.int64)
    begin = np.concatenate([[0], np.cumsum(sizes)])  # of each chain's rows
    n = int(begin[-1])
    y = np.empty((n, spec.horizon, len(spec.targets), len(spec.quantiles)), np.float32)
    score = np.empty((n, len(spec.diagnostics)), np.float32)
    states = np.empty((n, spec.state_size), np.float32)
    order = np.argsort(-sizes, kind="stable")
    source = np.array([s.one.row + s.first for s in starts], np.int64)[order]
    target, length = begin[:-1][order], sizes[order]
    state = np.array([s.state for s in starts], np.float32)[order]
    for k in range(int(sizes.max(initial=0))):
        m = int(np.searchsorted(-length, -k))  # so many are longer than k
        rows, at = target[:m] + k, source[:m] + k
        state = np.where(readings.fresh[at, np.newaxis], model.initial_state, state[:m])
        y[rows], state, score[rows] = model.step(readings.x[at], readings.ts[at], state)
        states[rows] = state
    parts = [slice(a, b) for a, b in pairwise(begin)]
    return [Chain(start, y[at], score[at], states[at]) for start, at in zip(starts, parts, strict=True)]
