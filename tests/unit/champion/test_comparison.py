"""The comparison of a shadow with the champion: losses of the same readings, in blocks."""

import msgspec
import numpy as np
import pytest

from tests.support.models import counting_spec
from tidecast.service.champion import comparison
from tidecast.service.champion.comparison import BLOCK, FEWEST_READINGS, Comparison
from tidecast.service.champion.paired_test import ALPHA
from tidecast.service.champion.series_numbers import SAMPLE, SeriesNumbers
from tidecast.service.model.spec import Diagnostic

LEADS = (1, 12)
SPEC = counting_spec(
    diagnostics=[Diagnostic("surprise", "surprise", "value", 1)]
    + [Diagnostic(f"error_{lead}", "absolute_error", "value", lead) for lead in LEADS]
)
NAN = float("nan")


def feed(compared, series=20, steps=FEWEST_READINGS, gain=0.0, scale=None, seed=0, rows=None):
    """Readings of so many series: the shadow's losses are smaller by `gain`, the units differ by series."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** np.arange(series) % 7 + 1 if scale is None else scale
    losses = np.abs(random.standard_normal((2, steps, series, len(LEADS)))) * scale[None, None, :, None]
    losses[1] *= 1.0 - gain
    surprise = np.full((2, steps, series, 1), NAN)
    scores = np.concatenate([surprise, losses], axis=3).astype(np.float32).reshape(2, steps * series, -1)
    numbers, ts = np.tile(np.arange(series), steps), np.repeat(np.arange(steps) * 60_000, series)
    for start in range(0, steps * series, rows or steps * series):
        part = slice(start, start + (rows or steps * series))
        compared.add(numbers[part], ts[part], scores[0, part], scores[1, part])
    return compared


def test_a_better_shadow_is_found_by_a_day_of_readings_and_the_evidence_says_by_how_much():
    found = feed(Comparison(SPEC, SPEC), gain=0.2).evidence(1 / ALPHA)
    assert found.e_value >= found.needed == 100.0
    assert (found.series, found.readings) == (20, 20 * FEWEST_READINGS)
    assert found.span_seconds == (FEWEST_READINGS - 1) * 60
    assert found.loss["value"] == pytest.approx({"1": 0.8, "12": 0.8}, abs=0.04)


def test_the_same_model_or_a_worse_one_has_no_evidence():
    assert feed(Comparison(SPEC, SPEC), gain=-0.2).e_value == 0.0
    same = Comparison(SPEC, SPEC)
    scores = np.abs(np.random.default_rng(0).standard_normal((5_000, 3))).astype(np.float32)
    same.add(np.arange(5_000) % 20, np.arange(5_000), scores, scores)
    assert same.e_value == 0.0


def test_there_is_no_evidence_before_a_day_of_readings():
    compared = feed(Comparison(SPEC, SPEC), gain=0.5, steps=FEWEST_READINGS - 1)
    assert compared.e_value == 0.0
    assert feed(compared, gain=0.5, steps=1).e_value > 1 / ALPHA


def test_how_readings_are_cut_into_batches_does_not_matter():
    whole, cut = feed(Comparison(SPEC, SPEC), gain=0.1), feed(Comparison(SPEC, SPEC), gain=0.1, rows=20)
    assert cut.evidence(100.0) == whole.evidence(100.0)


def test_a_series_with_large_values_does_not_decide_alone():
    """It alone gains, and the others lose a little."""
    scale = np.array([1e6] + [1.0] * 19)
    compared, random = Comparison(SPEC, SPEC), np.random.default_rng(0)
    losses = np.abs(random.standard_normal((FEWEST_READINGS * 20, 1))) * np.tile(scale, FEWEST_READINGS)[:, None]
    champion = np.repeat(losses, 3, axis=1).astype(np.float32)
    shadow = champion * np.tile(np.array([0.8] + [1.02] * 19, dtype=np.float32), FEWEST_READINGS)[:, None]
    compared.add(np.tile(np.arange(20), FEWEST_READINGS), np.arange(len(losses)), champion, shadow)
    ratio = compared.evidence(100.0).loss["value"]["1"]
    assert shadow.sum() < champion.sum()
    assert ratio == pytest.approx((0.8 + 19 * 1.02) / 20, abs=0.005)


def test_a_lead_that_only_one_model_could_score_at_a_reading_is_left_out():
    compared = Comparison(SPEC, SPEC)
    champion = np.ones((1_000, 3), dtype=np.float32)
    shadow = np.full((1_000, 3), 0.5, dtype=np.float32)
    champion[::2, 1] = NAN
    shadow[::3, 1] = np.inf
    shadow[:, 2] = NAN
    compared.add(np.zeros(1_000, dtype=np.int64), np.arange(1_000), champion, shadow)
    assert compared.evidence(100.0).loss == {"value": {"1": 0.5}}


def test_models_are_compared_at_the_leads_that_both_score_whatever_their_order():
    other = msgspec.structs.replace(
        SPEC,
        diagnostics=[
            Diagnostic("b", "absolute_error", "value", 12),
            Diagnostic("c", "absolute_error", "another", 1),
        ],
    )
    compared = Comparison(SPEC, other)
    compared.add(
        np.zeros(1_000, dtype=np.int64),
        np.arange(1_000),
        np.tile(np.array([9, 9, 4], dtype=np.float32), (1_000, 1)),
        np.tile(np.array([2, 9], dtype=np.float32), (1_000, 1)),
    )
    assert compared.evidence(100.0).loss == {"value": {"12": 0.5}}


def test_models_of_different_targets_cannot_be_compared():
    other = msgspec.structs.replace(SPEC, diagnostics=[Diagnostic("c", "absolute_error", "another", 1)])
    assert Comparison(SPEC, SPEC).possible
    compared = Comparison(SPEC, other)
    assert not compared.possible
    compared.add(np.zeros(9, dtype=np.int64), np.arange(9), np.ones((9, 3)), np.ones((9, 1)))
    assert compared.evidence(100.0).readings == 0


def test_only_a_sample_of_very_many_series_is_compared():
    compared = Comparison(SPEC, SPEC)
    ones = np.ones((3 * SAMPLE, 3), dtype=np.float32)
    compared.add(np.arange(3 * SAMPLE), np.arange(3 * SAMPLE), ones, ones)
    assert compared.evidence(100.0).series == compared.evidence(100.0).readings == SAMPLE


def test_of_many_leads_some_from_the_first_to_the_last_are_compared():
    many = msgspec.structs.replace(
        SPEC, diagnostics=[Diagnostic(str(lead), "absolute_error", "value", lead) for lead in range(1, 25)]
    )
    compared, ones = Comparison(many, many), np.ones((20 * 24, 24), dtype=np.float32)
    compared.add(np.tile(np.arange(20), 24), np.arange(20 * 24), ones, ones / np.arange(1, 25))
    loss = compared.evidence(100.0).loss["value"]
    assert list(loss) == ["1", "4", "8", "11", "14", "17", "21", "24"]
    assert loss["24"] == pytest.approx(1 / 24, abs=1e-3)


def test_series_that_have_gone_give_their_place_to_others():
    numbers, compared = SeriesNumbers(), Comparison(SPEC, SPEC)
    for trip in range(0, 5 * SAMPLE, 16):  # 16 at a time, each with 300 readings
        keys = [b"trip %d" % (trip + each) for each in range(16)]
        series = numbers.of(keys)
        assert (series < SAMPLE).all()
        losses = np.ones((300 * 16, 3), dtype=np.float32)
        compared.add(np.tile(series, 300), np.arange(len(losses)), losses, losses)
        numbers.keep(compared.active)
    assert compared.evidence(100.0).series <= 48


def test_a_series_beyond_the_sample_is_not_compared_until_another_goes():
    numbers = SeriesNumbers()
    keys = [b"%d" % each for each in range(SAMPLE + 1)]
    assert numbers.of(keys).tolist() == list(range(SAMPLE + 1))
    assert numbers.of(keys[::-1]).tolist() == list(range(SAMPLE, -1, -1))
    active = np.ones(SAMPLE, dtype=np.bool_)
    active[7] = False
    numbers.keep(active)
    assert numbers.of([keys[SAMPLE], keys[7], keys[8]]).tolist() == [7, SAMPLE, 8]


def test_a_block_is_no_shorter_than_the_longest_lead(monkeypatch):
    added = []
    monkeypatch.setattr(comparison.PairedTest, "add", lambda self, value: added.append(value))
    far = msgspec.structs.replace(SPEC, diagnostics=[Diagnostic("a", "absolute_error", "value", 5 * BLOCK)])
    ones = np.ones((20 * 10 * BLOCK, 1), dtype=np.float32)
    Comparison(far, far).add(np.tile(np.arange(20), 10 * BLOCK), np.arange(len(ones)), ones, ones)
    assert len(added) == 2
