"""The JSON that goes out: forecasts and their numbers, many at once, as a JSON writer writes each."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import counting_spec
from tidecast.service.pipeline.encode import ForecastEncoder, RecordPositions

TS = 1_700_000_000_000


def positions(*offsets: int, topic: str = "readings", partition: int = 4) -> RecordPositions:
    return RecordPositions(topic, np.full(len(offsets), partition, dtype=np.int32), np.array(offsets, dtype=np.int64))


def encode(score: list[float], warm: bool = True, **changes: object) -> dict[str, object]:
    y = np.arange(6, dtype=np.float32).reshape(1, 2, 1, 3) + np.float32(0.1)
    encoder = ForecastEncoder(counting_spec(hash="ab" * 32, **changes))
    ts = np.array([TS])
    (value,) = encoder.encode(positions(70), ts, np.array([warm]), y, np.array([score], dtype=np.float32))
    return json.loads(value)


def test_a_forecast_is_written_as_the_contract_says() -> None:
    assert encode([2.0, 0.3]) == {
        "ts": TS,
        "step_ms": 60_000,
        "model": "counting@abababababab",
        "warm": True,
        "source": "readings-4-70",
        "targets": {"value": {"p10": [0.1, 3.1], "p50": [1.1, 4.1], "p90": [2.1, 5.1]}},
        "score": {"missing": 2.0, "earlier": 0.3},
    }


def test_scores_that_there_are_none_of_are_left_out() -> None:
    assert encode([math.nan, 0.3], warm=False)["score"] == {"earlier": 0.3}
    assert encode([math.nan, math.inf])["score"] == {}


def test_any_target_and_diagnostic_name_survives_the_json() -> None:
    assert list(encode([1.0, 1.0], targets=['a "b"\n'])["targets"]) == ['a "b"\n']


def test_each_target_gets_its_own_forecast() -> None:
    encoder = ForecastEncoder(counting_spec(targets=["a", "b"], horizon=1, quantiles=[0.05, 0.975]))
    y = np.array([[[[1, 2], [3, 4]]]], dtype=np.float32)
    (value,) = encoder.encode(positions(70), np.array([TS]), np.array([True]), y, np.zeros((1, 2), dtype=np.float32))
    assert json.loads(value)["targets"] == {"a": {"p5": [1], "p97.5": [2]}, "b": {"p5": [3], "p97.5": [4]}}


def test_a_classifier_answers_with_classes() -> None:
    encoder = ForecastEncoder(counting_spec(kind="classifier", classes=["sit", "walk"], diagnostics=[]))
    y = np.array([[0.25, 0.75]], dtype=np.float32)
    (value,) = encoder.encode(positions(70), np.array([TS]), np.array([True]), y, np.zeros((1, 0), dtype=np.float32))
    found = json.loads(value)
    assert found["classes"] == {"sit": 0.25, "walk": 0.75}
    assert found["score"] == {}
    assert "targets" not in found


anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.builds(
    lambda digits, places: float(np.float32(digits / 10**places)), st.integers(-(10**9), 10**9), st.integers(0, 12)
)


@settings(deadline=None)
@given(
    st.integers(0, 4).flatmap(
        lambda n: st.lists(st.lists(anything | usual, min_size=4, max_size=4), min_size=n, max_size=n)
    ),
    st.lists(st.lists(st.floats(width=32) | usual, min_size=2, max_size=2), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from([TS, 0, -5, 7_258_118_400_000, -2_208_988_800_000]),
    st.sampled_from([0, 9, 999, 123_456_789_012_345]),
    st.sampled_from([0, 7, 999, 1_000, 99_999]),
)
def test_forecasts_are_written_as_a_json_writer_would_one_by_one(
    rows: list[list[float]], scores: list[list[float]], warm: list[bool], first: int, offset: int, partition: int
) -> None:
    spec = counting_spec(targets=['a "b"\n', "é"], horizon=2, quantiles=[0.5], name="m\x00")
    n = len(rows)
    y = np.array(rows, dtype=np.float32).reshape(n, 2, 2, 1)
    score, ts = np.array(scores[:n], dtype=np.float32).reshape(n, 2), np.arange(first, first + n)
    expected = []
    for i in range(n):
        targets = {name: {"p50": short_floats(y[i, :, t, 0]).tolist()} for t, name in enumerate(spec.targets)}
        kept = {
            d.name: s
            for d, s in zip(spec.diagnostics, short_floats(score[i]).tolist(), strict=True)
            if math.isfinite(s)
        }
        forecast = {"ts": int(ts[i]), "step_ms": 60_000, "model": spec.id, "warm": warm[i]}
        forecast["source"] = f"a.b_c-1-{partition}-{offset + i}"
        expected.append(forecast | {"targets": targets, "score": kept})
    theirs = positions(*range(offset, offset + n), topic="a.b_c-1", partition=partition)
    values = ForecastEncoder(spec).encode(theirs, ts, np.array(warm[:n], dtype=np.bool_), y, score)
    assert list(map(in_order, values)) == [in_order(msgspec.json.encode(each)) for each in expected]


def in_order(value: bytes) -> object:
    """What it says, with the order of the names: how an exponent is written is the writer's."""
    return json.loads(value, object_pairs_hook=list)


