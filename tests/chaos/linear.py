"""What the workers should have done, worked out from the topics alone: one series, one step, one after the other.

Which model answered a reading is what its forecast says; all else follows from the input and from the rules by which
one model takes over from another (`handover`). Knows nothing of the worker.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from tests.chaos.answers import Answer, Nearness
from tests.chaos.chains import Chain, Start, advance
from tests.chaos.handover import Change, HandOvers
from tests.chaos.readings import Place, Readings, Series
from tidecast.service.model.session import Model

EXACT = Nearness(0.0, 0.0)


class Run:
    """What each forecast should be."""

    def __init__(self) -> None:
        self.hand_overs: Counter[str] = Counter()
        self.restarts: Counter[bytes] = Counter()

    def answering(self, key: bytes, reading: int) -> Chain:
        """The chain whose forecast of this reading of the series counts."""
        raise NotImplementedError


class LinearRun(Run):
    """The models over the whole input, in the order of its offsets.

    Args:
        models: in the order in which they were published; with the first one every series begins, unless its first
            forecast says otherwise.
        readings: the input.
        answers: the forecast of each reading; only a change of model is looked for in them.
        near: how far a forecast may be from the one that tells where a model took over.
        damaged: key -> how often its state was damaged and set aside; so often it may start again.

    Attributes:
        chains: key -> its chains, oldest first; each answers the readings from its `shown` to its `last`.
        hand_overs: how many of each kind.
        restarts: how often each series with a damaged state started again.
    """

    def __init__(
        self,
        models: Sequence[Model],
        readings: Readings,
        answers: Mapping[Place, Answer] | None = None,
        near: Nearness = EXACT,
        damaged: Mapping[bytes, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.chains: dict[bytes, list[Chain]] = {key: [] for key in readings.series}
        answers = answers or {}
        spans = {one.key: _spans(one, answers) for one in readings.series.values()}
        search = HandOvers(models, readings, answers, near)
        for nth in range(max(map(len, spans.values()), default=0)):
            for m, model in enumerate(models):
                changes = [
                    Change(readings.series[key], m, *own[nth][1:], self.chains[key])
                    for key, own in spans.items()
                    if len(own) > nth and own[nth][0] == m
                ]
                if nth:
                    starts = search.starts(changes)
                else:
                    starts = [Start(c.one, m, 0, 0, c.last, 0, model.initial_state) for c in changes]
                for chain in advance(model, readings, starts):
                    self.chains[chain.start.one.key].append(chain)
        self.hand_overs = search.kinds
        for key, most in damaged.items():
            while self.restarts[key] < most and self._restart(key, models, answers, search, near):
                self.restarts[key] += 1

    def _restart(
        self,
        key: bytes,
        models: Sequence[Model],
        answers: Mapping[Place, Answer],
        search: HandOvers,
        near: Nearness,
    ) -> bool:
        """Cut the series where its forecasts are no longer those of its chain, and begin another there; False where
        none fits, or all are right."""
        own = self.chains.get(key, [])
        for at, chain in enumerate(own):
            start = chain.start
            for reading in range(start.shown, start.last + 1):
                answer = answers.get((start.one.partition, start.one.offsets[reading]))
                row = reading - start.first
                if answer is None or near.same_y(answer.y, chain.y[row]).all():
                    continue
                change = Change(start.one, start.model, reading, start.last, own[: at + 1])
                again = search.restarted(change)
                if again is None:
                    return False
                first = dataclasses.replace(chain, start=dataclasses.replace(start, last=reading - 1))
                begun = list(advance(models[start.model], search.readings, [again]))
                self.chains[key] = [*own[:at], *([first] if reading > start.shown else []), *begun, *own[at + 1 :]]
                return True
        return False

    def answering(self, key: bytes, reading: int) -> Chain:
        """The chain whose forecast of this reading of the series counts."""
        return next(c for c in self.chains[key] if c.start.shown <= reading <= c.start.last)


def _spans(one: Series, answers: Mapping[Place, Answer]) -> list[tuple[int, int, int]]:
    """Model, first and last reading of each stretch that one model answered, with unanswered ones after it."""
    said = [answers.get((one.partition, offset)) for offset in one.offsets]
    known = [None if answer is None else answer.model for answer in said]
    now = known[0] or 0
    by = [now := now if m is None else m for m in known]
    stretches = [[i for i, _ in group] for _, group in groupby(enumerate(by), key=lambda pair: pair[1])]
    return [(by[own[0]], own[0], own[-1]) for own in stretches]
