"""For any stream of records, cut into any batches, the pipeline does what one plain loop over the records does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STEP_MS
from tests.support.plain_loop import PlainLoop, policies
from tests.support.streams import Sent, cut, fates, model, poisoned, streams
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.one_of(streams(), poisoned()), st.lists(st.integers(1, 12), max_size=12), policies)
def test_any_stream_in_any_batches_is_answered_as_one_at_a_time(
    stream: list[Sent], sizes: list[int], policy: Policy
) -> None:
    plain = PlainLoop(policy)
    expected = [plain.process(sent) for sent in stream]
    line = Pipeline(model(), policy, output_topic="forecasts", dead_letter_topic="dead-letters")
    results = [line.process(batch) for batch in cut(stream, sizes)]

    found = fates(results)
    assert found == {i: fate for i, fate in enumerate(expected) if fate[0] in ("forecast", "dead")}
    for fate, counted in (("duplicate", "duplicates"), ("late", "late"), ("tombstone", "tombstones")):
        assert sum(getattr(r.counts, counted) for r in results) == [name for name, _ in expected].count(fate)
    for result in results:
        counts = result.counts
        dead = sum(counts.dead_letters.values())
        assert counts.readings == counts.forecasts + counts.duplicates + counts.late + dead
        assert counts.forecasts == len(result.forecasts)
        assert dead == len(result.dead_letters)
    for key, known in plain.series.items():
        slot = line.store.find(key)
        if policy.series_ttl_ms == 0:
            assert slot is not None
        if slot is not None:  # an idle one may be gone already
            assert line.store.states[slot].tolist() == known.model.state
            assert line.store.steps[slot] == known.steps
    assert set(line.store) <= set(plain.series)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), max_size=60))
def test_two_readings_of_one_series_never_share_a_wave(order: list[int]) -> None:
    waves: list[list[float]] = []  # of each row its first feature, which is the number of its series
    model_step = Model.step

    def step(self: Model, x, ts, state):  # type: ignore[no-untyped-def]
        waves.append(x[:, 0].tolist())
        return model_step(self, x, ts, state)

    stream = []
    for i, series in enumerate(order):
        ts = START_MS + i * STEP_MS
        value = json.dumps({"ts": ts, "value": series, "wind": i}).encode()
        stream.append(Sent(b"%d" % series, value, ts, (series, i), 0))
    line = Pipeline(model(), Policy(max_gap_steps=0), output_topic="f", dead_letter_topic="d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "step", step)
        for batch in cut(stream, []):
            line.process(batch)
    assert all(len(set(wave)) == len(wave) for wave in waves)
    assert sorted(v for wave in waves for v in wave) == sorted(order)
    assert len(waves) == max((order.count(series) for series in order), default=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(streams(), st.lists(st.integers(1, 12), max_size=12))
def test_missing_values_and_poison_in_one_series_leave_the_others_equal_to_the_bit(
    stream: list[Sent], sizes: list[int]
) -> None:
    def run(other: bytes) -> tuple[list[bytes | None], dict[bytes, bytes]]:
        line = Pipeline(model(), Policy(), output_topic="forecasts", dead_letter_topic="dead-letters")
        forecasts: list[bytes | None] = []
        for batch in cut(stream, sizes):
            for i, key in enumerate(batch.keys):
                if key == b"a" and batch.values[i] is not None:
                    batch.values[i] = other % (stream[batch.offsets[i]].ts)
            result = line.process(batch)
            forecasts += [v for k, v in zip(result.forecasts.keys, result.forecasts.values, strict=True) if k != b"a"]
        return forecasts, {key: line.store.states[line.store.find(key)].tobytes() for key in line.store if key != b"a"}

    calm = run(b'{"ts": %d, "value": 1, "wind": 1}')
    assert run(b'{"ts": %d, "value": NaN}') == calm
    assert run(b'{"ts": %d, "value": 666}') == calm
    assert run(b'{"ts": %d, "value": 667}') == calm


any_bytes = st.binary(max_size=30) | st.sampled_from(
    [b'{"ts": 1700000000000, "value": 1}', b'{"ts": 1700000060000, "value": NaN}', b"\x00\x00\x00\x00\x01{}"]
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.none() | any_bytes, st.none() | any_bytes, st.integers(-1, 2**40), st.integers(0, 3)), max_size=12
    ),
    policies,
)
def test_no_bytes_raise_and_every_record_has_one_outcome(
    records: list[tuple[bytes | None, bytes | None, int, int]], policy: Policy
) -> None:
    stream = [Sent(key, value, 0, None, timestamp, partition) for key, value, timestamp, partition in records]
    line = Pipeline(model(), policy, output_topic="forecasts", dead_letter_topic="dead-letters")
    results = [line.process(batch) for batch in cut(stream, [])]
    silent = sum(r.counts.duplicates + r.counts.late + r.counts.tombstones for r in results)
    assert len(fates(results)) + silent == len(stream)
