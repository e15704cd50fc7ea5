"""Finds a loop that has stopped turning: says so, shows what every thread does, and in the end ends the process.

Every call of the loop into Kafka has a time limit of its own, and the worker tells how long it allows the present one
(`Worker.not_live`). So what the watchdog finds has overrun its limit, or has none: a deadlock, a client that waits for
ever, a model that does not come back. Nothing can mend that from inside; a new process can. Nothing is lost by it:
Kafka aborts what the process leaves open, and its partitions go to the group's other members or to its successor.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from tidecast.service.observability.stacks import show

log = logging.getLogger("tidecast.watchdog")

CHECK_SECONDS = 1.0
# Who has not looked for so long was stopped together with the loop (SIGSTOP, a suspended machine), and the loop gets as
# much time to turn again.
AWAY_SECONDS = 10.0
# From the report to the end. /livez tells of a stall too, so an orchestrator that looks ends the process long before,
# by its own rules. This is for where nobody looks: five minutes are what Kafka gives a member between two polls: then
# its partitions go to others anyway, and to wait longer only hides that nothing is done here.
END_SECONDS = 300.0


def end() -> NoReturn:
    """End the process at once, with exit code 1: closing clients could hang on what hangs already."""
    sys.stderr.flush()
    os._exit(1)


class Watchdog:
    """Looks once a second, in a thread of its own, inside of a `with`.

    Args:
        stalled: why the loop is taken for stuck (`Worker.not_live`), None while it is well. Called from the thread.
        end_seconds: so long after its report the process is ended, if the stall lasts.
        clock: seconds, monotonic.
        show: leaves the stacks of all threads in the log.
        end: ends the process.
        on_stall: told of each stall when it begins.
    """

    def __init__(
        self,
        stalled: Callable[[], str | None],
        *,
        end_seconds: float = END_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[], None] = show,
        end: Callable[[], object] = end,
        on_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self._stalled, self._end_seconds, self._on_stall = stalled, end_seconds, on_stall
        self._clock, self._show, self._end = clock, show, end
        self._since: float | None = None  # when the present stall was reported
        self._checked = clock()
        self._grace_until = self._checked
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(5)

    def check(self) -> None:
        """One look: report a stall once, when it begins; end the process when it lasts."""
        now = self._clock()
        away, self._checked = now - self._checked, now
        if away > AWAY_SECONDS:
            self._grace_until = now + AWAY_SECONDS
            if self._since is not None:
                self._since += away
        if now < self._grace_until:
            return
        reason = self._stalled()
        if reason is None:
            if self._since is not None:
                log.warning("the loop turns again", extra={"seconds": round(now - self._since)})
            self._since = None
        elif self._since is None:
            self._since = now
            self._on_stall()
            log.critical(
                "stuck: %s; what every thread does stands below. If it does not go on, the process ends itself with "
                "exit code 1, to be started anew; nothing is lost. Please report this with the lines below",
                reason,
                extra={"ends_in_seconds": round(self._end_seconds)},
            )
            self._show()
        elif now - self._since >= self._end_seconds:
            log.critical("stuck for too long, giving up: %s", reason, extra={"seconds": round(now - self._since)})
            self._show()
            self._end()

    def _watch(self) -> None:
        while not self._over.wait(CHECK_SECONDS):
            try:
                self.check()
            except Exception:
                log.exception("looking after the loop failed, trying again")
