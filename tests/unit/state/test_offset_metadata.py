"""The metadata of a committed offset: what a worker wrote there, the next one reads."""

from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.state.offset_metadata import Committed

HASHES = st.text("0123456789abcdef", min_size=12, max_size=12)
numbers = st.integers(0, 2**62)
ids = st.builds("{}@{}".format, st.text(min_size=1).filter(str.strip), HASHES)
alone = st.builds(Committed, numbers, numbers, st.booleans(), st.binary(min_size=8, max_size=8), ids)
grouped = st.builds(
    Committed, numbers, numbers, st.booleans(), st.binary(min_size=8, max_size=8), ids,
    st.lists(HASHES, min_size=2, max_size=16).map(tuple), st.none() | HASHES, st.none() | numbers,
)  # fmt: skip


@given(alone | grouped)
def test_what_is_committed_comes_back(committed):
    assert Committed.parse(committed.offset, committed.text) == committed
    assert len(committed.text) - len(committed.model) < 400, "Kafka has room for 4,096 bytes"


def test_without_shadows_the_text_is_what_older_versions_wrote_and_read():
    text = "s=7 f=1 l=0102030405060708 m=my model@0123456789ab"
    found = Committed.parse(9, text)
    assert (found.model, found.members, found.decision) == ("my model@0123456789ab", (), None)
    assert found.maker == "0123456789ab"
    assert found.text == text


def test_a_text_of_another_program_is_ignored():
    assert Committed.parse(5, "s=x") == Committed(5)
    assert Committed.parse(5, "") == Committed(5)
