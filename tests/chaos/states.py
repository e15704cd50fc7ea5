"""Judges the changelog: each record is a state of the linear run, and the last one of each series is new enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.chaos.answers import Nearness, first_difference
from tests.chaos.chains import Chain
from tests.chaos.linear import LinearRun
from tests.chaos.readings import Readings, Record
from tests.chaos.report import Report
from tidecast.service.model.compatibility import layout_hash
from tidecast.service.model.session import Float32, Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.state.codec import Codec, Snapshot
from tidecast.service.state.record import read_header
from tidecast.service.state.waiting import Waiting
from tidecast.service.timestamps import NEVER


def judge_states(
    records: Sequence[Record],
    models: Sequence[Model],
    readings: Readings,
    run: LinearRun,
    report: Report,
    near: Nearness,
    flushed: Mapping[int, int] | None,
) -> None:
    """Add to the report what is there and what is wrong.

    A record's layout tells whose state it may be. Where a model stepped readings silently that its forerunner had
    answered, the states of both count; but once the new one has written, the old one must not.
    """
    layouts = [layout_hash(model.spec) for model in models]
    codecs = {layout: Codec(model.spec) for layout, model in zip(layouts, models, strict=True)}
    latest: dict[bytes, int] = {}  # key -> offset of the last reading in its state
    newest: dict[bytes, int] = {}  # key -> which of its chains has written
    for record in records:
        key = record.key or b""
        what = f"{key!r} at {record.partition}-{record.offset}"
        if record.value is None:
            latest.pop(key, None)
            continue
        header = read_header(record.value)
        place = record.partition, header.offset
        one, reading = readings.after(place) or (None, -1)
        if one is None or one.key != key:
            report.add("states of no reading", f"{what}, said to be after offset {header.offset}")
            continue
        what = f"{what}, after offset {header.offset}"
        if waiting_of(header.waiting) != readings.waits(place):
            report.add("states wrong", f"{what}: {header.waiting} waits instead of {readings.waits(place)}")
        chains = {
            i: chain
            for i, chain in enumerate(run.chains[key])
            if layouts[chain.start.model] == header.layout and chain.start.first <= reading <= chain.start.last
        }
        if reading < 0:  # parts of its first reading wait
            if (header.steps, header.last_ts) != (0, NEVER):
                report.add("states wrong", f"{what}: {header.steps} steps, and no reading was answered yet")
        elif not chains:
            report.add("states wrong", f"{what}: no model stepped the series there that has states of its layout")
        else:
            snapshot = codecs[header.layout].decode(record.value)
            faults = {i: _fault(snapshot, chain, models, reading, near) for i, chain in chains.items()}
            right = [i for i, fault in faults.items() if fault is None]
            if not right:
                report.add("states wrong", f"{what}: {list(faults.values())[-1]}")
            elif max(right) < newest.get(key, 0):
                report.add("states that go back", f"{what}: of a model whose successor had written its own")
            else:
                newest[key] = max(newest.get(key, 0), min(right))
        if header.offset < latest.get(key, -1):
            report.add("states that go back", f"{what}: before it, there was that of offset {latest[key]}")
        latest[key] = header.offset
    report.states = len(latest)
    for key, one in readings.series.items():
        bound = None if flushed is None else flushed[one.partition]
        due = [offset for offset in readings.changes(one) if bound is None or offset < bound]
        if due and latest.get(key, -1) < due[-1]:
            has = f"its state is of offset {latest[key]}" if key in latest else "it has no state"
            report.add("states behind", f"{key!r} was stepped at {one.partition}-{due[-1]}, {has}")


def waiting_of(waiting: Waiting | None) -> object:
    """What waits, so that it can be compared."""
    return None if waiting is None else [(group.ts, repr(group.values)) for group in waiting.groups]


def _fault(snapshot: Snapshot, chain: Chain, models: Sequence[Model], reading: int, near: Nearness) -> str | None:
    spec, true = models[chain.start.model].spec, chain.state(reading)
    told, steps = (snapshot.steps, snapshot.last_ts), chain.steps(reading)
    wanted = steps, chain.start.one.ts[reading]
    if told != wanted:
        return f"steps and time are {told} instead of {wanted}"
    got = snapshot.state
    differs = first_difference("state", got, true, lambda: near.same(got, true, _sizes(spec, true)))
    return differs and f"after {steps} steps of {spec.id}: {differs}"


def _sizes(spec: ModelSpec, state: Float32) -> Float32:
    """[state], the largest number in the slice that each one belongs to."""
    sizes = np.empty_like(state)
    for part in spec.state:
        own = slice(part.start, part.start + int(np.prod(part.shape)))
        sizes[own] = np.abs(state[own]).max()
    return sizes
