"""What the workers should have done, worked out from the topics alone: one series, one step, one after the other.

Which model answered a reading is what its forecast says; all else follows from the input and from the rules by which
one model takes over from another (`handover`). Knows nothing of the worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from tests.chaos.answers import Answer, Nearness
from tests.chaos.chains import Chain, Start, advance
from tests.chaos.handover import Change, HandOvers
from tests.chaos.readings import Place, Readings, Series
from tidecast.service.model.session import Model

EXACT = Nearness(0.0, 0.0)


class LinearRun:
    """The models over the whole input, in the order of its offsets.

    Args:
        models: in the order in which they were published; with the first one every series begins, unless its first
            forecast says otherwise.
        readings: the input.
        answers: the forecast of each reading; only a change of model is looked for in them.
        near: how far a forecast may be from the one that tells where a model took over.

    Attributes:
        chains: key -> its chains, oldest first; each answers the readings from its `shown` to its `last`.
        hand_overs: how many of each kind.
    """

    def __init__(
        self,
        models: Sequence[Model],
        readings: Readings,
        answers: Mapping[Place, Answer] | None = None,
        near: Nearness = EXACT,
    ) -> None:
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
        self.hand_overs: Counter[str] = search.kinds

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
