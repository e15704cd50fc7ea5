"""What kafka-python's batches are unpacked with: what the library unpacks, and no more than the limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import codec

from tidecast.service.broker.kafka_python.unpacking import _TooLarge, unpack

PACK = {
    "gzip": (1, codec.gzip_encode),
    "snappy": (2, codec.snappy_encode),
    "snappy, one block": (2, lambda data: codec.snappy_encode(data, xerial_compatible=False)),
    "lz4": (3, codec.lz4_encode),
    "zstd": (4, codec.zstd_encode),
}


@pytest.mark.parametrize("name", PACK)
@settings(deadline=None, max_examples=8)
@given(data=st.binary(max_size=100), times=st.sampled_from([1, 3_000]))
def test_what_was_packed_is_unpacked_up_to_the_limit_and_not_beyond_it(name, data, times):
    number, pack = PACK[name]
    whole = data * times
    packed = pack(whole)
    assert unpack(number, packed, len(whole)) == whole
    if whole:
        with pytest.raises(_TooLarge):
            unpack(number, packed, len(whole) - 1)


def test_a_snappy_block_that_announces_gigabytes_is_refused_before_room_is_made_for_them():
    with pytest.raises(_TooLarge):
        unpack(2, b"\xff\xff\xff\xff\x0f" + bytes(20))


@pytest.mark.parametrize(
    "name", sorted(PACK.keys() - {"zstd"})
)  # cut zstd gives less; the library sees that a record ends early
def test_what_is_cut_short_is_an_error_and_not_a_shorter_batch(name):
    number, pack = PACK[name]
    packed = pack(bytes(range(256)) * 40)
    for end in (len(packed) // 2, len(packed) - 1):
        with pytest.raises(Exception) as found:
            unpack(number, packed[:end])
        assert not isinstance(found.value, _TooLarge)
