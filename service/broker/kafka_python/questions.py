"""What `tidecast doctor` asks of a cluster besides the port's questions. Nothing here writes to Kafka.

Asked with kafka-python, whichever client the worker uses: librdkafka does not show how records are compressed.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from kafka import errors
from kafka.protocol.consumer import FetchRequest
from kafka.protocol.metadata import CoordinatorType
from kafka.record import MemoryRecords

from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker
from tidecast.service.errors import BrokerUnavailable

T = TypeVar("T")
_COORDINATOR_S = 5.0  # a Kafka that has just started needs a moment until it has one
_AGAIN_S = 0.25
_NO_COORDINATOR = (errors.CoordinatorNotAvailableError, errors.CoordinatorLoadInProgressError)
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_FETCH_BYTES = 1 << 20  # of one partition


class Cluster(NamedTuple):
    """Kafka's version, as its requests show it, and how many brokers it has."""

    version: tuple[int, ...]
    brokers: int


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the metadata of a topic says. `operations` None = Kafka does not say what is allowed."""

    there: bool
    described: bool  # False where the right to see the topic is missing
    operations: frozenset[str] | None
    replicas: int = 0  # of the partition that has the fewest
    in_sync: int = 0  # likewise
    without_leader: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What the coordinator of a group says of it. `operations` as for a topic; none where it may not be seen."""

    operations: frozenset[str] | None
    members: int


class BatchFacts(NamedTuple):
    """How the records of a topic were written."""

    codecs: Counter[str]  # codec -> batches
    broker_clock: bool  # True where the brokers give records their timestamps (LogAppendTime)


class Questions:
    """Asks the cluster that a KafkaPythonBroker is for; `broker.close` closes its connections."""

    def __init__(self, broker: KafkaPythonBroker) -> None:
        self._broker, self._client = broker, broker._client

    def login(self) -> None:
        """Check that Kafka accepts a connection; raises as `KafkaPythonBroker.probe`."""
        self._client.call("connecting", self._broker.probe)

    def cluster(self) -> Cluster:
        """Its version and size.

        Raises:
            BrokerError: Kafka does not answer, or refuses.
        """
        found = self._call("asking for the brokers", lambda admin: (admin._manager, admin.describe_cluster()))
        return Cluster(found[0].broker_version, len(found[1]["brokers"]))

    def topics(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """`topic -> facts`; raises as `cluster`."""
        found = self._call("looking up the topics", lambda admin: admin.describe_topics(list(names)))
        return {topic["name"]: _topic_facts(topic) for topic in found}

    def group(self, name: str) -> GroupFacts:
        """The facts of a consumer group, also of one that nobody has used yet; raises as `cluster`."""

        def ask(admin: Any) -> GroupFacts:
            try:
                found = admin.describe_groups([name])[name]
            except errors.GroupAuthorizationFailedError:
                return GroupFacts(frozenset(), 0)
            if "GroupAuthorizationFailed" in (found["error"] or ""):
                return GroupFacts(frozenset(), 0)
            return GroupFacts(_operations(found), len(found["members"]))

        return self._call(f"asking for the group {name}", ask, patience_s=_COORDINATOR_S)

    def transaction_coordinator(self, transactional_id: str) -> bool | None:
        """Whether transactions with this id have a coordinator; None where the right to ask is missing.

        Nothing is begun and nobody is fenced. As the first such question of any client does, it makes Kafka create its
        internal topic for transactions. Raises as `cluster`.
        """

        def ask(admin: Any) -> bool | None:
            try:
                admin._manager.run(admin._find_coordinator_ids, [transactional_id], CoordinatorType.TRANSACTION)
            except errors.TransactionalIdAuthorizationFailedError:
                return None
            return True

        try:
            return self._call("looking for the transaction coordinator", ask, patience_s=_COORDINATOR_S)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, _NO_COORDINATOR):
                return False
            raise

    def batches(self, topic: str, offsets: Mapping[int, int]) -> BatchFacts:
        """How the records were written that follow `partition -> offset`, up to about 1 MiB of each; as `cluster`."""
        codecs: Counter[str] = Counter()
        kinds: Counter[int] = Counter()

        def ask(admin: Any) -> None:
            wanted = defaultdict(list)  # leader -> partitions
            for each in admin.describe_topics([topic])[0]["partitions"]:
                if each["partition_index"] in offsets and each["leader_id"] >= 0:
                    wanted[each["leader_id"]].append(each["partition_index"])
            for leader, partitions in wanted.items():
                answer = admin._manager.run(admin._manager.send, _fetch(topic, offsets, partitions), leader)
                for partition in (each for found in answer.responses for each in found.partitions):
                    records = MemoryRecords(partition.records or b"")
                    while (batch := records.next_batch()) is not None:
                        if not getattr(batch, "is_control_batch", False):
                            codecs[_CODECS[batch.compression_type]] += 1
                            kinds[batch.timestamp_type or 0] += 1

        self._call(f"reading {topic}", ask)
        return BatchFacts(codecs, kinds[1] > kinds[0])

    def _call(self, doing: str, ask: Callable[[Any], T], *, patience_s: float = 0.0) -> T:
        """`ask` with the library's admin client; while there is no coordinator, again until the patience is over."""
        deadline = time.monotonic() + min(patience_s, self._client.timeout_s)

        def patiently() -> T:
            while True:
                try:
                    return ask(self._broker._connected())
                except _NO_COORDINATOR:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_AGAIN_S)

        return self._client.call(doing, patiently)


def _fetch(topic: str, offsets: Mapping[int, int], partitions: Iterable[int]) -> Any:
    """A request for what follows the offsets of these partitions."""
    of_topic, of_partition = FetchRequest.FetchTopic, FetchRequest.FetchTopic.FetchPartition
    asked = [
        of_partition(
            partition=p,
            current_leader_epoch=-1,
            fetch_offset=offsets[p],
            last_fetched_epoch=-1,
            partition_max_bytes=_FETCH_BYTES,
        )
        for p in partitions
    ]
    return FetchRequest(
        max_wait_ms=100,
        min_bytes=1,
        max_bytes=8 * _FETCH_BYTES,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[of_topic(topic=topic, partitions=asked)],
        forgotten_topics_data=[],
        rack_id="",
        min_version=4,
        max_version=12,  # later ones name topics by their ids
    )


def _topic_facts(topic: Any) -> TopicFacts:
    error = errors.for_code(topic["error_code"])
    operations, partitions = _operations(topic), topic["partitions"]
    if error is errors.TopicAuthorizationFailedError:
        return TopicFacts(False, False, frozenset())
    if not partitions:
        return TopicFacts(False, True, operations)
    return TopicFacts(
        True,
        True,
        operations,
        min(len(each["replica_nodes"]) for each in partitions),
        min(len(each["isr_nodes"]) for each in partitions),
        tuple(each["partition_index"] for each in partitions if each["leader_id"] < 0),
    )


def _operations(found: Any) -> frozenset[str] | None:
    operations = found.get("authorized_operations")
    return None if operations is None else frozenset(operations)
