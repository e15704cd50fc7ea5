"""Where a model took up a series from another one. The forecasts tell: only the right state gives their numbers.

Between two models with one layout of the state, the new one continues from a state that the old one left: the last one,
or, after a crash, an older one, from which the new model stepped silently. With another layout, the new one has
stepped the last so many readings, from its initial state.

Not told apart from a fault: a third model that stepped a series silently and answered nothing of it in between.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tests.chaos.answers import Answer, Nearness
from tests.chaos.chains import Chain, Start, advance
from tests.chaos.readings import Place, Readings, Series
from tidecast.service.config import settings
from tidecast.service.model.compatibility import layout_hash
from tidecast.service.model.session import Model

LOOK_BACK = 400  # readings of a series; more than any storm has between two flushes of a state
PROBE = 8  # so many forecasts after a hand-over tell which state it was
ROWS = 500_000  # stepped in one go

CARRIED, OLDER, REBUILT, BACK = "carried", "carried from an older state", "rebuilt", "back to an older model"


@dataclass(frozen=True, slots=True)
class Change:
    """From the reading `shown` to `last`, a series was answered by another model than before."""

    one: Series
    model: int
    shown: int
    last: int
    before: Sequence[Chain]  # of that series, oldest first; not empty


Candidates = Callable[[Change], Iterable[Start]]


class HandOvers:
    """Finds the start of each change's chain; `kinds` counts what was found."""

    def __init__(
        self, models: Sequence[Model], readings: Readings, answers: Mapping[Place, Answer], near: Nearness
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self._models, self.readings, self._answers, self._near = models, readings, answers, near
        self._layouts = [layout_hash(model.spec) for model in models]
        # (partition, model) -> offset from which it was rebuilt: series of one partition are rebuilt together, mostly,
        # so where one began, the next one is tried first. Only a matter of speed.
        self._began: dict[tuple[int, int], int] = {}

    def starts(self, changes: Sequence[Change]) -> list[Start]:
        """The likeliest start of each, all of one model: the one with which most forecasts are right."""
        leaders = {c.one.partition: c for c in reversed(changes)}
        found: dict[bytes, Start] = {}
        for wave in (list(leaders.values()), [c for c in changes if leaders[c.one.partition] is not c]):
            doubtful = self._settle(wave, self._nearest, found, last_try=False)
            self._settle(doubtful, self._all, found, last_try=True)
        return [found[c.one.key] for c in changes]

    def _settle(
        self, changes: Sequence[Change], candidates: Candidates, found: dict[bytes, Start], *, last_try: bool
    ) -> list[Change]:
        """Choose among the candidates; returns the changes that none fits wholly, unless it is the last try."""
        doubtful = []
        for change, starts, hits in self._tried(changes, candidates):
            best = int(hits.argmax()) if len(starts) else -1  # the first of equals
            if not last_try and (best < 0 or hits[best] < 1):
                doubtful.append(change)
                continue
            start = starts[best]
            found[change.one.key] = dataclasses.replace(start, last=change.last)
            if hits[best] > 0:
                self._count(change, start)
        return doubtful

    def _count(self, change: Change, start: Start) -> None:
        if not self._carries(change):
            self.kinds[REBUILT] += 1
            self._began[change.one.partition, change.model] = change.one.offsets[start.first]
        else:
            self.kinds[CARRIED if start.first == change.shown else OLDER] += 1
        self.kinds[BACK] += change.model < change.before[-1].start.model

    # Which starts there could have been ------------------------------------------------------------------------

    def _carries(self, change: Change) -> bool:
        return self._layouts[change.model] == self._layouts[change.before[-1].start.model]

    def _nearest(self, change: Change) -> Iterable[Start]:
        if self._carries(change):
            return islice(self._carried(change), 1)
        began = self._began.get((change.one.partition, change.model))
        if began is None:
            return ()
        at = bisect_left(change.one.offsets, began)
        return (start for start in self.rebuilt(change) if abs(start.first - at) <= 2)

    def _all(self, change: Change) -> Iterable[Start]:
        return islice(self._carried(change), LOOK_BACK) if self._carries(change) else self.rebuilt(change)

    def _carried(self, change: Change) -> Iterator[Start]:
        """From each state of the chains before, the last one first, back to where their layout began."""
        oldest = change.before[-1]
        for chain in reversed(change.before):
            if self._layouts[chain.start.model] != self._layouts[change.model]:
                break
            oldest = chain
            for reading in range(chain.start.last, chain.start.shown - 1, -1):
                yield self._start(change, reading + 1, chain.start.begun, chain.state(reading))
        first, shown = oldest.start.first, oldest.start.shown
        if first < shown:  # what the hand-over to this layout wrote
            yield self._start(change, shown, oldest.start.begun, oldest.state(shown - 1))
        else:  # nothing of the series was written yet
            yield self._start(change, shown, shown, self._models[change.model].initial_state)

    def restarted(self, change: Change) -> Start | None:
        """The start of a series whose state was set aside: from the initial state, at a reading that was replayed or
        at the next one. None where no such start has all its forecasts right."""
        tried = self._tried([change], lambda c: islice(self.rebuilt(c, 0), LOOK_BACK))
        for _, starts, hits in tried:
            if len(starts) and hits.max() == 1:
                return dataclasses.replace(starts[int(hits.argmax())], last=change.last)
        return None

    def rebuilt(self, change: Change, silent: int | None = None) -> Iterator[Start]:
        """From the initial state, over so many readings, or those that make it warm, and over more."""
        model = self._models[change.model]
        silent = model.spec.warmup_steps if silent is None else silent
        late = {}  # first reading -> starts: a replay that begins at a late reading takes it for the series' first
        for at, (offset, _, _) in enumerate(change.one.passed):
            late.setdefault(bisect_left(change.one.offsets, offset), []).append(at)
        for first in range(max(0, change.shown - silent), -1, -1):
            yield self._start(change, first, first, model.initial_state)
            for at in late.get(first, ()):
                if (found := self._after_late(change.one, model, at, first)) is not None:
                    yield self._start(change, first, *found)

    @staticmethod
    def _after_late(one: Series, model: Model, at: int, first: int) -> tuple[int, np.ndarray] | None:
        """Where the steps begin and the state before the reading `first`, of a replay from a late one before it.

        None where so many steps are missing then that the series starts again.
        """
        step_ms, most = model.spec.step_ms, settings.default("max_gap_steps")
        state, last = model.initial_state[np.newaxis], None
        due = [(ts, x) for offset, ts, x in one.passed[at:] if offset < one.offsets[first]]
        for ts, x in [*due, (one.ts[first], None)]:
            if last is not None and ts <= last:
                continue
            missing = [] if last is None else range(last + step_ms, ts, step_ms)
            if len(missing) > most:
                return None
            steps = [(t, [np.nan] * len(model.spec.features)) for t in missing] + ([] if x is None else [(ts, x)])
            for t, values in steps:
                _, state, _ = model.step(np.array([values], np.float32), np.array([t], np.int64), state)
            last = ts
        return first - (one.ts[first] - one.passed[at][1]) // step_ms, state[0]

    @staticmethod
    def _start(change: Change, first: int, begun: int, state: np.ndarray) -> Start:
        last = min(change.last, change.shown + PROBE - 1)
        return Start(change.one, change.model, first, change.shown, last, begun, state)

    # Which of them it was --------------------------------------------------------------------------------------

    def _tried(
        self, changes: Sequence[Change], candidates: Candidates
    ) -> Iterator[tuple[Change, list[Start], np.ndarray]]:
        """Of each change its candidates, and which share of the forecasts each of them has right."""
        batch: list[tuple[Change, list[Start]]] = []
        rows = 0
        for change in changes:
            starts = list(candidates(change))
            batch.append((change, starts))
            rows += sum(start.last + 1 - start.first for start in starts)
            if rows > ROWS:
                yield from self._judged(batch)
                batch, rows = [], 0
        yield from self._judged(batch)

    def _judged(self, batch: Sequence[tuple[Change, list[Start]]]) -> Iterator[tuple[Change, list[Start], np.ndarray]]:
        of: dict[int, list[Start]] = defaultdict(list)
        for change, starts in batch:
            of[change.model] += starts
        chains = {m: iter(advance(self._models[m], self.readings, starts)) for m, starts in of.items()}
        for change, starts in batch:
            yield change, starts, self._hits(change, list(islice(chains[change.model], len(starts))))

    def _hits(self, change: Change, chains: Sequence[Chain]) -> np.ndarray:
        """[chains], the share of the forecasts that each has right."""
        if not chains:
            return np.empty(0)
        n = chains[0].start.last + 1 - change.shown  # forecasts to look at
        rows, answers = [], []
        for i, offset in enumerate(change.one.offsets[change.shown : change.shown + n]):
            answer = self._answers.get((change.one.partition, offset))
            if answer is not None and answer.model == change.model:
                rows.append(i)
                answers.append(answer)
        y = np.stack([chain.y[-n:][rows] for chain in chains])  # [chains, forecasts, horizon, targets, quantiles]
        score = np.stack([chain.score[-n:][rows] for chain in chains])
        same = self._near.same_y(np.stack([a.y for a in answers]), y).all(axis=(2, 3, 4))
        return (same & self._near.same_score(np.stack([a.score for a in answers]), score, y).all(axis=2)).mean(axis=1)
