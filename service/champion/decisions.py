"""The decisions topic: which model is the champion of a group, who decided that, and on which evidence.

One partition, plain JSON, nothing is compacted away. A record's number is its offset: unique, and increasing. All
workers of a group read the same records in the same order, and so agree on the champion.
"""

from __future__ import annotations

import logging
import time
from typing import Literal, NamedTuple

import msgspec

from tidecast.service.broker.port import Batch, Broker, Consumer, OutgoingBatch
from tidecast.service.broker.topics import DEFAULT_PARTITIONS, create_command
from tidecast.service.champion.comparison import Evidence
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError

log = logging.getLogger("tidecast.champion")

By = Literal["auto", "command", "rollback"]
BY: tuple[By, ...] = ("auto", "command", "rollback")
PARTITION = 0
_POLL_S, _MOST = 0.5, 1_000


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"was": "from"}):
    """One record."""

    ts: int  # ms, of the deciding process
    group: str
    was: str  # id of the model that answered before, "" where nobody knows; `from` in JSON
    to: str
    by: By
    after: int | None = None  # of an automatic one: number of the decision that was in force, -1 = none was
    evidence: Evidence | None = None  # of an automatic one


class Numbered(NamedTuple):
    """A decision as it lies in the topic."""

    number: int
    decision: Decision
    void: bool = False  # an automatic one that another decision has overtaken


def number_of(decided: Numbered | None) -> int:
    """Its number; -1 where nothing was decided."""
    return -1 if decided is None else decided.number


class History:
    """The decisions about one group, in order, and the champion that follows from them."""

    def __init__(self) -> None:
        self.decisions: list[Numbered] = []

    @property
    def last(self) -> Numbered | None:
        """The one in force."""
        return next((each for each in reversed(self.decisions) if not each.void), None)

    @property
    def champion(self) -> str | None:
        """Id of the champion, None where nothing was decided."""
        return None if self.last is None else self.last.decision.to

    def add(self, number: int, decision: Decision) -> Numbered:
        """Add the next one.

        An automatic one is void if it does not follow the one that is in force: somebody else decided meanwhile.
        """
        void = decision.by == "auto" and decision.after != number_of(self.last)
        self.decisions.append(Numbered(number, decision, void))
        return self.decisions[-1]


class DecisionReader:
    """Reads the decisions about one group, without being a member of it. For one thread.

    Args:
        broker: where.
        settings: names the topic and the group.

    Raises:
        BrokerError: Kafka cannot be reached, or refuses.
    """

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._topic, self._group = settings.decisions_topic, settings.group
        self._timeout_s = settings.broker_timeout_seconds
        self.history, self.unreadable = History(), 0
        self._position = 0
        self._consumer: Consumer = broker.consumer()
        try:
            self._consumer.assign(self._topic, {PARTITION: -2})
        except BaseException:
            self.close()
            raise

    def read_to_end(self) -> list[Numbered]:
        """Read all that is committed by now; those of the group.

        Raises:
            BrokerError: Kafka does not answer, or refuses.
        """
        end = self._consumer.end_offsets({PARTITION})[PARTITION]
        self._position = max(self._position, self._consumer.beginning_offsets({PARTITION})[PARTITION])
        found: list[Numbered] = []
        deadline = time.monotonic() + self._timeout_s
        while self._position < end:
            found += self.poll(_POLL_S)
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"reading {self._topic} took longer than {self._timeout_s:g} s",
                    do="Check the brokers, or raise --broker-timeout-seconds.",
                )
        return found

    def poll(self, timeout_s: float = 0.0) -> list[Numbered]:
        """What has come since, about this group; raises as `read_to_end`."""
        batch = self._consumer.poll(timeout_s, _MOST)
        self._position = batch.next_offsets.get(PARTITION, self._position)
        return self._decoded(batch)

    def _decoded(self, batch: Batch) -> list[Numbered]:
        found = []
        for offset, value in zip(batch.offsets, batch.values, strict=True):
            try:
                decision = msgspec.json.decode(value or b"", type=Decision)
            except (msgspec.DecodeError, UnicodeError) as error:
                self.unreadable += 1
                log.error(
                    "a record of the decisions topic is no decision, it is ignored",
                    extra={"topic": self._topic, "offset": offset, "reason": str(error)},
                )
                continue
            if decision.group == self._group:
                found.append(self.history.add(offset, decision))
        return found

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()


def write_decision(broker: Broker, settings: Settings, decision: Decision) -> None:
    """Append a decision, and wait until Kafka has it.

    Raises:
        BrokerError: Kafka did not take it: it does not answer, or the topic or a right is missing.
    """
    producer = broker.producer()
    try:
        outgoing = OutgoingBatch(settings.decisions_topic)
        outgoing.append(decision.group.encode(), msgspec.json.encode(decision), partition=PARTITION)
        producer.produce(outgoing)
        producer.flush(settings.broker_timeout_seconds)
    finally:
        producer.close()


def read_history(broker: Broker, settings: Settings) -> History:
    """All decisions about the group.

    Raises:
        BrokerError: there is no such topic, or Kafka does not answer.
    """
    if broker.partitions(settings.decisions_topic) is None:
        wanted = broker.partitions(settings.input_topic) or DEFAULT_PARTITIONS
        raise BrokerError(
            f"there is no topic {settings.decisions_topic}",
            do=f"Name it with --decisions-topic, or make what is missing: {create_command(settings, wanted)}",
        )
    reader = DecisionReader(broker, settings)
    try:
        reader.read_to_end()
    finally:
        reader.close()
    return reader.history
