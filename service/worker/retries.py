"""What fails and is tried again: how long until the next attempt, and when to give up."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidecast.service.errors import Rejected, TidecastError

log = logging.getLogger("tidecast.worker")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0
_FORGET_S = 10.0
_REJECTED_S = 10.0  # for so long a broker that has just started may not know a topic or a right yet


class Retries:
    """The failures since the last success. The wait before the next attempt doubles with each of them.

    Nothing but a success ends them, or `note_idle`. So what can never succeed ends the worker, whatever else works.

    Args:
        failed: the log line of a failure; only written where the reason is another than the last one's.
        again: the log line of a success after failures.
        timeout_s: failures are endured for so long.
        clock: seconds, monotonic.
        first_wait_s: after the first failure.
    """

    def __init__(
        self, failed: str, again: str, timeout_s: float, clock: Callable[[], float], first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        self._failed, self._again, self._timeout_s, self._clock = failed, again, timeout_s, clock
        self._first_wait_s = first_wait_s
        self._forget()

    def _forget(self) -> None:
        self._since: float | None = None  # the first failure
        self._idle_since: float | None = None
        self._wait_s = self._first_wait_s
        self._next_at = 0.0
        self.reason: str | None = None  # of the last failure; None = the last attempt succeeded

    @property
    def seconds_to_wait(self) -> float:
        """Until the next attempt."""
        return max(self._next_at - self._clock(), 0.0)

    def add(self, error: TidecastError) -> None:
        """Note a failure.

        Raises:
            TidecastError: the error itself, once `timeout_s` has passed; of a refusal, after 10 s.
        """
        self._forget_if_idle()
        now = self._clock()
        if self._since is None:
            self._since = now
        limit = min(self._timeout_s, _REJECTED_S) if isinstance(error, Rejected) else self._timeout_s
        if now - self._since >= limit:
            raise error
        if error.what != self.reason:
            log.warning(self._failed, extra={"reason": error.what})
        self.reason, self._idle_since, self._next_at = error.what, None, now + self._wait_s
        self._wait_s = min(max(2 * self._wait_s, FIRST_WAIT_S), LONGEST_WAIT_S)

    def end(self) -> None:
        """Note a success."""
        if self._since is not None:
            log.info(self._again, extra={"seconds": round(self._clock() - self._since, 1)})
            self._forget()

    def note_idle(self) -> None:
        """Note that there is nothing to try. After 10 s of that, what had failed is another's to do."""
        self._forget_if_idle()
        if self._since is not None and self._idle_since is None:
            self._idle_since = self._clock()

    def _forget_if_idle(self) -> None:
        if self._idle_since is not None and self._clock() - self._idle_since >= _FORGET_S:
            self._forget()
