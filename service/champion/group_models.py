"""Which models a group's commits name."""

from __future__ import annotations

from typing import NamedTuple

from tidecast.service.broker.port import Broker
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError
from tidecast.service.state.offset_metadata import Committed


class GroupModels(NamedTuple):
    """What the group's last commits say; both are empty before the first one."""

    champions: set[str]  # ids; several only while partitions change over
    members: set[str]  # hashes, as in an id behind its @, of all models that the workers run

    def runs(self, model_id: str) -> bool:
        """False where the workers are known not to run it."""
        return not self.members or model_id.rpartition("@")[2] in self.members


def committed_models(broker: Broker, settings: Settings) -> GroupModels:
    """The models of the group's last commits of the input's partitions.

    Raises:
        BrokerError: there is no input topic, or Kafka does not answer or refuses.
    """
    count = broker.partitions(settings.input_topic)
    if count is None:
        raise BrokerError(
            f"there is no topic {settings.input_topic}", do="Name the one that the workers read: --input-topic"
        )
    consumer = broker.consumer(group=settings.group)
    try:
        consumer.assign(settings.input_topic, dict.fromkeys(range(count), 0))
        known = consumer.committed(range(count))
    finally:
        consumer.close()
    found = [Committed.parse(*each) for each in known.values() if each is not None]
    champions = {each.model for each in found if each.model is not None}
    members = {model.rpartition("@")[2] for model in champions}
    return GroupModels(champions, members.union(*(each.members for each in found)))
