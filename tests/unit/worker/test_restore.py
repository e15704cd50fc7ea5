"""What a restore makes of a changelog: of each series the last record, however its records are cut into batches."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streams import model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.memory.consumer import MemoryConsumer
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerUnavailable
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import GROUP_HEADER
from tidecast.service.state.store import SeriesStore
from tidecast.service.worker import restore
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.served_models import ServedModels

CODEC = Codec(model().spec)
PARTITIONS = 2


def record(number: int) -> bytes:
    column = np.array([number], dtype=np.int64)
    return CODEC.encode(column, column, column, column, np.full((1, 4), number, dtype=np.float32))[0]


def restored(changelog: list[tuple[int, bytes, int | None]], batch: int, max_series: int) -> tuple[SeriesStore, int]:
    """The table after a restore of these (partition, key, number), in batches of that size, and how many it counted."""
    broker = MemoryBroker()
    for topic in ("readings", "tidecast-state"):
        broker.create_topic(topic, PARTITIONS)
    out = OutgoingBatch("tidecast-state")
    for partition, key, number in changelog:
        value = None if number is None else record(number)
        out.append(key, value, partition=partition, headers=[(GROUP_HEADER, b"tidecast")])
    broker.producer().produce(out)
    consumer = broker.consumer(group="tidecast")
    consumer.assign("readings", dict.fromkeys(range(PARTITIONS), 0))
    consumer.commit(dict.fromkeys(range(PARTITIONS), 1_000), "")
    options = Settings(max_series=max_series)
    partitions = {number: Partition() for number in range(PARTITIONS)}
    models = ServedModels(options, model(), partitions, time.monotonic)
    doing = restore.Restore(broker, options, partitions, models, time.monotonic)
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "_BATCH", batch)
        while any(partition.restoring for partition in partitions.values()):
            done |= doing.advance(consumer, 0.0)
    doing.close()
    assert set(done) == set(range(PARTITIONS))
    return models.current.store, sum(r.series for r in done.values())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30),
    st.sampled_from([1, 2, 3, 7, 1_000]),
)
def test_of_each_series_the_last_record_counts_however_many_are_read_at_once(
    written: list[tuple[int, bool]], batch: int
) -> None:
    changelog = [
        (i % PARTITIONS, b"%d" % i, None if gone else number) for number, (i, gone) in enumerate(written, start=1)
    ]
    table, counted = restored(changelog, batch, max_series=100)
    expected = {key: (partition, number) for partition, key, number in changelog}
    expected = {key: last for key, last in expected.items() if last[1] is not None}
    assert set(table) == set(expected)
    assert counted == len(expected)
    for key, (partition, number) in expected.items():
        slot = table.find(key)
        assert slot is not None
        assert table.states[slot].tolist() == [number] * 4
        row = table.offsets[slot], table.last_ts[slot], table.steps[slot], table.seen_ms[slot], table.partitions[slot]
        assert row == (number, number, number, number, partition)


def test_a_kafka_that_goes_as_the_changelog_is_to_be_read_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assign, asked = MemoryConsumer.assign, [0]

    def lost(self: MemoryConsumer, topic: str, offsets: Mapping[int, int]) -> None:
        if topic == "tidecast-state":
            asked[0] += 1
            if asked[0] in (2, 4):  # 1 and 3 were for the ends of the changelog
                raise BrokerUnavailable("the connection is lost")
        assign(self, topic, offsets)

    monkeypatch.setattr(MemoryConsumer, "assign", lost)
    table, counted = restored([(0, b"a", 1), (1, b"b", 2)], 10, max_series=3)
    assert set(table) == {b"a", b"b"} and counted == 2 and asked == [6]


@pytest.mark.parametrize("batch", [1, 4, 1_000])
def test_where_not_all_series_have_room_those_written_last_stay(batch: int) -> None:
    order = [b"a", b"b", b"c", b"a", b"d", b"e"]
    table, _ = restored([(0, key, number) for number, key in enumerate(order)], batch, max_series=3)
    assert list(table) == [b"a", b"d", b"e"]


def test_states_of_readings_that_came_while_the_worker_was_frozen_in_its_restore_are_not_taken_for_a_wrong_changelog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It asks again what is committed: another member has answered since, and has written newer states."""
    broker = MemoryBroker()
    for topic in ("readings", "tidecast-state"):
        broker.create_topic(topic, 1)
    consumer = broker.consumer(group="tidecast")
    consumer.assign("readings", {0: 0})

    def answered(upto: int, *states: int) -> None:
        readings, written = OutgoingBatch("readings"), OutgoingBatch("tidecast-state")
        for _ in range(10):
            readings.append(b"a", b"{}", partition=0)
        for number in states:
            written.append(b"a", record(number), partition=0, headers=[(GROUP_HEADER, b"tidecast")])
        broker.producer().produce(readings)
        broker.producer().produce(written)
        consumer.commit({0: upto}, "")

    answered(5, 3, 4)
    partitions = {0: Partition()}
    models = ServedModels(Settings(), model(), partitions, time.monotonic)
    doing = restore.Restore(broker, Settings(), partitions, models, time.monotonic)
    monkeypatch.setattr(restore, "_BATCH", 1)
    assert doing.advance(consumer, 0.0) == {}
    answered(20, 19)
    monkeypatch.setattr(restore, "_BATCH", 100)
    done = {}
    while partitions[0].restoring:
        done |= doing.advance(consumer, 0.0)
    doing.close()
    assert (done[0].committed, done[0].series) == (20, 1)
    assert models.current.store.offsets[models.current.store.find(b"a")] == 19
