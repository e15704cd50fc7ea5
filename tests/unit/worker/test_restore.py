"""What a restore makes of a changelog: of each series the last record, however its records are cut into batches."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streams import model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.config.settings import Settings
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


@pytest.mark.parametrize("batch", [1, 4, 1_000])
def test_where_not_all_series_have_room_those_written_last_stay(batch: int) -> None:
    order = [b"a", b"b", b"c", b"a", b"d", b"e"]
    table, _ = restored([(0, key, number) for number, key in enumerate(order)], batch, max_series=3)
    assert list(table) == [b"a", b"d", b"e"]
