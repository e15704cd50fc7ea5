"""A changelog with a damaged or foreign record: that one series is set aside, and no other."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.world import SERIES, World
from tests.unit.worker.test_restore import CODEC, record
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import ChangelogError
from tidecast.service.model.session import Model
from tidecast.service.state.flush import GROUP_HEADER

NAN = struct.pack("<f", float("nan"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


def with_crc(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


@settings(deadline=None)
@given(st.integers(0, len(record(1)) - 1), st.integers(0, 7))
def test_one_wrong_bit_anywhere_is_damage(at, bit):
    value = bytearray(record(1))
    value[at] ^= 1 << bit
    assert CODEC.damage(bytes(value)) and CODEC.damage(record(1)) is None


@pytest.mark.parametrize("value", [b"", b"x", record(1)[:-1], record(1)[:20], with_crc(record(1)[:-8] + NAN)])
def test_what_is_cut_short_or_not_finite_is_damage(value):
    assert CODEC.damage(value)


def test_an_intact_record_of_another_version_or_model_is_no_damage():
    """All series of that changelog are the other's: this worker must not delete them."""
    assert CODEC.damage(with_crc(b"\2" + record(1)[1:-4])) is None
    assert CODEC.damage(with_crc(record(1)[:1] + b"another!" + record(1)[9:-4])) is None
    with pytest.raises(ChangelogError, match="version 2"):
        CODEC.decode_many([with_crc(b"\2" + record(1)[1:-4])])


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


def median(number, steps):
    """Of the forecast after these steps, by a plain loop."""
    reference = CountingReference()
    for step in steps:
        rows = reference.step((number, step), START_MS + step * STEP_MS)
    return [row[1] for row in rows]
