"""A changelog with a damaged or foreign record: that one series is set aside, and no other."""

import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.streams import model as counting_session
from tests.support.world import SERIES, World
from tests.unit.worker.test_restore import record
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.errors import TidecastError
from tidecast.service.model.session import Model
from tidecast.service.state.flush import GROUP_HEADER
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.restore import Restore
from tidecast.service.worker.served_models import ServedModels

NAN = struct.pack("<f", float("nan"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


def with_crc(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("at", [3, 40, -1], ids=["in its layout", "in its state", "in its checksum"])
def test_a_series_with_a_damaged_state_starts_again_and_the_others_continue(model, at, caplog):
    world = World(model)
    world.send(0, 10, rubbish=False)
    world.live()
    (partition, key, value, _) = next(r for r in reversed(world.read("tidecast-state")) if r[2])
    damaged = bytearray(value)
    damaged[at] ^= 1
    spoilt = OutgoingBatch("tidecast-state")
    spoilt.append(key, bytes(damaged), partition=partition, headers=[(GROUP_HEADER, b"tidecast")])
    world.broker.producer().produce(spoilt)
    world.send(10, 11, rubbish=False)
    world.live()
    found = {k: f["targets"]["value"]["p50"] for _, k, f in world.forecasts() if f["ts"] == START_MS + 10 * STEP_MS}
    assert found == {
        k: median(number, steps=range(10, 11) if k == key else range(11)) for number, k in enumerate(SERIES)
    }
    assert world.metric("resets_total", reason="damaged_state") == 1
    (line,) = [r for r in caplog.records if "set aside" in r.message]
    assert line.key == key.decode() and line.record.startswith(f"tidecast-state-{partition}-")
    caplog.clear()
    world.live()
    assert not [r for r in caplog.records if "set aside" in r.message], "its record is replaced"


def stranger(kind):
    """A record that no worker of this group has written: key, value, headers."""
    value, owner = record(1), [(GROUP_HEADER, b"tidecast")]
    return {
        "empty": (b"k", b"", owner),
        "cut short": (b"k", value[:20], owner),
        "not finite": (b"k", with_crc(value[:-8] + NAN), owner),
        "of another version": (b"k", with_crc(b"\5" + value[1:-4]), owner),
        "of another model": (b"k", with_crc(value[:1] + b"another!" + value[9:-4]), owner),
        "beyond the end": (b"k", record(10_000), owner),
        "without text as key": (b"\xff", value, owner),
        "without text in a header": (b"k", value, [(GROUP_HEADER, b"\xff\xfe")]),
    }[kind]


KINDS = ("empty", "cut short", "not finite", "of another version", "of another model", "beyond the end",
         "without text as key", "without text in a header")  # fmt: skip


def restored_with(*others, good=3):
    """The series that a restore brings back of some good states and others, and how many it has set aside."""
    broker = MemoryBroker()
    broker.create_topic("readings", 1)
    broker.create_topic("tidecast-state", 1)
    out = OutgoingBatch("tidecast-state")
    for number in range(good):
        out.append(b"good%d" % number, record(number), partition=0, headers=[(GROUP_HEADER, b"tidecast")])
    for key, value, headers in others:
        out.append(key, value, partition=0, headers=headers)
    broker.producer().produce(out)
    consumer = broker.consumer(group="tidecast")
    consumer.assign("readings", {0: 0})
    consumer.commit({0: 1_000}, "")
    options, partitions = Settings(), {0: Partition()}
    models = ServedModels(options, counting_session(), partitions, time.monotonic)
    doing = Restore(broker, options, partitions, models, time.monotonic)
    while partitions[0].restoring:
        doing.advance(consumer, 0.0)
    doing.close()
    return sorted(models.current.store), doing.damaged


GOOD = [b"good0", b"good1", b"good2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_record_is_set_aside_with_its_place_and_the_other_states_come_back(kind, caplog):
    key, _, _ = stranger(kind)
    assert restored_with(stranger(kind)) == (GOOD, 1)
    (line,) = [r for r in caplog.records if "set aside" in r.message]
    assert line.record == "tidecast-state-0-3" and line.key == key.decode("utf-8", "backslashreplace") and line.reason


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(record(1)) - 1), st.integers(0, 7))
def test_one_wrong_bit_or_a_cut_anywhere_sets_aside_that_state_and_no_other(at, bit):
    value, owner = record(1), [(GROUP_HEADER, b"tidecast")]
    for spoilt in (value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :], value[:at]):
        assert restored_with((b"k", spoilt, owner)) == (GOOD, 1)


def test_a_later_record_replaces_a_strangers():
    owner = [(GROUP_HEADER, b"tidecast")]
    assert restored_with(stranger("of another version"), (b"k", record(5), owner)) == ([*GOOD, b"k"], 0)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("of another version", "version 5"),
        ("of another model", "another model, layout"),
        ("beyond the end", "the changelog is ahead of the group"),
    ],
)
def test_a_changelog_that_is_mostly_a_strangers_is_refused_and_not_deleted(kind, says):
    _, value, owner = stranger(kind)
    with pytest.raises(TidecastError, match=says):
        restored_with(*((b"k%d" % i, value, owner) for i in range(4)))


def median(number, steps):
    """Of the forecast after these steps, by a plain loop."""
    reference = CountingReference()
    for step in steps:
        rows = reference.step((number, step), START_MS + step * STEP_MS)
    return [row[1] for row in rows]
