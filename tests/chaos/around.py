"""Misfortunes around the workers: what an administrator, a stranger, or a broken sensor does to a group.

Each is a function of the storm, and says whether it could come about. The input and the changelog are not deleted here:
all readings, or all states, are gone then, so workers must not continue, and there is nothing left to verify. See
`tests/integration/test_changing_topics.py` for these.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from tests.chaos.feed import START_MS
from tests.chaos.topics import KEPT_ALL, OPEN_SECONDS, Lost, read_all
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import BrokerError
from tidecast.service.model.spec import ModelSpec

if TYPE_CHECKING:
    from tests.chaos.storm import Storm

JOIN_SECONDS = 3.0  # a group that begins to join does so within this
NOTICED_SECONDS = 20.0  # a worker looks at its topics every 10 s, and twice; a refusal is endured for 10 s
JUMP_MS = 43_200_000  # within --max-future-seconds
PAST_MS = 6 * 86_400_000  # readings of a storm are in the past, by less than the retention of the topic
JUMP_AT = 50  # readings before it
JUMP_RATE = 20.0  # readings a second of a series whose clock jumps
FLOOD_SECONDS = 6.0
TAIL = 40  # offsets before the end of a changelog's partition
DAMAGED = 3  # states at a time


def evict(storm: Storm) -> bool:
    """Two workers are evicted from the group, the second one while the group joins for the first, perhaps frozen."""
    running, group = storm.fleet.running, storm.group
    if len(running) < 2:
        return False
    first, second = storm.rng.sample(running, 2)
    frozen, later = storm.rng.random() < 0.5, storm.rng.choice((0.0, 0.2, 1.0))
    try:
        if not storm.administration.evict(group, f"slot-{first}"):
            return False
        deadline = time.monotonic() + JOIN_SECONDS
        while not storm.administration.joins(group) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(later)
        if frozen:
            storm.fleet.freeze(second, storm.rng.uniform(0.5, 8), replace=False)
        joins = storm.administration.joins(group)
        done = storm.administration.evict(group, f"slot-{second}")
    except KafkaError as error:
        storm.say(f"no eviction: {error!r}")
        return False
    storm.say(f"slots {first} and {second} are evicted, the latter {joins=} {frozen=} {done=}")
    return done


def rights(storm: Storm) -> bool:
    """For a while, nobody may write one of the topics, or read the readings."""
    names, reads, writes = storm.names, ["READ", "DESCRIBE_CONFIGS"], ["WRITE", "DESCRIBE_CONFIGS"]
    topic = storm.rng.choice([names.readings, names.forecasts, names.dead_letters, "states"])
    storm.say(f"the right to use {topic} is taken away")
    with storm.fleet.excused("not authorized at Kafka"):
        storm.administration.leave_only(topic, writes if topic == names.readings else reads)
        storm.rest(storm.scenario.away)
        storm.administration.give_back(topic)
        storm.say("it is given back")
        storm.rest(NOTICED_SECONDS)
    return True


def remake(storm: Storm) -> bool:
    """The output or the dead-letter topic is deleted, and made again a while later."""
    names, count_, broker = storm.names, storm.scenario.partitions, storm.broker
    topic, partitions = storm.rng.choice([(names.forecasts, count_), (names.dead_letters, 1)])
    kept = read_all(broker, topic, in_use=True)
    with storm.fleet.excused(rf"(there is no topic|the topic) {re.escape(topic)}"):
        broker.delete_topic(topic)
        storm.say(f"{topic} is deleted, with {len(kept)} records")
        while broker.describe(topic) is not None:
            storm.rest(0.2)
        storm.rest(storm.rng.uniform(2, 25))
        before = _committed(storm)
        broker.create_topic(topic, partitions)
        storm.say(f"it is made again; {before} is committed")
        storm.rest(NOTICED_SECONDS)
    earlier = storm.lost.get(topic, KEPT_ALL)
    storm.lost[topic] = Lost([*earlier.kept, *kept], before)
    return True


def _committed(storm: Storm) -> dict[int, int]:
    """What the group has committed, once Kafka has ended the transactions that were open on the topic that is gone."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return storm.lookout.committed()
        except BrokerError:
            if time.monotonic() > deadline:
                raise
            storm.rest(1)


