"""The limit on dead letters: a few are mistakes, but many within a short time are a fault upstream."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

from tidecast.service.errors import DeadLetterFlood
from tidecast.service.pipeline.dead_letters import DeadLetterReason


class DeadLetterLimit:
    """Counts dead letters over a sliding window and stops the worker when there are too many."""

    def __init__(self, limit: int, window_seconds: float, clock: Callable[[], float]) -> None:
        self._limit, self._window, self._clock = limit, window_seconds, clock
        self._recent: deque[tuple[float, dict[DeadLetterReason, int]]] = deque()
        self._total = 0

    def add(self, by_reason: Mapping[DeadLetterReason, int]) -> None:
        """Count one batch's dead letters."""
        now = self._clock()
        if n := sum(by_reason.values()):
            self._recent.append((now, dict(by_reason)))
            self._total += n
        while self._recent and self._recent[0][0] < now - self._window:
            self._total -= sum(self._recent.popleft()[1].values())

    def check(self, topic: str) -> None:
        """Raise DeadLetterFlood once the window holds more than the limit."""
        if not self._limit or self._total <= self._limit:
            return
        reasons: Counter[DeadLetterReason] = Counter()
        for _, counts in self._recent:
            reasons.update(counts)
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        raise DeadLetterFlood(
            f"{self._total} dead letters within {self._window:g} s, more than the limit of {self._limit}: {listed}",
            do=f"They are in the topic {topic}, each with its reason in the headers. Fix what sends them, or raise "
            "--dead-letter-limit (0 = no limit), and start again.",
        )
