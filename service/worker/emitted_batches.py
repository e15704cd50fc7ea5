"""What was emitted and is not committed yet: counted by the commit that contains it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from tidecast.service.observability.metrics import EmittedBatch, Metrics
from tidecast.service.pipeline.batch import BatchResult, ScoredBatch

log = logging.getLogger("tidecast.worker")

_NAMED_A_MINUTE = 10
_NAMES = 20


class RecoveryLog:
    """Names the series that start again because their clock was ahead; `clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._left, self._until = clock, 0, clock()

    def say(self, keys: Sequence[bytes]) -> None:
        """One line for each series, up to a limit for each minute."""
        if self._clock() >= self._until:
            self._left, self._until = _NAMED_A_MINUTE, self._clock() + 60.0
        for key in keys[: max(self._left, 0)]:
            log.warning(
                "a series had a reading far ahead, which later ones contradict; it starts again",
                extra={"key": key.decode("utf-8", "backslashreplace")},
            )
        if len(keys) > self._left >= 0:
            log.warning(
                "more such series are only counted for a minute", extra={"in": "tidecast_clock_recoveries_total"}
            )
            self._left = -1
        self._left -= len(keys)


class NameLog:
    """Names, once, what the long form sends that is no feature."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    @property
    def full(self) -> bool:
        """True once no more are named."""
        return len(self._named) >= _NAMES

    def say(self, names: Iterable[str]) -> None:
        """One line for those that are new, up to a limit for all time."""
        new = list(dict.fromkeys(name for name in names if name not in self._named))[: _NAMES - len(self._named)]
        if not new:
            return
        self._named.update(new)
        log.warning(
            "values under these names are no feature and are left out" + ("; later names are only counted" * self.full),
            extra={"names": new, "in": "tidecast_input_unused_values_total"},
        )


class EmittedBatches:
    """Batches in the order in which they were emitted, without their records."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float],
        on_scored: Callable[[Sequence[ScoredBatch]], None] = lambda batches: None,
    ) -> None:
        self._on_scored = on_scored  # called with the scores of what is committed, where there are shadows
        self._metrics, self._recoveries, self._unused = metrics, RecoveryLog(clock), NameLog()
        self._batches: list[EmittedBatch] = []
        self._scored: list[ScoredBatch | None] = []  # of each of them
        self._asked = 0  # how many of them the last commit contains

    def add(self, result: BatchResult) -> None:
        """Note a batch that was handed to Kafka."""
        self._batches.append(self._metrics.emitted(result))
        self._scored.append(result.scored)

    def ask(self) -> None:
        """Note that Kafka was asked to commit all of them."""
        self._asked = len(self._batches)

    def count(self) -> None:
        """Count what the commit contains for which Kafka was asked: it succeeded."""
        self._metrics.count(self._batches[: self._asked])
        if recovered := [key for each in self._batches[: self._asked] for key in each.counts.recovered]:
            self._recoveries.say(recovered)
        if not self._unused.full:
            self._unused.say(name for each in self._batches[: self._asked] for name in each.counts.unused_names)
        if scored := [each for each in self._scored[: self._asked] if each is not None]:
            self._on_scored(scored)
        del self._batches[: self._asked], self._scored[: self._asked]
        self._asked = 0

    def settle(self) -> None:
        """Count all that is left: there is nothing to commit for it, as where readings were only replayed."""
        if self._batches:
            self.ask()
            self.count()

    def drop(self) -> None:
        """Forget them: none is committed, and their readings are read again."""
        self._batches, self._scored, self._asked = [], [], 0
