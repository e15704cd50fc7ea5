"""Parts of readings, in any order, cut into any batches, killed anywhere: what one plain loop makes of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lives import Kafka, Process, lives
from tests.support.models import POISON_STATE, QUANTILES, START_MS, STEP_MS
from tests.support.plain_loop import Known, PlainLoop, policies
from tests.support.streams import Sent, cut, model
from tidecast.service.input.config import InputConfig, parse_input
from tidecast.service.pipeline.pipeline import BatchResult, Pipeline, Policy
from tidecast.service.state.waiting import MAX_GROUPS

FEATURES = ("value", "wind")
COUNTED = ("forecasts", "duplicates", "late", "tombstones", "incomplete")
Values = dict[str, float]


@dataclass(frozen=True)
class SentParts(Sent):
    """A record with several parts: (ts, feature -> value)."""

    parts: tuple[tuple[int, tuple[tuple[str, float], ...]], ...] = ()


def record(
    key: bytes, parts: Sequence[tuple[int, Values]], timestamp: int, partition: int = 0, *, value: bytes | None = b""
) -> SentParts:
    """`value` = None for a tombstone, or bytes that are not JSON."""
    plain = [{"ts": ts, **{n: None if math.isnan(v) else v for n, v in values.items()}} for ts, values in parts]
    value = json.dumps({"parts": plain}).encode() if value == b"" else value
    frozen = tuple((ts, tuple(values.items())) for ts, values in parts)
    return SentParts(key, value, 0, (0.0, 0.0) if parts else None, timestamp, partition, frozen)


_KINDS = [*["same"] * 9, *["next"] * 7, "next", "back", "old", *["ahead"] * 2, "gone", "rubbish"]
_VALUES: list[Values] = [{"value": 1.0}, {"wind": 2.0}, {"value": 3.0}, {"wind": 4.0}, {"value": math.nan},
                         {"wind": math.nan}, {"value": 5.0, "wind": 6.0}, {"value": POISON_STATE}]  # fmt: skip


def streams() -> st.SearchStrategy[list[SentParts]]:
    """Parts of three series, mostly in order; some far ahead, and tombstones and rubbish. One number is one part."""
    return st.lists(st.integers(0, 2**30 - 1), max_size=60).map(_stream)


def _stream(numbers: list[int]) -> list[SentParts]:
    now, stream = dict.fromkeys((b"a", b"b", b"c"), 0), []
    parts: list[tuple[int, Values]] = []
    for number in numbers:
        number, which = divmod(number, len(_KINDS))
        number, far = divmod(number, 5)
        number, jitter = divmod(number, 4)
        number, nth = divmod(number, len(_VALUES))
        number, more = divmod(number, 4)
        kind, key = _KINDS[which], (b"a", b"a", b"b", b"c")[number % 4]
        now[key] += (1, 1, 1, 2, 12)[far] if kind == "next" else 0
        at = now[key] + {"back": -1, "old": -3 - 20 * far, "ahead": (3, 30, 400, 1_400, 2)[far]}.get(kind, 0)
        timestamp = START_MS + max(now.values()) * STEP_MS
        if kind in ("gone", "rubbish"):
            stream.append(record(key, [], timestamp, key != b"a", value=None if kind == "gone" else b"{"))
            continue
        # Mostly a whole reading, which is answered at once.
        values = _VALUES[6] if kind == "ahead" and jitter else _VALUES[nth]
        parts.append((START_MS + at * STEP_MS + 1_000 * jitter, values))
        if more:  # otherwise the next part is in the same record
            stream.append(record(key, parts, timestamp, key != b"a"))
            parts = []
    return stream


class PlainJoin(PlainLoop):
    """The plain loop, with parts: what waits is kept with the series."""

    def __init__(self, policy: Policy, tolerance: int, deadline: int) -> None:
        super().__init__(policy)
        self.tolerance, self.deadline = tolerance, deadline
        self.counts: Counter[str] = Counter()
        self.fates: list[tuple[int, str, Any]] = []  # offset, "forecast" or "dead", and what of it

    def run(self, stream: Sequence[SentParts]) -> PlainJoin:
        for offset, sent in enumerate(stream):
            if not sent.parts:
                kind, what = self.process(replace(sent, x=None))
                self.tell(offset, [(kind, "not_json" if kind == "dead" else what)])
                continue
            self.at += 1
            told = [fate for ts, values in sent.parts for fate in self.part(replace(sent, ts=ts), dict(values))]
            self.tell(offset, told)
        self.fates.sort(key=lambda fate: fate[:2])
        return self

    def tell(self, offset: int, told: list[tuple[str, object]]) -> None:
        dead = False
        for kind, what in told:
            self.counts[kind] += 1
            if kind == "forecast" or (kind == "dead" and not dead):
                self.fates.append((offset, kind, what))
            dead |= kind == "dead"

    def part(self, sent: Sent, values: Values) -> list[tuple[str, object]]:
        """What the part makes: no reading, one or several."""
        known = self.meet(sent)
        assert isinstance(known, Known)
        if known.last is not None and sent.ts <= known.last + self.tolerance:
            self.counts["late part"] += 1
            ts = known.last if abs(known.last - sent.ts) <= self.tolerance else sent.ts
            return [self.reading(known, sent, ts, values)]
        near = [group for group in known.groups if abs(group[0] - sent.ts) <= self.tolerance]
        if near:
            _, there = min(near, key=lambda group: (abs(group[0] - sent.ts), group[0]))
        else:
            there = {}
            known.groups = sorted([*known.groups, (sent.ts, there)], key=lambda group: group[0])
        new = values.keys() - there.keys()
        self.counts["taken" if new == values.keys() else "repeated"] += 1
        if not new:
            return [("duplicate", None)]
        there |= {name: values[name] for name in values if name in new}
        due = 0
        for nth, (ts, group) in enumerate(known.groups, start=1):
            whole = group is there and len(group) == len(FEATURES)
            if whole or (sent.ts - ts >= self.deadline and sent.ts - ts > self.tolerance):
                due = nth
        due = max(due, len(known.groups) - MAX_GROUPS)
        answered, known.groups = known.groups[:due], known.groups[due:]
        self.counts["incomplete"] += sum(len(group) < len(FEATURES) for _, group in answered)
        return [self.reading(known, sent, ts, group) for ts, group in answered]

    def reading(self, known: Known, sent: Sent, ts: int, values: Values) -> tuple[str, object]:
        x = tuple(values.get(name, math.nan) for name in FEATURES)
        kind, what = self.answer(known, replace(sent, ts=ts, x=x))  # type: ignore[arg-type]
        return kind, (ts, *what) if isinstance(what, tuple) else what


def fates(results: Sequence[BatchResult]) -> list[tuple[int, str, Any]]:
    """As the plain loop tells them; those of one record in the order of time."""
    found: list[tuple[int, str, Any]] = []
    for result in results:
        for value in result.forecasts.values:
            told = json.loads(value or b"")
            rows = [told["targets"]["value"][f"p{q * 100:g}"] for q in QUANTILES]
            y = np.array(rows).T.tolist()
            found.append((int(told["source"].split("-")[-1]), "forecast", (told["ts"], y, told["warm"])))
        for headers in result.dead_letters.headers:
            offset = int(dict(headers)["tidecast.offset"])
            found.append((offset, "dead", dict(headers)["tidecast.reason"].decode()))
    return sorted(found, key=lambda fate: fate[:2])


def counted(results: Sequence[BatchResult]) -> dict[str, int]:
    total = {name: sum(getattr(r.counts, name) for r in results) for name in COUNTED}
    return total | {n: sum(r.counts.parts[n] for r in results) for n in ("taken", "repeated", "late")} | {
        "late": total["late"], "late part": sum(r.counts.parts["late"] for r in results)
    }  # fmt: skip


def plainly_counted(plain: PlainJoin) -> dict[str, int]:
    names = {"forecasts": "forecast", "duplicates": "duplicate", "tombstones": "tombstone"}
    wanted = (*COUNTED, "taken", "repeated", "late part")
    return {name: plain.counts[names.get(name, name)] for name in wanted}


def plain_states(plain: PlainJoin) -> dict[bytes, Any]:
    return {
        key: (one.model.state, one.steps, one.last, [(ts, repr(values)) for ts, values in one.groups])
        for key, one in plain.series.items()
    }


def states(line: Pipeline) -> dict[bytes, Any]:
    """In the order in which the series were last seen."""
    store, found = line.store, {}
    for key in store:
        slot = store.find(key)
        assert slot is not None
        groups = store.waiting[slot].groups if slot in store.waiting else []
        last = int(store.last_ts[slot])
        groups_told = [(g.ts, repr(g.values)) for g in groups]
        found[key] = store.states[slot].tolist(), int(store.steps[slot]), last if last > 0 else None, groups_told
    return found


def config(tolerance: int, deadline: int) -> InputConfig:
    join = {"tolerance": f"{tolerance}ms", "deadline": f"{deadline}ms"}
    return parse_input({"explode": "parts", "join": join})


def pipeline(policy: Policy, how: InputConfig) -> Pipeline:
    return Pipeline(model(), policy, output_topic="forecasts", dead_letter_topic="dead-letters", input_config=how)


tolerances, deadlines = st.sampled_from([0, 1_000, 2_000, 70_000]), st.sampled_from([0, 1_000, 60_000, 200_000])


def in_time(stream: list[SentParts]) -> list[SentParts]:
    newest = accumulate((sent.timestamp for sent in stream), max)
    return [replace(sent, timestamp=timestamp) for sent, timestamp in zip(stream, newest, strict=True)]


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(streams(), st.lists(st.integers(1, 12), max_size=20), policies, tolerances, deadlines)
def test_parts_cut_into_any_batches_are_joined_as_one_at_a_time(
    stream: list[SentParts], sizes: list[int], policy: Policy, tolerance: int, deadline: int
) -> None:
    stream = [replace(sent, partition=0) for sent in in_time(stream)]
    plain = PlainJoin(policy, tolerance, deadline).run(stream)
    line = pipeline(policy, config(tolerance, deadline))
    results = [line.process(batch) for batch in cut(stream, sizes)]
    assert fates(results) == plain.fates
    assert counted(results) == plainly_counted(plain)
    found, wanted = states(line), plain_states(plain)
    if policy.series_ttl_ms:  # an idle one may be gone already
        wanted = {key: wanted[key] for key in wanted if key in found}
    assert found == wanted
    assert list(found) == list(wanted)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    streams(),
    st.lists(st.integers(1, 6), max_size=20),
    st.lists(st.sampled_from(["continue", "continue", "commit", "commit", "commit all", "crash"]), max_size=40),
    st.sampled_from([0, 100_000]),
    st.sampled_from([1.0, 3.0, 50.0]),
    tolerances,
    deadlines,
)
def test_a_process_that_dies_anywhere_loses_no_part_and_takes_none_twice(
    stream: list[SentParts],
    sizes: list[int],
    fortunes: list[str],
    ttl: int,
    seconds: float,
    tolerance: int,
    deadline: int,
) -> None:
    stream, how = in_time(stream), config(tolerance, deadline)
    policy = Policy(series_ttl_ms=ttl, max_future_ms=0, max_gap_steps=10, late_recovery_readings=3)
    plain = PlainJoin(policy, tolerance, deadline).run(stream)

    kafka, process = lives(stream, policy, seconds, sizes, fortunes, how)  # type: ignore[arg-type]

    assert fates(kafka.results) == plain.fates
    assert counted(kafka.results) == plainly_counted(plain)
    found, wanted = states(process.line), plain_states(plain)
    assert {key: found[key] for key in found} == {key: wanted[key] for key in (found if ttl else wanted)}


def test_a_part_that_a_restored_state_has_is_not_taken_into_another_reading() -> None:
    """The second part repeats the first. Taken again after the third, it would be nearer to it, and complete it."""
    s, how, policy = 1_000, config(2_000, 600_000), Policy(max_future_ms=0)
    sent = [(b"b", 10 * s, "value"), (b"c", 0, "value"), (b"b", 12 * s, "value"), (b"b", 13 * s, "wind")]
    stream = [record(key, [(START_MS + at, {name: 1.0})], START_MS) for key, at, name in sent]
    kafka = Kafka(stream)  # type: ignore[arg-type]
    process = Process(kafka, policy, 2.0, how)
    process.process(cut(stream, [])[0])  # type: ignore[arg-type]
    process.commit(4, everything=False)
    assert list(kafka.changelog) == [(0, b"b")] and kafka.committed[0] == (4, 1), "of c, nothing is written yet"
    before = states(process.line)
    assert [ts for ts, _ in before[b"b"][3]] == [START_MS + 10 * s, START_MS + 13 * s]
    assert states(Process(kafka, policy, 2.0, how).line) == before
