"""The port on kafka-python."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from typing_extensions import override

from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.kafka_python.consumer import KafkaPythonConsumer
from tidecast.service.broker.kafka_python.handshake import probe
from tidecast.service.broker.kafka_python.producer import KafkaPythonProducer
from tidecast.service.broker.kafka_python.transactions import KafkaPythonTransactionalProducer
from tidecast.service.broker.port import DYNAMIC, Broker, Consumer, Membership, Producer, TopicInfo
from tidecast.service.broker.security import PLAIN_TEXT, Security
from tidecast.service.errors import BrokerUnavailable

_WHY_S = 5.0  # to find out why Kafka does not answer


class KafkaPythonBroker(Broker):
    """One cluster through kafka-python. Nothing is contacted before the first call.

    `timeout_s` limits every wait: for a connection, for an admin call, for an acknowledgement.
    """

    def __init__(self, bootstrap_servers: str, *, timeout_s: float = 60.0, security: Security = PLAIN_TEXT) -> None:
        self._client = KafkaPythonClient(bootstrap_servers, timeout_s, security=security)
        self._probed = False
        self._admin: Any = None
        self._lock = threading.Lock()

    @override
    def consumer(
        self, *, group: str | None = None, isolation: str = "read_committed", membership: Membership = DYNAMIC
    ) -> Consumer:
        with self.diagnosed():
            self._client.call("connecting to consume", self.probe)
            return KafkaPythonConsumer(
                self._client,
                self.partitions,
                group=group,
                isolation=isolation,
                membership=membership,
            )

    @override
    def producer(self, *, transactional_id: str | None = None) -> Producer:
        with self.diagnosed():
            self._client.call("connecting to produce", self.probe)
            if transactional_id is None:
                return KafkaPythonProducer(self._client, self.partitions)
            return KafkaPythonTransactionalProducer(self._client, self.partitions, transactional_id)

    @override
    def describe(self, topic: str) -> TopicInfo | None:
        doing = f"looking up the topic {topic}"
        with self.diagnosed():
            found = self._client.call(doing, lambda: self._connected().describe_topics([topic]))
        with self._client.errors(doing):
            code = found[0]["error_code"]
            if errors.for_code(code) is errors.UnknownTopicOrPartitionError:
                return None
            if code:
                raise errors.for_code(code)(topic)
        return TopicInfo(str(found[0]["topic_id"]), len(found[0]["partitions"]))

    @override
    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        configs = dict(config or {})
        replicas = int(configs.pop("replication.factor", -1))
        new = {topic: {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}}
        doing = f"making the topic {topic}"

        def create() -> bool:
            try:
                self._connected().create_topics(new, timeout_ms=self._client.timeout_ms)
            except errors.TopicAlreadyExistsError:
                return False
            # the controller has it; wait until every broker has it too
            self._connected().wait_for_topics([topic], timeout_ms=self._client.timeout_ms)
            return True

        return self._client.call(doing, create)

    @override
    def delete_topic(self, topic: str) -> bool:

        def delete() -> bool:
            try:
                self._connected().delete_topics([topic], timeout_ms=self._client.timeout_ms)
            except errors.UnknownTopicOrPartitionError:
                return False
            return True

        return self._client.call(f"deleting the topic {topic}", delete)

    @override
    def topic_config(self, topic: str) -> dict[str, str]:
        doing = f"asking for the settings of {topic}"

        def describe() -> dict[str, Any]:
            if self.partitions(topic) is None:  # Kafka would answer with an empty list
                raise errors.UnknownTopicOrPartitionError
            asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
            found = self._connected().describe_configs(asked, config_filter="all")
            return dict(found["topic"][topic])

        found = self._client.call(doing, describe)
        return {name: setting["value"] for name, setting in found.items() if setting["value"] is not None}

    @override
    def topics(self) -> dict[str, int]:
        found = self._client.call("listing the topics", lambda: self._connected().describe_topics())
        return {t["name"]: len(t["partitions"]) for t in found if not t["is_internal"]}

    def member_of_instance(self, group: str, instance: str, limit_s: float) -> str | None:
        """The id of the member that has this instance id in the group; None if nobody has it.

        Raises:
            BrokerError: no answer within `limit_s`.
        """
        doing = f"asking for our place in the group {group}"
        found = self._client.with_timeout(limit_s).call(doing, lambda: self._connected().describe_groups([group]))
        members = found[group]["members"]
        return next((str(m["member_id"]) for m in members if m["group_instance_id"] == instance), None)

    @override
    def group_members(self, group: str, topic: str) -> dict[str, frozenset[int]] | None:
        doing = f"asking for the members of the group {group}"
        found = self._client.call(doing, lambda: self._connected().describe_groups([group]))[group]
        if found["error"] or found["group_state"] != "Stable":
            return None
        return {m["member_id"]: _partitions(m, topic) for m in found["members"] if _subscribed(m, topic)}

    @override
    def evict(self, group: str, member: str) -> None:
        removed = [MemberToRemove(member_id=member)]
        doing = f"removing a member from the group {group}"
        with self._client.errors(doing):
            for error in self._connected().remove_group_members(group, removed).values():
                if error not in (errors.NoError, errors.UnknownMemberIdError):
                    raise error(group)

    @override
    def close(self) -> None:
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def probe(self) -> None:
        """Check once that Kafka accepts the connection, and wait for it; see `handshake`.

        Raises:
            BrokerError: it refuses us.
            BrokerUnavailable: it does not answer.
        """
        if not self._probed:
            probe(self._client)
            self._probed = True

    @contextmanager
    def diagnosed(self) -> Iterator[None]:
        """If Kafka does not answer inside, check whether it refuses us now: a password may have changed.

        Raises:
            BrokerError: it refuses us, or what was raised inside.
        """
        try:
            yield
        except BrokerUnavailable:
            if self._client.security != PLAIN_TEXT:
                with suppress(BrokerUnavailable):
                    probe(self._client.with_timeout(_WHY_S))
            raise

    def _connected(self) -> Any:
        with self._lock:
            if self._admin is None:
                self.probe()
                self._admin = KafkaAdminClient(**self._client.options())
            return self._admin


def _subscribed(member: Mapping[str, Any], topic: str) -> bool:
    subscription = member["member_metadata"]
    return isinstance(subscription, Mapping) and topic in subscription["topics"]


def _partitions(member: Mapping[str, Any], topic: str) -> frozenset[int]:
    """What the member is assigned of the topic; nothing where the leader of the group left the member out."""
    assignment = member["member_assignment"]
    assigned = assignment["assigned_partitions"] if isinstance(assignment, Mapping) else ()
    return frozenset(p for each in assigned if each["topic"] == topic for p in each["partitions"])
