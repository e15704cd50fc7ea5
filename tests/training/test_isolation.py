"""Whatever is sent to some series, the forecasts and states of all others are the same to the last bit."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.models import POISON_FORECAST, POISON_STATE, counting_model
from tidecast.service.broker.port import Batch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.training.export.export import write

START_MS = 1_700_000_000_000 // 3_600_000 * 3_600_000
CALM = [b"calm-%d" % i for i in range(7)]
WILD = [b"wild-%d" % i for i in range(4)]
# What a float32 can be, at its edges and beyond: largest, smallest, denormal, negative zero, not finite, and what a
# JSON number can be that no float32 holds.
EXTREMES = (
    math.nan,
    math.inf,
    -math.inf,
    1e30,
    -1e38,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    1e39,
    -1e300,
    1.1754943508222875e-38,
    1e-40,
    -1e-45,
    5e-324,
    -0.0,
    POISON_STATE,
    POISON_FORECAST,
    None,
)


@pytest.fixture(scope="module")
def models(fitted, config, dataset, tmp_path_factory):
    """`name -> Model`: the one that counts its steps, and a trained one."""
    found = {"counting": Model.load(counting_model(tmp_path_factory.mktemp("counting")))}
    file = tmp_path_factory.mktemp("trained") / "model.onnx"
    write(fitted.graph(), fitted.model, config, dataset, {}, file)
    return {**found, "trained": Model.load(file.parent)}


def values(spec, key, step, rng):
    """A sane reading of a series at a step."""
    phase = sum(key) + step
    return {f: round(40 + 10 * math.sin(phase / 4 + i) + rng.normal(), 3) for i, f in enumerate(spec.features)}


def stream(spec, wild, seed, steps):
    """Records of all series, in an order and with repeats and gaps of the seed's; `wild(key, step)` = (fate, value).

    The calm series' records are the same whatever `wild` says, and a fate of "absent" leaves a wild one out.
    """
    rng, orders = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    records = []
    for step in range(steps):
        keys = CALM + WILD
        for i in orders.permutation(len(keys)):
            key = keys[i]
            sane, gap, twice = values(spec, key, step, rng), orders.random() < 0.08, orders.random() < 0.3
            if gap:
                continue  # a silent step for this series: the waves hold others then
            if key in WILD:
                what = wild(key, step)
                if what == "absent":
                    continue
                if what != "sane":
                    sane = dict.fromkeys(sane, what)
            ts = START_MS + 2 * step * spec.step_ms
            for at in (ts, ts + spec.step_ms) if twice else (ts,):
                records.append((key, json.dumps({"ts": at, **sane}).encode()))
    return records


def run(model, records, sizes):
    """Of the calm series forecasts (but for `source`) and states, as bytes; how many readings were dead letters."""
    line = Pipeline(model, Policy(max_future_ms=0), output_topic="forecasts", dead_letter_topic="dead-letters")
    told, dead, at, cut = {key: [] for key in CALM}, 0, 0, 0
    while at < len(records):
        part = records[at : at + sizes[cut % len(sizes)]]
        batch = Batch("readings")
        for i, (key, value) in enumerate(part, start=at):
            batch.partitions.append(0)
            batch.offsets.append(i)
            batch.timestamps.append(START_MS)
            batch.keys.append(key)
            batch.values.append(value)
            batch.headers.append(())
        at, cut = at + len(part), cut + 1
        result = line.process(batch)
        dead += len(result.dead_letters)
        assert not set(result.dead_letters.keys) & set(CALM)
        for key, value in zip(result.forecasts.keys, result.forecasts.values, strict=True):
            if key in told:
                told[key].append(re.sub(rb'"source":"readings-0-\d+",', b"", value))
    table = line.store
    return told, {key: table.states[table.find(key)].tobytes() for key in CALM}, dead


@pytest.mark.parametrize("kind", ["counting", "trained"])
@pytest.mark.parametrize("extreme", EXTREMES, ids=str)
def test_an_extreme_value_in_some_series_changes_no_bit_of_the_others(models, kind, extreme):
    model = models[kind]
    sizes = [len(CALM + WILD) * 3, 5, 1, 17]
    calm = run(model, stream(model.spec, lambda key, step: "sane", 3, 12), sizes)
    wild = run(model, stream(model.spec, lambda key, step: extreme if step % 3 else "sane", 3, 12), sizes)
    assert wild[:2] == calm[:2]
    assert all(len(forecasts) >= 10 for forecasts in calm[0].values())
    assert calm[2] == 0
    if kind == "counting" and extreme in (POISON_STATE, POISON_FORECAST):
        assert wild[2] >= 4 * 6, "the poison was not taken"


@pytest.mark.parametrize("kind", ["counting", "trained"])
def test_series_that_are_not_there_change_no_bit_of_the_others(models, kind):
    """Nor does how many share a wave with them, then."""
    model = models[kind]
    records = stream(model.spec, lambda key, step: "sane", 4, 12)
    alone = stream(model.spec, lambda key, step: "absent", 4, 12)
    assert [r for r in records if r[0] in CALM] == alone
    assert run(model, records, [7])[:2] == run(model, alone, [40])[:2]


@pytest.mark.parametrize("kind", ["counting", "trained"])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(
        st.sampled_from(EXTREMES) | st.floats(width=32) | st.floats() | st.just("sane"), min_size=1, max_size=40
    ),
    seed=st.integers(0, 1_000),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_no_values_in_some_series_change_a_bit_of_the_others(models, kind, fates, seed, sizes):
    model = models[kind]
    at = {key: i for i, key in enumerate(WILD)}

    def wild(key, step):
        return fates[(4 * step + at[key]) % len(fates)]

    sane = run(model, stream(model.spec, lambda key, step: "sane", seed, 6), sizes)
    assert run(model, stream(model.spec, wild, seed, 6), sizes)[:2] == sane[:2]
