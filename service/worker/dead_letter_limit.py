"""The limit on dead letters: a few are mistakes, but where they are most of the traffic, a fault upstream."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tidecast.service.errors import DeadLetterFlood
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.pipeline.batch import BatchResult

log = logging.getLogger("tidecast.worker")


@dataclass(slots=True)
class _Second:
    """What one second has brought."""

    at: float
    readings: int = 0
    reasons: Counter[DeadLetterReason] = field(default_factory=Counter)
    keys: Counter[bytes | None] = field(default_factory=Counter)


class DeadLetterLimit:
    """Counts dead letters over a sliding window, and stops the worker if there are too many and most readings are bad.

    Where only some keys send many, the worker continues, and the log names them: one broken sensor stops no other.
    """

    def __init__(self, limit: int, window_seconds: float, clock: Callable[[], float]) -> None:
        self._limit, self._window, self._clock = limit, window_seconds, clock
        self._recent: deque[_Second] = deque()
        self._total = self._readings = 0
        self._named: dict[bytes | None, float] = {}  # when the log named a key
        self._name_again = 0.0

    def add(self, result: BatchResult) -> None:
        """Count one batch."""
        now = self._clock()
        if not self._recent or now - self._recent[-1].at >= 1.0:
            self._recent.append(_Second(now))
        last, bad = self._recent[-1], len(result.dead_letters)
        last.readings += result.counts.readings
        self._readings += result.counts.readings
        if bad:
            last.reasons.update(result.counts.dead_letters)
            last.keys.update(result.dead_letters.keys)
            self._total += bad
        while self._recent[0].at < now - self._window:
            gone = self._recent.popleft()
            self._total -= gone.reasons.total()
            self._readings -= gone.readings

    def check(self, topic: str) -> None:
        """Name the keys with more dead letters than the limit.

        Raises:
            DeadLetterFlood: there are more than the limit, and they are most of the readings in the window.
        """
        if not self._limit or self._total <= self._limit:
            return
        if 2 * self._total <= self._readings:
            return self._name_keys(topic)
        reasons: Counter[DeadLetterReason] = Counter()
        for second in self._recent:
            reasons.update(second.reasons)
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common() if n)
        raise DeadLetterFlood(
            f"{self._total} dead letters within {self._window:g} s, more than the limit of {self._limit} and than half "
            f"of the readings: {listed}",
            do=f"They are in the topic {topic}, each with its reason in the headers. Fix what sends them, or raise "
            "--dead-letter-limit (0 = no limit), and start again.",
        )

    def _name_keys(self, topic: str) -> None:
        now = self._clock()
        if now < self._name_again:
            return
        self._name_again = now + 1.0
        keys: Counter[bytes | None] = Counter()
        for second in self._recent:
            keys.update(second.keys)
        self._named = {key: at for key, at in self._named.items() if now - at < self._window}
        for key, n in keys.most_common(10):
            if n > self._limit and key not in self._named:
                self._named[key] = now
                name = "" if key is None else key.decode("utf-8", "backslashreplace")
                log.warning(
                    "a key sends many dead letters; the other series are answered",
                    extra={"key": name, "dead_letters": n, "seconds": self._window, "topic": topic},
                )
