"""What an administrator, or a mistake of one, does to a group and its topics: on a Kafka without passwords."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    MemberToRemove,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

# Properties of a Kafka that asks for rights: where a topic has no rule, everybody may do everything.
AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


class Administration:
    """Requests to one Kafka, each over a connection of its own, since Kafka may be killed in between."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers

    @contextmanager
    def _admin(self) -> Iterator[KafkaAdminClient]:
        admin = KafkaAdminClient(bootstrap_servers=self._servers)
        try:
            yield admin
        finally:
            admin.close()

    def evict(self, group: str, instance: str) -> bool:
        """Evict the member with this name from the group; False where it is none."""
        with self._admin() as admin:
            answers = admin.remove_group_members(group, [MemberToRemove(group_instance_id=instance)])
        return all(error.errno == 0 for error in answers.values())

    def joins(self, group: str) -> bool:
        """Whether the members of the group are joining now."""
        with self._admin() as admin:
            state = admin.describe_groups([group])[group]["group_state"]
        return state in ("PreparingRebalance", "CompletingRebalance")

    def leave_only(self, topic: str, operations: Sequence[str]) -> None:
        """Whoever it is may only do this with the topic; `give_back` ends that."""
        pattern = ResourcePattern(ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL)
        allow = ACLPermissionType.ALLOW
        with self._admin() as admin:
            admin.create_acls([ACL("User:*", "*", ACLOperation[name], allow, pattern) for name in operations])

    def give_back(self, topic: str) -> None:
        """Everybody may do everything with the topic again."""
        pattern = ResourcePatternFilter(ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL)
        with self._admin() as admin:
            admin.delete_acls([ACLFilter("User:*", "*", ACLOperation.ANY, ACLPermissionType.ANY, pattern)])

    def set(self, topic: str, name: str, value: object) -> None:
        """Change one setting of a topic."""
        with self._admin() as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: str(value)})])
