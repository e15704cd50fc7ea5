from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.pipeline.dead_letters import cut_to_fit

OURS = [("tidecast.reason", b"too_large")]


def dead_letter(key, value, headers=OURS):
    made = OutgoingBatch("dead-letters")
    made.append(key, value, headers=headers)
    return made


def size(letters):
    return (
        sum(len(part or b"") for part in (*letters.keys, *letters.values))
        + sum(len(name) + len(text) for headers in letters.headers for name, text in headers)
    )  # fmt: skip


def test_a_dead_letter_that_fits_stays_as_it_is():
    letters = dead_letter(b"k", b"x" * 500)
    assert cut_to_fit(letters, 1_000) == 0
    assert letters == dead_letter(b"k", b"x" * 500)


def test_one_that_does_not_fit_keeps_its_beginning_and_says_how_large_it_was():
    letters = dead_letter(b"k", b"abc" * 1_000_000)
    assert cut_to_fit(letters, 10_000) == 1
    assert letters.keys == [b"k"] and letters.values[0] == (b"abc" * 10_000)[: len(letters.values[0])]
    assert 9_000 < size(letters) < 10_000
    assert letters.headers == [[*OURS, ("tidecast.original_bytes", b"3000001")]]


@given(
    st.none() | st.binary(max_size=3_000),
    st.none() | st.binary(max_size=3_000),
    st.lists(st.tuples(st.text(st.characters(codec="ascii"), max_size=50), st.binary(max_size=2_000)), max_size=5),
)
def test_whatever_comes_is_no_larger_than_its_topic_allows(key, value, headers):
    letters = dead_letter(key, value, [*headers, *OURS])
    cut = cut_to_fit(letters, 2_000)
    assert size(letters) <= 2_000
    assert (letters.keys[0] is None, letters.values[0] is None) == (key is None, value is None)
    assert ("tidecast.original_bytes" in dict(letters.headers[0])) == (cut == 1) or "tidecast.original_bytes" in dict(
        headers
    )
    assert OURS[0] in letters.headers[0]
