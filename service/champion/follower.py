"""Follows the decisions topic in a thread of its own, so that the loop never waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from tidecast.service.broker.port import Broker
from tidecast.service.champion.decisions import Decision, DecisionReader, Numbered, write_decision
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError

log = logging.getLogger("tidecast.champion")

LOOK_SECONDS = 1.0


class DecisionFollower:
    """Reads what is decided about the group, and writes what this worker decides.

    Args:
        broker: where.
        settings: names the topic and the group.
        on_unreadable: called for each record that is no decision.
        seconds: between two looks.

    Attributes:
        last: the decision in force; None = there is none. Another thread may read it.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        on_unreadable: Callable[[], None] = lambda: None,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._broker, self._settings, self._seconds = broker, settings, seconds
        self._on_unreadable, self._unreadable = on_unreadable, 0
        self._to_write: SimpleQueue[Decision] = SimpleQueue()
        self._waiting: Decision | None = None  # to be written
        self._stopped, self._failing = threading.Event(), False
        self.last: Numbered | None = None

    def start(self) -> None:
        """Read all that was decided so far, then begin to follow.

        Raises:
            BrokerError: Kafka does not answer, or refuses.
        """
        reader = DecisionReader(self._broker, self._settings)
        try:
            reader.read_to_end()
        except BaseException:
            reader.close()
            raise
        self._note(reader)
        if self.last is not None:
            log.info("the champion was decided before", extra=facts(self.last))
        threading.Thread(target=self._run, args=(reader,), name="decisions", daemon=True).start()

    def write(self, decision: Decision) -> None:
        """Have the thread write it. It is in force, here too, once it was read."""
        self._to_write.put(decision)

    def stop(self) -> None:
        """Follow no more."""
        self._stopped.set()

    def _run(self, reader: DecisionReader) -> None:
        while not self._stopped.wait(self._seconds):
            self.look(reader)
        reader.close()

    def look(self, reader: DecisionReader) -> None:
        """Write what is to be written, and read what is new. Without Kafka it is tried again at the next look."""
        try:
            if self._waiting is None and not self._to_write.empty():
                self._waiting = self._to_write.get()
            if self._waiting is not None:
                write_decision(self._broker, self._settings, self._waiting)
                self._waiting = None
            reader.read_to_end()
            self._note(reader)
        except BrokerError as error:
            if not self._failing:
                log.warning("the decisions topic cannot be used now, trying again", extra={"reason": str(error)})
            self._failing = True
            return
        if self._failing:
            log.info("the decisions topic can be used again")
        self._failing = False

    def _note(self, reader: DecisionReader) -> None:
        for _ in range(reader.unreadable - self._unreadable):
            self._on_unreadable()
        self._unreadable = reader.unreadable
        self.last = reader.history.last


def facts(decided: Numbered) -> dict[str, object]:
    """What a log line says of a decision."""
    decision = decided.decision
    said: dict[str, object] = {"number": decided.number, "old": decision.was, "model": decision.to, "by": decision.by}
    if decision.evidence is not None:
        found = decision.evidence
        said |= {"series": found.series, "readings": found.readings, "e_value": found.e_value, "loss": found.loss}
    return said
