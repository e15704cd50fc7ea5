"""The port on confluent-kafka, the fast client: librdkafka, which is C."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]
from typing_extensions import override

from tidecast.service.broker.client import Failure
from tidecast.service.broker.confluent.client import ConfluentClient
from tidecast.service.broker.confluent.consumer import ConfluentConsumer
from tidecast.service.broker.confluent.producer import ConfluentProducer
from tidecast.service.broker.confluent.transactions import ConfluentTransactionalProducer
from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker
from tidecast.service.broker.port import DYNAMIC, Broker, Consumer, Membership, Producer, TopicInfo
from tidecast.service.broker.security import PLAIN_TEXT, Security

_LOOK_AGAIN_S = 0.02


class ConfluentBroker(Broker):
    """One cluster through confluent-kafka. Nothing is contacted before the first call.

    `timeout_s` limits every wait: for a connection, for an admin call, for an acknowledgement.
    """

    def __init__(self, bootstrap_servers: str, *, timeout_s: float = 60.0, security: Security = PLAIN_TEXT) -> None:
        self._client = ConfluentClient(bootstrap_servers, timeout_s, security=security)
        self._other = KafkaPythonBroker(
            bootstrap_servers, timeout_s=timeout_s, security=security
        )  # for what librdkafka cannot do: docs/upstream.md, C1, C2, C5
        self._admin: Any = None
        self._lock = threading.Lock()

    @override
    def consumer(
        self, *, group: str | None = None, isolation: str = "read_committed", membership: Membership = DYNAMIC
    ) -> Consumer:
        with self._other.diagnosed():
            self._reach("connecting to consume")
            return ConfluentConsumer(
                self._client,
                self.partitions,
                self._other.member_of_instance,
                lambda name: self._other.consumer(group=name, isolation="read_uncommitted"),
                group=group,
                isolation=isolation,
                membership=membership,
            )

    @override
    def producer(self, *, transactional_id: str | None = None) -> Producer:
        with self._other.diagnosed():
            if transactional_id is None:
                self._reach("connecting to produce")
                return ConfluentProducer(self._client, self.partitions)
            self._client.call("connecting to produce", self._other.probe)
            return ConfluentTransactionalProducer(self._client, self.partitions, transactional_id)

    @override
    def describe(self, topic: str) -> TopicInfo | None:
        doing = f"looking up the topic {topic}"
        # The library's plain look-up of metadata would create the topic if the cluster creates topics automatically.
        with self._other.diagnosed(), self._client.errors(doing):
            found = self._topics([topic]).get(topic)
        return None if found is None else TopicInfo(str(found.topic_id), len(found.partitions))

    @override
    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        configs = dict(config or {})
        replicas = int(configs.pop("replication.factor", -1))
        doing = f"making the topic {topic}"
        with self._client.errors(doing):
            try:
                self._ask("create_topics", [NewTopic(topic, partitions, replicas, config=configs)])
            except KafkaException as error:
                if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    return False
                raise
        # The controller has it; the brokers get it a moment later.
        deadline = time.monotonic() + self._client.timeout_s
        while self.partitions(topic) is None:
            if time.monotonic() > deadline:
                raise self._client.broker_error(Failure.UNAVAILABLE, "", doing)
            time.sleep(_LOOK_AGAIN_S)
        return True

    @override
    def delete_topic(self, topic: str) -> bool:
        with self._client.errors(f"deleting the topic {topic}"):
            try:
                self._ask("delete_topics", [topic])
            except KafkaException as error:
                if self._client.classify(error)[0] is Failure.NO_TOPIC:
                    return False
                raise
        return True

    @override
    def topic_config(self, topic: str) -> dict[str, str]:
        doing = f"asking for the settings of {topic}"
        asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
        with self._client.errors(doing):
            found = self._ask("describe_configs", [asked])[asked]
        return {name: setting.value for name, setting in found.items() if setting.value is not None}

    @override
    def topics(self) -> dict[str, int]:
        with self._client.errors("listing the topics"):
            names = list(self._connected().list_topics(timeout=self._client.timeout_s).topics)
            found = self._topics(names) if names else {}
        return {name: len(topic.partitions) for name, topic in found.items() if not topic.is_internal}

    @override
    def group_members(self, group: str, topic: str) -> dict[str, frozenset[int]] | None:
        return self._other.group_members(group, topic)

    @override
    def evict(self, group: str, member: str) -> None:
        self._other.evict(group, member)

    @override
    def close(self) -> None:
        with self._lock:
            self._admin = None
        self._other.close()

    def _reach(self, doing: str) -> None:
        """Check that the cluster answers: the library's clients themselves would wait for it in silence."""
        with self._client.errors(doing):
            self._connected().cluster_id(timeout=self._client.timeout_s)

    def _ask(self, method: str, what: Any) -> dict[Any, Any]:
        """The answers to an admin call; raises the first error."""
        return {key: future.result(self._patience_s) for key, future in self._futures(method, what).items()}

    def _topics(self, names: list[str]) -> dict[str, Any]:
        """The named topics that exist: one may be deleted between its listing and this call."""
        found = {}
        for name, future in self._futures("describe_topics", TopicCollection(names)).items():
            try:
                found[name] = future.result(self._patience_s)
            except KafkaException as error:
                if self._client.classify(error)[0] is not Failure.NO_TOPIC:
                    raise
        return found

    def _futures(self, method: str, what: Any) -> dict[Any, Any]:
        futures: dict[Any, Any] = getattr(self._connected(), method)(what, request_timeout=self._client.timeout_s)
        return futures

    @property
    def _patience_s(self) -> float:
        """A little longer than the library itself waits, so that its own error is the one that is seen."""
        return self._client.timeout_s + 2

    def _connected(self) -> Any:
        with self._lock:
            if self._admin is None:
                self._client.call("connecting", self._other.probe)
                self._admin = AdminClient(self._client.options())
            return self._admin
