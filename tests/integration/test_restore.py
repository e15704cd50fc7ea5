"""What stands in a changelog besides the last states, on a real Kafka, and a restore that ends, with the right ones."""

import time
from collections import Counter

import numpy as np
import pytest
from kafka import KafkaProducer

from tests.support.counted import wait_until
from tests.support.models import counting_spec
from tests.support.serving import PATIENCE, serving
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.state.codec import Codec

EAGER = {
    "cleanup.policy": "compact",
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "100",
}


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


def abort_states(t, partitions, times=1):
    """Leave at the end of these partitions what no one may read: wrong states, and the marks that they are aborted."""
    columns = [np.array([v], dtype=np.int64) for v in (10**6, 1_800_000_000_000, 7, 0)]
    wrong = Codec(counting_spec()).encode(*columns, np.full((1, 4), 7, dtype=np.float32))[0]
    producer = KafkaProducer(bootstrap_servers=t.bootstrap_servers, transactional_id=f"{t.group}-aborting")
    headers = [("group", t.group.encode())]
    producer.init_transactions()
    for _ in range(times):
        producer.begin_transaction()
        for key, partition in t.series.items():
            if partition in partitions:
                producer.send(t.states, key=key, value=wrong, partition=partition, headers=headers)
        producer.flush()
        producer.abort_transaction()
    producer.close()


def look(t):
    """The changelog as it lies there: `partition -> keys`, aborted ones too, and `partition -> end offset`."""
    consumer = t.broker.consumer(isolation="read_uncommitted")
    consumer.assign(t.states, dict.fromkeys(range(t.count), -2))
    at, last = consumer.beginning_offsets(range(t.count)), consumer.end_offsets(range(t.count))
    keys, deadline = {p: [] for p in at}, time.monotonic() + PATIENCE
    while any(at[p] < last[p] for p in at):
        assert time.monotonic() < deadline
        batch = consumer.poll(0.5, 10_000)
        at |= batch.next_offsets
        for partition, key in zip(batch.partitions, batch.keys, strict=True):
            keys[partition].append(key)
    consumer.close()
    return keys, last


def test_markers_and_aborted_states_at_the_end_of_a_changelog_neither_hang_a_restore_nor_count(counted, model):
    t = counted(partitions=3)
    t.feed(10)
    t.live(model)
    abort_states(t, {0, 1})
    t.feed(5)
    with serving("--model", model, *t.flags) as worker:
        t.read(t.forecasts, t.steps * len(t.series))
        for key in t.series:
            status, body = worker.get(f"/series/{key.decode()}")
            assert status == 200 and '"steps":15' in body.replace(" ", ""), body
        assert worker.end()[0] == 0
    t.check()


def test_a_changelog_partition_of_nothing_but_aborted_states_is_restored_as_empty(counted, model):
    t = counted()
    abort_states(t, {0, 1}, times=3)
    t.feed(5)
    log = t.live(model)
    assert log.count("states restored") == 2 and log.count("series=0") == 2, log
    t.check()


@pytest.mark.timeout(240)
def test_a_changelog_that_was_compacted_is_restored_to_its_end_although_the_last_records_are_gone(counted, model):
    t = counted()
    t.states += "-eager"
    t.broker.create_topic(t.states, t.count, EAGER)
    with serving("--model", model, "--changelog-seconds=0.1", *t.flags) as worker:
        for _ in range(30):
            t.feed(1)
            t.read(t.forecasts, t.steps * len(t.series))  # and so at least a commit and a flush for each
        assert worker.end()[0] == 0
    _, ends = look(t)
    written = dict(ends)  # of which the cleaner may have taken some already
    assert min(written.values()) >= 30
    # The segment that is written to stays as it is: so these push what is before them out of it, to the cleaner.
    time.sleep(0.5)
    abort_states(t, {0, 1})

    def cleaned():
        keys, now = look(t)
        good = {p: Counter(keys[p]) for p in keys}
        return all(max(good[p].values()) <= 3 for p in good) and now[0] > ends[0]

    wait_until(cleaned)
    keys, ends = look(t)
    for partition, found in keys.items():
        assert set(found) == {key for key, p in t.series.items() if p == partition}
        assert len(found) < written[partition] / 2, "the cleaner has been there"
    t.feed(5)
    t.live(model)
    t.check()


def test_a_series_that_was_forgotten_stays_forgotten_when_its_tombstone_is_compacted_away(counted, model):
    t = counted(partitions=1)
    t.states += "-eager"
    t.broker.create_topic(t.states, t.count, EAGER)
    t.feed(3)
    t.live(model)
    t.send([(0, b"s0-0", None)])
    with serving("--model", model, *t.flags) as worker:
        worker.wait_for("the tombstone", lambda: b"s0-0" not in t.kept())  # the record before it may be compacted away
        assert worker.end()[0] == 0
    for _ in range(2):  # tombstones go the second time that the cleaner comes by
        time.sleep(0.5)
        abort_states(t, {0})
        keys = set(t.kept())
        assert keys == {b"s0-1", b"s0-2"}
    with serving("--model", model, *t.flags) as worker:
        worker.ready()
        assert worker.get("/series/s0-0")[0] == 404
        assert worker.get("/series/s0-1")[0] == 200
        assert worker.end()[0] == 0
