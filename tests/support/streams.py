"""Streams of records, cut into batches, and what came of each: for tests of the pipeline by hypothesis."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.support.models import POISON_FORECAST, POISON_STATE, QUANTILES, START_MS, STEP_MS, counting_model
from tidecast.service.broker.port import Batch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import BatchResult

WARMUP = 3


@cache
def model() -> Model:
    with tempfile.TemporaryDirectory() as directory:
        return Model.load(counting_model(Path(directory), warmup_steps=WARMUP))


@dataclass(frozen=True)
class Sent:
    """One record of the stream. `value` None = tombstone."""

    key: bytes | None
    value: bytes | None
    ts: int
    x: tuple[float, float] | None  # None = no reading
    timestamp: int
    partition: int = 0


values = st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0, math.nan, math.nan, POISON_STATE, POISON_FORECAST])


@st.composite
def streams(draw: st.DrawFn) -> list[Sent]:
    """Readings of a few series, mostly in order, with jitter, gaps, repeats, late ones, tombstones and rubbish."""
    keys = [b"a", b"b", b"c", b"d", b"\xc3\xa9"][: draw(st.integers(1, 5))]
    clock = dict.fromkeys(keys, 0)
    now = START_MS
    stream = []
    for _ in range(draw(st.integers(0, 40))):
        key = draw(st.sampled_from(keys))
        now += draw(st.sampled_from([0, 0, 1_000, 30_000]))
        kind = draw(st.sampled_from("rrrrrrrrrrtjk"))
        if kind == "t":
            stream.append(Sent(key, None, 0, None, now))
        elif kind == "j":
            stream.append(Sent(key, b"{", 0, None, now))
        elif kind == "k":
            stream.append(Sent(draw(st.sampled_from([None, b""])), b"{}", 0, (1.0, 1.0), now))
        else:
            move = draw(st.sampled_from([1, 1, 1, 1, 1, 0, -1, 0.4, 1.3, 1.5, 2, 3, 9]))
            clock[key] += round(move * STEP_MS)
            x = (draw(values), draw(st.sampled_from([1.0, 4.0, math.nan])))
            ts = START_MS + clock[key]
            value = json.dumps({"ts": ts, "value": x[0], "wind": x[1]}).encode()  # a NaN stays NaN, as Python writes it
            stream.append(Sent(key, value, ts, x, now))
    return stream


_KINDS = ["true"] * 12 + ["ahead", "old", "old at its time", "again", "swapped", "gone"]


def poisoned() -> st.SearchStrategy[list[Sent]]:
    """Two series that are read in time, now and then far ahead of it, and are sent old readings of again."""
    return st.lists(st.integers(0, 2**20 - 1), max_size=60).map(_poisoned)  # one number is one reading: that is fast


def _poisoned(numbers: list[int]) -> list[Sent]:
    now, stream = dict.fromkeys((b"a", b"b"), 0), []
    for number in numbers:
        number, which = divmod(number, len(_KINDS))
        number, far = divmod(number, 60)
        number, pace = divmod(number, 7)
        kind, key = _KINDS[which], (b"a", b"a", b"a", b"b")[number % 4]
        now[key] += 0 if kind in ("again", "old") else (1, 1, 1, 1, 1, 2, 30)[pace]
        at = now[key] + {"ahead": (3, 30, 1_439)[far % 3], "swapped": -1}.get(kind, 0)
        at -= far if kind.startswith("old") else 0
        timestamp = START_MS + (at if kind == "old at its time" else now[key]) * STEP_MS + 100 * (number % 20)
        ts, x = START_MS + at * STEP_MS, (float(number % 3), 1.0)
        value = None if kind == "gone" else json.dumps({"ts": ts, "value": x[0], "wind": x[1]}).encode()
        stream.append(Sent(key, value, ts, x, timestamp))
    return stream


def cut(stream: list[Sent], sizes: list[int]) -> list[Batch]:
    batches, offset = [], 0
    sizes = list(sizes)
    while offset < len(stream):
        size = sizes.pop() if sizes else len(stream)
        part = stream[offset : offset + size]
        batches.append(
            Batch(
                "readings",
                partitions=[s.partition for s in part],
                offsets=list(range(offset, offset + len(part))),
                timestamps=[s.timestamp for s in part],
                keys=[s.key for s in part],
                values=[s.value for s in part],
                headers=[()] * len(part),
            )
        )
        offset += len(part)
    return batches


def fates(results: list[BatchResult]) -> dict[int, tuple[str, object]]:
    """offset -> forecast or dead letter; fails where a record has two of them."""
    found: dict[int, tuple[str, object]] = {}
    for result in results:
        for value in result.forecasts.values:
            parsed: dict[str, Any] = json.loads(value or b"")
            rows = [parsed["targets"]["value"][f"p{q * 100:g}"] for q in QUANTILES]
            offset = int(parsed["source"].split("-")[-1])
            assert offset not in found
            found[offset] = "forecast", (np.array(rows).T.tolist(), parsed["warm"])
        for headers in result.dead_letters.headers:
            offset = int(dict(headers)["tidecast.offset"])
            assert offset not in found
            found[offset] = "dead", dict(headers)["tidecast.reason"].decode()
    return found
