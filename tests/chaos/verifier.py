"""Was any step lost, doubled or mixed? Reads the topics as anybody may (`read_committed`), knows nothing of the worker.

For every valid reading exactly one forecast, on its key and partition, in order within its series, equal to the
linear run's; one dead letter for each bad record; and states in the changelog that equal that run's.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from service.broker.base import Broker
from service.changelog import Codec
from service.model import Model
from service.spec import quantile_name
from tests.chaos.linear import Fate, LinearRun, Place, Record

EXAMPLES = 5
READ_SECONDS = 120.0
OPEN_SECONDS = 60.0  # a killed worker's transaction ends after its time-out, 10 s


@dataclass(slots=True)
class Report:
    """What was there, and all that is wrong: kind -> how often, and its first examples. Nothing wrong = `ok`."""

    readings: int = 0
    forecasts: int = 0
    dead_letters: int = 0
    states: int = 0
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.found[kind] += 1
        if self.found[kind] <= EXAMPLES:
            self.examples.setdefault(kind, []).append(example)

    @property
    def ok(self) -> bool:
        return not self.found

    def __str__(self) -> str:
        lines = [f"{self.readings} records in, {self.forecasts} forecasts, {self.dead_letters} dead letters"]
        lines[0] += f", {self.states} states" if self.states else ""
        for kind, count in self.found.items():
            lines += [f"{kind}: {count}, first:", *(f"    {example}" for example in self.examples[kind])]
        return "\n".join(lines if self.found else [*lines, "nothing lost, doubled, mixed or different"])


@dataclass(frozen=True, slots=True)
class Names:
    """The topics of one worker group; no changelog = states are not looked at."""

    readings: str
    forecasts: str
    dead_letters: str
    changelog: str | None = None


def read_all(broker: Broker, topic: str) -> list[Record]:
    """Every record of `topic` that a `read_committed` reader sees now, in offset order within each partition.

    Raises:
        TimeoutError: the end was not reached, or a transaction stays open on the topic: what lies behind it cannot
            be judged.
    """
    partitions = range(broker.partitions(topic) or 0)
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(partitions, -2))
        ends = _ends(broker, topic)
        at = consumer.beginning_offsets(partitions)
        found: list[Record] = []
        deadline = time.monotonic() + READ_SECONDS
        while any(at[p] < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: read up to {at}, not to the ends {ends}")
            b = consumer.poll(0.5, 20_000)
            found += map(Record, b.partitions, b.offsets, b.keys, b.values, map(dict, b.headers))
            at |= b.next_offsets
        return found
    finally:
        consumer.close()


def _ends(broker: Broker, topic: str) -> dict[int, int]:
    """The end of each partition, once no transaction is open there any more."""
    partitions = range(broker.partitions(topic) or 0)
    readers = [broker.consumer(isolation=isolation) for isolation in ("read_uncommitted", "read_committed")]
    deadline = time.monotonic() + OPEN_SECONDS
    try:
        for reader in readers:
            reader.assign(topic, dict.fromkeys(partitions, -2))
        while True:
            all_of_it, stable = (reader.end_offsets(partitions) for reader in readers)
            if all_of_it == stable:
                return stable
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: a transaction stays open, stable up to {stable}, written to {all_of_it}")
            time.sleep(0.2)
    finally:
        for reader in readers:
            reader.close()


def verify(
    broker: Broker,
    model: Model,
    names: Names,
    *,
    flushed: Mapping[int, int] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Report:
    """Read all topics and judge them.

    Args:
        broker: to read with.
        model: that the workers served.
        names: of the topics.
        flushed: partition -> snapshot offset, every reading before it must be inside a state of the changelog;
            None = all readings, as after a clean stop.
        rtol: allowed difference of a number, relative to it; 0 (with `atol`) = equal as float32.
        atol: the same, relative to the largest number beside it: a quantile near 0 has no useful relative error.
    """
    readings = read_all(broker, names.readings)
    run = LinearRun(model, readings)
    report = Report(readings=len(readings))
    judge = _Judge(model, names.readings, run, {r.place: r.key for r in readings}, report, rtol, atol)
    judge.forecasts(read_all(broker, names.forecasts))
    judge.dead_letters(read_all(broker, names.dead_letters))
    if names.changelog is not None:
        judge.states(read_all(broker, names.changelog), flushed)
    return report


@dataclass(slots=True)
class _Judge:
    model: Model
    topic: str
    run: LinearRun
    keys: Mapping[Place, bytes | None]
    report: Report
    rtol: float
    atol: float

    def forecasts(self, records: list[Record]) -> None:
        """Exactly one for each valid reading, in order, on its key and partition, with the right numbers."""
        self.report.forecasts = len(records)
        seen: set[Place] = set()
        newest: dict[bytes | None, int] = {}
        for record in records:
            place = self._source(record)
            what = f"{place} of {record.key!r}, forecast at {record.partition}-{record.offset}"
            if place is None or self.run.fates.get(place) is not Fate.FORECAST:
                self.report.add("forecasts of no valid reading", what)
                continue
            if place in seen:
                self.report.add("doubled", what)
            elif place[1] < newest.get(record.key, -1):
                self.report.add("out of order", f"{what}, after that of offset {newest[record.key]}")
            seen.add(place)
            newest[record.key] = max(place[1], newest.get(record.key, -1))
            if (record.key, record.partition) != (self.keys[place], place[0]):
                self.report.add("misplaced", f"{what}, the reading's key is {self.keys[place]!r}")
            elif fault := self._fault(record, self.run.rows[place]):
                self.report.add("wrong", f"{what}: {fault}")
        for place, fate in self.run.fates.items():
            if fate is Fate.FORECAST and place not in seen:
                self.report.add("missing", f"{place} of {self.keys[place]!r}")

    def _source(self, record: Record) -> Place | None:
        match = re.fullmatch(rf"{re.escape(self.topic)}-(\d+)-(\d+)", record.headers.get("source", b"").decode())
        return (int(match[1]), int(match[2])) if match else None

    def _fault(self, record: Record, row: int) -> str | None:
        """The first thing in a forecast that the linear run has otherwise."""
        run, spec = self.run, self.model.spec
        try:
            got = json.loads(record.value or b"")
            targets = [[got["targets"][t][quantile_name(q)] for q in spec.quantiles] for t in spec.targets]
            y = np.array(targets, np.float32).transpose(2, 0, 1)
            score = np.array([got["score"].get(d.name, np.nan) for d in spec.diagnostics], np.float32)
            plain = {name: got[name] for name in ("ts", "warm", "step_ms", "model")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"not a forecast of this model: {error!r} in {record.value!r:.200}"
        steps = int(run.steps[row])
        one = run.series[record.key or b""]
        warm = steps >= spec.warmup_steps
        expected = {"ts": one.ts[steps - 1], "warm": warm, "step_ms": spec.step_ms, "model": spec.id}
        if plain != expected:
            return f"{plain} instead of {expected}"
        wanted = np.where(np.isfinite(run.score[row]), run.score[row], np.nan)
        size = np.abs(run.y[row]).max(axis=(0, 2), keepdims=True)  # of each target
        differs = self._differs("y", y, run.y[row], size) or self._differs("score", score, wanted, size.max())
        return differs and f"step {steps}, {differs}"

    def _differs(self, name: str, got: np.ndarray, wanted: np.ndarray, size: np.ndarray | float) -> str | None:
        """The first number that is too far off, None where all are right."""
        if got.shape != wanted.shape:
            return f"{name} has the shape {got.shape} instead of {wanted.shape}"
        same = np.isclose(got, wanted, rtol=self.rtol, atol=0, equal_nan=True)
        same |= np.abs(got - wanted) <= self.atol * size
        wrong = np.argwhere(~same)
        if not len(wrong):
            return None
        at = tuple(wrong[0].tolist())
        return f"{len(wrong)} of {same.size} numbers of {name}, first at {at}: {got[at]} instead of {wanted[at]}"

    def dead_letters(self, records: list[Record]) -> None:
        """Exactly one for each bad record; late readings and duplicates have none, unless asked for."""
        self.report.dead_letters = len(records)
        seen: set[Place] = set()
        for record in records:
            headers = record.headers
            place = int(headers["tidecast.partition"]), int(headers["tidecast.offset"])
            ours = headers["tidecast.topic"].decode() == self.topic
            if not ours or self.run.fates.get(place) is not Fate.DEAD:
                reason = headers["tidecast.reason"].decode()
                self.report.add("dead letters of no bad record", f"{place} of {record.key!r}, reason {reason}")
            elif place in seen:
                self.report.add("dead letters doubled", f"{place} of {record.key!r}")
            seen.add(place)
        for place, fate in self.run.fates.items():
            if fate is Fate.DEAD and place not in seen:
                self.report.add("dead letters missing", f"{place} of {self.keys[place]!r}")

    def _sizes(self, state: np.ndarray) -> np.ndarray:
        """[state], the largest number in the slice that each one belongs to."""
        sizes = np.empty_like(state)
        for part in self.model.spec.state:
            own = slice(part.start, part.start + int(np.prod(part.shape)))
            sizes[own] = np.abs(state[own]).max()
        return sizes

    def states(self, records: list[Record], flushed: Mapping[int, int] | None) -> None:
        """Every record of the changelog is a state of the linear run; the last of each series is new enough."""
        codec, run = Codec(self.model.spec), self.run
        latest: dict[bytes, int] = {}  # key -> offset of the last reading in its state
        for record in records:
            key = record.key or b""
            what = f"{key!r} at {record.partition}-{record.offset}"
            if record.value is None:
                latest.pop(key, None)
                continue
            snapshot = codec.decode(record.value)
            row = run.rows.get((record.partition, snapshot.offset))
            if row is None or self.keys[record.partition, snapshot.offset] != key:
                self.report.add("states of no reading", f"{what}, said to be after offset {snapshot.offset}")
                continue
            steps = int(run.steps[row])
            told, true = (snapshot.steps, snapshot.last_ts), (steps, run.series[key].ts[steps - 1])
            if told != true:
                self.report.add("states wrong", f"{what}: steps and time are {told} instead of {true}")
            elif differs := self._differs("state", snapshot.state, run.states[row], self._sizes(run.states[row])):
                self.report.add("states wrong", f"{what}, after {steps} steps: {differs}")
            if snapshot.offset < latest.get(key, -1):
                self.report.add("states that go back", f"{what}: from offset {latest[key]} to {snapshot.offset}")
            latest[key] = snapshot.offset
        self.report.states = len(latest)
        for key, one in run.series.items():
            bound = None if flushed is None else flushed[one.partition]
            due = [offset for offset in one.offsets if bound is None or offset < bound]
            if due and latest.get(key, -1) < due[-1]:
                has = f"its state is of offset {latest[key]}" if key in latest else "it has no state"
                self.report.add("states behind", f"{key!r} was stepped at {one.partition}-{due[-1]}, {has}")
