"""The loop's signs of life: its own, for /livez and the watchdog, and Kafka's."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidecast.service.errors import BrokerError

log = logging.getLogger("tidecast.worker")

STALLED_SECONDS = 30.0  # a loop that has not turned for so long is reported by /livez
SAY_SECONDS = 5.0  # a wait for Kafka is logged this often
_PROBE_SECONDS = 10.0  # an idle worker asks this often whether the broker is still there


class Liveness:
    """When the loop last turned, and when Kafka was last heard of."""

    def __init__(self, clock: Callable[[], float], on_answer: Callable[[], object] = lambda: None) -> None:
        self._clock, self._on_answer = clock, on_answer
        self._turned_at = self._answered_at = clock()
        self.allowed = STALLED_SECONDS  # s that may pass until it turns again
        self._probe_again = 0.0

    def note_turn(self) -> None:
        """The loop turns."""
        self._turned_at = self._clock()

    def note_answer(self) -> None:
        """Kafka has answered."""
        self._answered_at = self._clock()
        self._on_answer()

    def allow(self, seconds: float) -> AllowedWait:
        """A context: while the loop waits for Kafka, with a time limit of its own, it is not stalled."""
        return AllowedWait(self, STALLED_SECONDS + seconds)

    def not_live(self) -> str | None:
        """Why the process should be restarted, None where it is well."""
        still = self._clock() - self._turned_at
        return f"the loop has not turned for {still:.0f} s" if still > self.allowed else None

    def probe(self, ask: Callable[[], object], timeout_s: float) -> None:
        """With nothing arriving, silence may mean that the broker is away: ask, and ask again until it answers.

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
    """Made by `Liveness.allow`: one is made at each turn of the loop, and a generator of contextlib's takes as long."""

    __slots__ = ("_before", "_liveness", "_seconds")

    def __init__(self, liveness: Liveness, seconds: float) -> None:
        self._liveness, self._seconds = liveness, seconds

    def __enter__(self) -> None:
        liveness = self._liveness
        liveness.note_turn()
        self._before, liveness.allowed = liveness.allowed, max(liveness.allowed, self._seconds)

    def __exit__(self, *_: object) -> None:
        self._liveness.note_turn()  # first: another thread looks at both
        self._liveness.allowed = self._before
