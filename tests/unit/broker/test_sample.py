"""Which of a topic's newest records are looked at, and how counts are worded."""

import pytest

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.sample import newest
from tidecast.service.wording import about, counted, printable


def sample(counts):
    broker, out = MemoryBroker(), OutgoingBatch("readings")
    broker.create_topic("readings", len(counts))
    for partition, count in enumerate(counts):
        for row in range(count):
            out.append(b"k", b"%d" % row, partition=partition)
    broker.producer().produce(out)
    return newest(broker, "readings", 5.0).batch


@pytest.mark.parametrize(
    "counts, read",
    [((2_000, 2_000), (500, 500)), ((10, 3_000), (10, 990)), ((0, 5), (0, 5)), ((4_000, 100, 400), (500, 100, 400))],
)
def test_a_partition_with_few_records_leaves_its_share_to_the_others(counts, read):
    batch = sample(counts)
    assert tuple(batch.partitions.count(p) for p in range(len(counts))) == read


def test_the_newest_records_are_read_not_the_oldest():
    assert sample((1_500,)).values[0] == b"500"


@pytest.mark.parametrize(
    "ms, text", [(0, "0 ms"), (1_900, "1900 ms"), (60_000, "60 s"), (-10_800_000, "3 h"), (172_800_000, "2 d")]
)
def test_durations_are_in_the_unit_that_people_use(ms, text):
    assert about(ms) == text


def test_one_is_not_several():
    assert counted(1, "reading") == "1 reading" and counted(1_000, "copy", "copies") == "1,000 copies"


def test_a_foreign_text_cannot_act_on_the_terminal():
    assert printable("a\x1b[2J\nb\u202eé") == "a\\x1b[2J\\nb\\u202eé"
