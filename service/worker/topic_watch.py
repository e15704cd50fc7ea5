"""Topics that change while a worker runs: what a start checks is checked again, in a thread of its own.

The same thread looks after the group: `service.worker.group_watch`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tidecast.service.broker.port import Broker, TopicInfo
from tidecast.service.broker.topics import check_topics, made_again_advice
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable
from tidecast.service.worker.group_watch import GroupWatch

log = logging.getLogger("tidecast.worker")

LOOK_SECONDS = 10.0
_AGAIN_SECONDS = 2.0  # until a finding is looked at again


class TopicWatch:
    """Looks at the worker's topics every 10 s, and at its group.

    Args:
        broker: its admin calls are used, in a thread of this object's.
        settings: which topics there are.
        count_unowned: as for `GroupWatch`.
        seconds: between two looks.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        count_unowned: Callable[[int], object] = lambda count: None,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._broker, self._settings, self._seconds = broker, settings, seconds
        self._group = GroupWatch(broker, settings.group, settings.input_topic, count_unowned)
        self._known: dict[str, TopicInfo] = {}
        self._finding: BrokerError | None = None
        self._stopped = threading.Event()

    def start(self, known: dict[str, TopicInfo]) -> None:
        """Begin to look; `known`: the topics as the start found them."""
        self._known = known
        threading.Thread(target=self._run, name="topic-watch", daemon=True).start()

    def check(self) -> None:
        """Raise what was found; for the loop's thread, at each of its turns.

        Raises:
            BrokerError: a topic is gone, was made again, or no longer fits the others.
        """
        if self._finding is not None:
            raise self._finding

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _run(self) -> None:
        suspicion: str | None = None
        while not self._stopped.wait(self._seconds if suspicion is None else min(self._seconds, _AGAIN_SECONDS)):
            if suspicion is None:
                self._group.look()
            finding = self.look()
            # Seen twice: while brokers come and go, one of them may not know a topic yet.
            if finding is not None and finding.what == suspicion:
                self._finding = finding
                return
            suspicion = None if finding is None else finding.what

    def look(self) -> BrokerError | None:
        """What is wrong with the topics now."""
        try:
            found = check_topics(self._broker, self._settings)
        except BrokerUnavailable:  # the loop notices that itself
            return None
        except BrokerError as error:
            return error
        for name, info in found.items():
            known = self._known.setdefault(name, info)
            if info.id != known.id:
                return self._made_again(name)
            if info.partitions != known.partitions:
                log.warning(
                    "the topic has more partitions now: series whose readings come on another one start again",
                    extra={"topic": name, "partitions": [known.partitions, info.partitions]},
                )
                self._known[name] = info
        return None

    def _made_again(self, name: str) -> BrokerError:
        do = "Start the worker again."
        if name == self._settings.input_topic:
            do = made_again_advice(self._settings)
        return BrokerError(f"the topic {name} was deleted and made again while this worker read or wrote it", do=do)
