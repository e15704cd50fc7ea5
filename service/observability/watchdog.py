"""Detects a loop that hangs: logs it with the stacks of all threads, and ends the process if it lasts.

Every Kafka call of the loop has a time limit, and the worker knows the limit of the present call (`Worker.not_live`).
So a loop that the watchdog reports has exceeded its limit or has none: a deadlock, a client that waits forever, a model
that does not return. Only a new process can fix that. No data is lost: Kafka aborts the open transaction, and the
partitions go to other members of the group or to the new process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from tidecast.service.observability.stacks import dump

log = logging.getLogger("tidecast.watchdog")

CHECK_SECONDS = 1.0
# A pause of this length between two checks means that the whole process was stopped (SIGSTOP, a suspended machine). The
# loop then has as much time again before it is checked.
AWAY_SECONDS = 10.0
# From the report to the end of the process. /livez reports a stall too, so an orchestrator that checks it ends the
# process much sooner. After five minutes without a poll, Kafka gives the partitions to other members anyway, so waiting
# longer would only hide the fault.
END_SECONDS = 300.0


def end() -> NoReturn:
    """End the process at once with exit code 1, without closing clients, since that could hang too."""
    sys.stderr.flush()
    os._exit(1)


class Watchdog:
    """Checks the loop once a second in its own thread, inside a `with` block.

    Args:
        stalled: why the loop counts as hanging (`Worker.not_live`), None while it is healthy. Called from the thread.
        end_seconds: from the report of a stall until the process is ended, if the stall lasts.
        clock: seconds, monotonic.
        dump: writes the stacks of all threads.
        end: ends the process.
        on_stall: called once for each stall, at its start.
    """

    def __init__(
        self,
        stalled: Callable[[], str | None],
        *,
        end_seconds: float = END_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        dump: Callable[[], None] = dump,
        end: Callable[[], object] = end,
        on_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self._stalled, self._end_seconds, self._on_stall = stalled, end_seconds, on_stall
        self._clock, self._dump, self._end = clock, dump, end
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
        """Check once: report a new stall; end the process if a stall has lasted too long."""
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
                "stuck: %s; the stacks of all threads follow. If the loop does not continue, the process ends with "
                "exit code 1 and can be restarted; no data is lost. Please report this with the lines below",
                reason,
                extra={"ends_in_seconds": round(self._end_seconds)},
            )
            self._dump()
        elif now - self._since >= self._end_seconds:
            log.critical("stuck for too long, giving up: %s", reason, extra={"seconds": round(now - self._since)})
            self._dump()
            self._end()

    def _watch(self) -> None:
        while not self._over.wait(CHECK_SECONDS):
            try:
                self.check()
            except Exception:
                log.exception("checking the loop failed, trying again")
