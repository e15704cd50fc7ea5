"""In which partitions imported states belong: in those where the readings of their series are."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping

from tidecast.service.broker.partitioner import PARTITIONERS, partition_for
from tidecast.service.broker.port import Broker
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError
from tidecast.service.state.changelog_admin import SeriesLocation

log = logging.getLogger("tidecast.state")

_NEWEST = 2_000  # readings of each partition that are looked at
_POLL_S = 0.5


def check_placement(places: Collection[SeriesLocation], read_in: Mapping[bytes, int], partitions: int) -> None:
    """Compare where states are to go with where the newest readings of their series are.

    Args:
        places: of the states.
        read_in: key -> partition of its newest reading.
        partitions: of the input topic.

    Raises:
        BrokerError: another partitioner puts more of them where their readings are; the text has the flag.
    """
    keys = {place.key for place in places} & read_in.keys()
    if not keys:
        log.warning(
            "the input topic has no readings of these series, so their partitions are not compared with it",
            extra={"series": len(places)},
        )
        return
    wrong = [place for place in sorted(places) if place.key in keys and read_in[place.key] != place.partition]
    if not wrong:
        return
    misplaced = {
        name: sum(partition_for(key, partitions, name) != read_in[key] for key in keys) for name in PARTITIONERS
    }
    best = min(misplaced, key=misplaced.__getitem__)
    what = (
        f"{len(wrong)} of {len(keys)} series are read in another partition than the one for their state "
        f"({wrong[0].series!r}: read in {read_in[wrong[0].key]}, state in {wrong[0].partition}); they would start cold"
    )
    if misplaced[best] < len(wrong):
        raise BrokerError(what, do=f"Give --partitioner {best}: it puts all but {misplaced[best]} where they are read.")
    log.warning("%s", what)


def partitions_read(broker: Broker, settings: Settings) -> dict[bytes, int]:
    """`key -> partition` of the newest readings in the input topic; empty where there is no such topic.

    Raises:
        BrokerError: Kafka does not answer.
    """
    topic, count = settings.input_topic, broker.partitions(settings.input_topic)
    found: dict[bytes, int] = {}
    if count is None:
        return found
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(range(count), -2))
        first, ends = consumer.beginning_offsets(range(count)), consumer.end_offsets(range(count))
        starts = {p: max(first[p], ends[p] - _NEWEST) for p in range(count) if first[p] < ends[p]}
        if starts:
            consumer.assign(topic, starts)
        left, deadline = set(starts), time.monotonic() + settings.broker_timeout_seconds
        while left and time.monotonic() < deadline:
            batch = consumer.poll(_POLL_S, _NEWEST)
            found |= {key: p for key, p in zip(batch.keys, batch.partitions, strict=True) if key is not None}
            left -= {p for p, position in batch.next_offsets.items() if position >= ends[p]}
        if left:
            raise BrokerError(
                f"reading {topic}: its newest readings did not arrive in {settings.broker_timeout_seconds:g} s",
                do="Check the brokers, or raise --broker-timeout-seconds.",
            )
    finally:
        consumer.close()
    return found
