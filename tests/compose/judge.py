"""Was any reading lost or answered twice, and did each series' state advance? Judged by one pipeline's own forecasts.

All readings of the topic go through one pipeline in this process, which nobody kills: what it says of each must be
what the workers said, once, on the same partition. (tests/chaos/verifier.py knows no gaps; the stations have some.)
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np

from tests.chaos.readings import Record
from tests.chaos.topics import read_all
from tidecast.service.broker.port import Batch, Broker
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy

_RTOL, _ATOL = 1e-3, 1e-2  # batches of another size round otherwise, and states carry that on


def judge(broker: Broker, model: Model, *, readings: str = "readings", forecasts: str = "forecasts") -> str:
    """How many readings there were, all answered as they should be.

    Raises:
        AssertionError: one was not.
    """
    records, answers = read_all(broker, readings), read_all(broker, forecasts)
    expected = _expected(model, records, readings)
    found = Counter(_source(each) for each in answers)
    twice = [source for source, times in found.items() if times > 1]
    assert not twice, f"{len(twice)} readings have more than one forecast, such as {twice[:3]}"
    lost, strange = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not lost, f"{len(lost)} of {len(expected)} readings have no forecast, such as {sorted(lost)[:3]}"
    assert not strange, f"{len(strange)} forecasts are of no reading, such as {sorted(strange)[:3]}"
    others = 0
    for each in answers:
        partition, value = expected[_source(each)]
        assert each.partition == partition, f"{_source(each)} is answered on partition {each.partition}"
        if msgspec.json.decode(each.value or b"")["model"] == model.spec.id:
            _alike(_source(each), each.value or b"", value)
        else:
            others += 1  # by the trained model, once it has taken over: what it began with is not known here
    by_others = f" ({others:,} by the model that has taken over)" if others else ""
    return f"{len(records):,} readings, each answered once{by_others}, as a single run answers it"


def _expected(model: Model, records: list[Record], topic: str) -> dict[str, tuple[int, bytes]]:
    """source -> partition and value of its forecast."""
    policy = Policy(max_future_ms=0)
    pipeline = Pipeline(model, policy, output_topic="forecasts", dead_letter_topic="dead-letters")
    batch = Batch(
        topic,
        [r.partition for r in records],
        [r.offset for r in records],
        [0] * len(records),
        [r.key for r in records],
        [r.value for r in records],
        [()] * len(records),
    )
    out = pipeline.process(batch).forecasts
    rows = zip(out.partitions, out.values, strict=True)
    return {msgspec.json.decode(value or b"")["source"]: (int(p or 0), value or b"") for p, value in rows}


def _source(record: Record) -> str:
    return str(msgspec.json.decode(record.value or b"")["source"])


def _alike(source: str, got: bytes, expected: bytes) -> None:
    a, b = (msgspec.json.decode(each) for each in (got, expected))
    assert (a["ts"], a["model"], a["warm"]) == (b["ts"], b["model"], b["warm"]), f"{source}: {a} instead of {b}"
    for target, quantiles in b["targets"].items():
        for name, values in quantiles.items():
            same = np.allclose(a["targets"][target][name], values, rtol=_RTOL, atol=_ATOL)
            assert same, f"{source}: {target} {name} is {a['targets'][target][name]}, a single run says {values}"
