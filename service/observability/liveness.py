"""When the loop last turned, for /livez and the watchdog, and when Kafka last answered."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidecast.service.errors import BrokerError

log = logging.getLogger("tidecast.worker")

STALLED_SECONDS = 30.0  # a loop that has not turned for this long is reported by /livez
SAY_SECONDS = 5.0  # a wait for Kafka is logged this often
_PROBE_SECONDS = 10.0  # an idle worker checks this often whether the broker answers


class Liveness:
    """When the loop last turned, and when Kafka last answered."""

    def __init__(self, clock: Callable[[], float], on_answer: Callable[[], object] = lambda: None) -> None:
        self._clock, self._on_answer = clock, on_answer
        self._turned_at = self._answered_at = clock()
        self.allowed = STALLED_SECONDS  # s that may pass until the loop turns again
        self._probe_again = 0.0

    def note_turn(self) -> None:
        """Note that the loop has turned."""
        self._turned_at = self._clock()

    def note_answer(self) -> None:
        """Note that Kafka has answered."""
        self._answered_at = self._clock()
        self._on_answer()

    def allow(self, seconds: float) -> AllowedWait:
        """A context manager for a blocking call with a time limit: for that long the loop does not count as stalled."""
        return AllowedWait(self, STALLED_SECONDS + seconds)

    def not_live(self) -> str | None:
        """Why the process should be restarted; None if it is healthy."""
        still = self._clock() - self._turned_at
        return f"the loop has not turned for {still:.0f} s" if still > self.allowed else None

    def probe(self, ask: Callable[[], object], timeout_s: float) -> None:
        """While no records arrive, check that the broker still answers; try again until it does.

        Raises:
            BrokerError: it has not answered for `timeout_s`.
        """
        if self._clock() < max(self._answered_at + _PROBE_SECONDS, self._probe_again):
            return
        try:
            with self.allow(timeout_s):
                ask()
        except BrokerError as error:
            since = self._clock() - self._answered_at
            if since > _PROBE_SECONDS + timeout_s:
                raise
            self._probe_again = self._clock() + SAY_SECONDS
            log.warning("Kafka does not answer, waiting", extra={"seconds": round(since), "reason": error.what})
        else:
            self.note_answer()


class AllowedWait:
    """Made by `Liveness.allow` at each turn of the loop; a `contextlib.contextmanager` would be too slow."""

    __slots__ = ("_before", "_liveness", "_seconds")

    def __init__(self, liveness: Liveness, seconds: float) -> None:
        self._liveness, self._seconds = liveness, seconds

    def __enter__(self) -> None:
        liveness = self._liveness
        liveness.note_turn()
        self._before, liveness.allowed = liveness.allowed, max(liveness.allowed, self._seconds)

    def __exit__(self, *_: object) -> None:
        self._liveness.note_turn()  # first, since another thread reads both
        self._liveness.allowed = self._before