def short_floats(values: np.ndarray) -> np.ndarray:
    """Each float32 as the double that has the fewest digits of those that become it."""
    return np.array([float(str(value)) for value in values.ravel()]).reshape(values.shape)


def numbers_of(values: np.ndarray) -> list[str]:
    """What is written of each float32."""
    encoder = ForecastEncoder(counting_spec(horizon=1, quantiles=[0.5], diagnostics=[]))
    n = len(values)
    y, score, warm = values.reshape(n, 1, 1, 1), np.zeros((n, 0), dtype=np.float32), np.ones(n, dtype=np.bool_)
    found = encoder.encode(positions(*range(n)), np.arange(n), warm, y, score)
    return [value.split(b'"p50":[')[1].split(b"]")[0].decode() for value in found]


def see_that_all_are_short_and_exact(values: np.ndarray) -> None:
    texts = numbers_of(values)
    np.testing.assert_array_equal(np.array([float(text) for text in texts]).astype(np.float32), values)
    shortest = [len(digits(float(str(value)))) for value in values]
    assert [len(digits(float(text))) for text in texts] == shortest


@settings(deadline=None)
@given(st.lists(anything | usual, min_size=1, max_size=50))
def test_numbers_are_written_with_as_few_digits_as_keep_them(values: list[float]) -> None:
    see_that_all_are_short_and_exact(np.array(values, dtype=np.float32))


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-4, 1e-3, 0.1, 1, 20, 1e3, 1e5, 1e7, 1e9, 1e12])
def test_many_numbers_at_once_are_written_as_each_alone(size: float) -> None:
    values = (np.random.default_rng(0).standard_normal(10_000) * size).astype(np.float32)
    see_that_all_are_short_and_exact(values)
    assert numbers_of(values)[::1_000] == [numbers_of(values[i : i + 1])[0] for i in range(0, 10_000, 1_000)]


def test_numbers_next_to_powers_of_ten_and_of_two_are_written_right() -> None:
    powers = np.array([10.0**n for n in range(-38, 39)] + [2.0**n for n in range(-120, 120)], dtype=np.float32)
    lower, upper = np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(3e38))
    for values in (powers, -powers, lower, upper, np.arange(100_000, dtype=np.float32)):
        see_that_all_are_short_and_exact(values)


def digits(value: float) -> str:
    return repr(abs(value)).split("e")[0].replace(".", "").strip("0")


def test_real_sized_values_have_no_noise_digits() -> None:
    values = [20.1, -273.15, 1013.25, 0.001, 16777216, 1e-11, 1e19, 1e-40, 3.4e38]
    assert [float(text) for text in numbers_of(np.array(values, dtype=np.float32))] == values