def jump(storm: Storm) -> bool:
    """A series more: one of its readings is far ahead of the others, which continue as before."""
    key = b"jump-%d" % len(storm.jumping)
    storm.jumping.append(key)
    storm.say(f"the clock of {key!r} will jump")
    return storm.feed_too(readings_of_a_jump(key, storm.models[0].spec), JUMP_RATE)


def readings_of_a_jump(key: bytes, spec: ModelSpec) -> Iterator[tuple[bytes, bytes, int]]:
    """Keys, values and the times of the records, without end. The records have the true times."""
    begin = int(time.time() * 1_000 - PAST_MS) // spec.step_ms * spec.step_ms
    steps = zip(chain(range(JUMP_AT), [JUMP_AT + JUMP_MS // spec.step_ms], count(JUMP_AT)), count(), strict=False)
    for i, true in steps:
        values = dict.fromkeys(spec.features, i % 100)
        yield key, json.dumps({"ts": begin + i * spec.step_ms, **values}).encode(), begin + true * spec.step_ms


def flood(storm: Storm) -> bool:
    """One key sends many readings, or much rubbish."""
    name, spec, rate = b"flood-%d" % len(storm.feeders), storm.models[0].spec, storm.scenario.rate
    rubbish = storm.rng.random() < 0.5
    rate = rate / storm.scenario.partitions if rubbish else rate

    def records() -> Iterator[tuple[bytes, bytes]]:
        for i in range(int(rate * FLOOD_SECONDS)):
            values = dict.fromkeys(spec.features, i % 100)
            yield name, b"{" if rubbish else json.dumps({"ts": START_MS + i * spec.step_ms, **values}).encode()

    storm.say(f"{name!r} sends {'rubbish' if rubbish else 'readings'}, {rate:.0f} a second")
    storm.feed_too(records(), rate)
    storm.rest(FLOOD_SECONDS)
    return True


def damage(storm: Storm) -> bool:
    """A bit of the newest states of a partition is changed, and its worker is killed."""
    shares = {p: slot for slot in storm.fleet.running for p in storm.fleet.workers[slot].share or ()}
    if not shares or storm.names.changelog is None:
        return False
    topic, partition = storm.names.changelog, storm.rng.choice(sorted(shares))
    newest = _tail(storm, topic, partition)
    out = OutgoingBatch(topic)
    for key, value in list(newest.items())[-DAMAGED:]:
        bit = storm.rng.randrange(8 * len(value))
        harmed = bytearray(value)
        harmed[bit // 8] ^= 1 << bit % 8
        out.append(key, bytes(harmed), partition=partition)
        storm.damaged.add((key, bytes(harmed)))
    if not out.keys:
        return False
    producer = storm.broker.producer()
    producer.produce(out)
    producer.flush(30)
    producer.close()
    storm.fleet.kill(shares[partition], 0.0)
    storm.say(f"the states of {out.keys} in partition {partition} are damaged, kill -9 in slot {shares[partition]}")
    return True


def _tail(storm: Storm, topic: str, partition: int) -> dict[bytes, bytes]:
    """The last states of the partition, in the order in which they were written."""
    consumer, found = storm.broker.consumer(), {}
    try:
        consumer.assign(topic, {partition: 0})
        end = consumer.end_offsets([partition])[partition]
        at = max(0, end - TAIL)
        consumer.assign(topic, {partition: at})
        deadline = time.monotonic() + JOIN_SECONDS
        while at < end and time.monotonic() < deadline:
            batch = consumer.poll(0.2, TAIL)
            for key, value in zip(batch.keys, batch.values, strict=True):
                if key is not None and value is not None:
                    found.pop(key, None)
                    found[key] = value
            at = batch.next_offsets.get(partition, at)
    finally:
        consumer.close()
    return found


AROUND: dict[str, Callable[[Storm], bool]] = {
    "evict": evict,
    "rights": rights,
    "remake": remake,
    "jump": jump,
    "damage": damage,
    "flood": flood,
}
