"""Was any step lost, doubled or mixed? Reads the topics as anybody may (`read_committed`), knows nothing of the worker.

For every valid reading exactly one forecast, on its key and partition, in order within its series, equal to the
linear run's; one dead letter for each bad record; and states in the changelog that equal that run's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.answers import Answer, Nearness, first_difference, read_answer
from tests.chaos.linear import LinearRun, Run
from tests.chaos.readings import Fate, Place, Readings, Record
from tests.chaos.report import Report
from tests.chaos.states import judge_states
from tests.chaos.topics import KEPT_ALL, Lost, Names, read_all
from tidecast.service.broker.port import Broker
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Wounds:
    """What was done to the topics on purpose, and what must come of it.

    Attributes:
        lost: topic -> what of it is known, where it was deleted and made again.
        damaged: (key, value) of records that were written to the changelog, damaged.
        set_aside: key -> how often the workers have said that its state was set aside.
    """

    lost: Mapping[str, Lost] = field(default_factory=dict)
    damaged: Collection[tuple[bytes | None, bytes | None]] = ()
    set_aside: Mapping[bytes, int] = field(default_factory=dict)


UNHURT = Wounds()


def verify(
    broker: Broker,
    models: Sequence[Model],
    names: Names,
    *,
    flushed: Mapping[int, int] | None = None,
    wounds: Wounds = UNHURT,
    read: Callable[[ModelSpec, Sequence[Record]], Readings] = Readings,
    run_of: Callable[[Sequence[Model], Readings, Mapping[Place, Answer]], Run] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Report:
    """Read all topics and judge them.

    Args:
        broker: to read with.
        models: that the workers served, in the order in which they were published.
        names: of the topics.
        flushed: partition -> snapshot offset, every reading before it must be inside a state of the changelog;
            None = all readings, as after a clean stop.
        wounds: what was done to the topics on purpose.
        read: how records become readings.
        run_of: what each forecast should be, where that is not one model after another; then states are not looked at.
        rtol: allowed difference of a number, relative to it; 0 (with `atol`) = equal as float32.
        atol: the same, relative to the forecast's largest number: near 0 there is no useful relative error.

    Raises:
        ValueError: the models do not take the same readings.
    """
    if len({(tuple(m.spec.features), m.spec.step_ms) for m in models}) > 1:
        raise ValueError("all models must have the same features and the same step")
    near = Nearness(rtol, atol)
    records = read_all(broker, names.readings)
    readings = read(models[0].spec, records)
    lost = {name: wounds.lost.get(name, KEPT_ALL) for name in (names.forecasts, names.dead_letters)}
    kept = {name: [*one.kept, *read_all(broker, name)] for name, one in lost.items()}
    forecasts = [_forecast(r, names.readings, readings, models) for r in kept[names.forecasts]]
    answers: dict[Place, Answer] = {}
    for f in forecasts:
        if f.place in readings.found and isinstance(f.answer, Answer):
            answers.setdefault(f.place, f.answer)
    linear = None if run_of is not None else LinearRun(models, readings, answers, near, wounds.set_aside)
    run = linear if run_of is None else run_of(models, readings, answers)
    assert run is not None
    report = Report(readings=len(records), forecasts=len(forecasts), hand_overs=run.hand_overs)
    judge = _Judge(models, names.readings, readings, run, report, near)
    judge.forecasts(forecasts, lost[names.forecasts])
    judge.dead_letters(kept[names.dead_letters], lost[names.dead_letters])
    for key, times in wounds.set_aside.items():
        report.restarts += run.restarts[key]
        if run.restarts[key] < times:
            report.add("set aside without a restart", f"{key!r}: {times} times, and {run.restarts[key]} restarts")
    if names.changelog is not None and linear is not None:
        states = [r for r in read_all(broker, names.changelog) if (r.key, r.value) not in wounds.damaged]
        judge_states(states, models, readings, linear, report, near, flushed)
    return report


@dataclass(frozen=True, slots=True)
class _Forecast:
    record: Record
    place: Place | None  # of its reading, as it says
    answer: Answer | str  # or why it is none


def _forecast(record: Record, topic: str, readings: Readings, models: Sequence[Model]) -> _Forecast:
    source, answer = _source(topic, record), read_answer(record, models)
    if source is not None and isinstance(answer, Answer):
        source = readings.place(source, answer.plain["ts"])
    return _Forecast(record, source, answer)


def _source(topic: str, record: Record) -> Place | None:
    # also of one that is otherwise no forecast
    match = re.search(rf'"source": ?"{re.escape(topic)}-(\d+)-(\d+)"'.encode(), record.value or b"")
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class _Judge:
    models: Sequence[Model]
    topic: str
    readings: Readings
    run: Run
    report: Report
    near: Nearness

    def forecasts(self, forecasts: Sequence[_Forecast], lost: Lost) -> None:
        """Exactly one for each valid reading, in order, on its key and partition, with the right numbers."""
        seen: set[Place] = set()
        newest: dict[bytes | None, int] = {}
        for f in forecasts:
            record, place = f.record, f.place
            what = f"{place} of {record.key!r}, forecast at {record.partition}-{record.offset}"
            if isinstance(f.answer, Answer):
                self.report.serving[record.partition] = str(f.answer.plain["model"])
            if place is None or place not in self.readings.found:
                self.report.add("forecasts of no valid reading", what)
                continue
            if place in seen:
                self.report.add("doubled", what)
            elif place[1] < newest.get(record.key, -1):
                self.report.add("out of order", f"{what}, after that of offset {newest[record.key]}")
            seen.add(place)
            newest[record.key] = max(place[1], newest.get(record.key, -1))
            if (record.key, record.partition) != (self.readings.keys[place], place[0]):
                self.report.add("misplaced", f"{what}, the reading's key is {self.readings.keys[place]!r}")
            elif fault := f.answer if isinstance(f.answer, str) else self._fault(f.answer, place):
                self.report.add("wrong", f"{what}: {fault}")
        for place in sorted(self.readings.found.keys() - seen):
            if lost.may_lack(place):
                self.report.gone += 1
                continue
            self.report.add("missing", f"{place} of {self.readings.keys[place]!r}")

    def _fault(self, answer: Answer, place: Place) -> str | None:
        """The first thing in a forecast that the linear run has otherwise."""
        one, reading = self.readings.found[place]
        chain = self.run.answering(one.key, reading)
        spec, steps = self.models[chain.start.model].spec, chain.steps(reading)
        warm = steps >= spec.warmup_steps
        expected = {"ts": one.ts[reading], "warm": warm, "step_ms": spec.step_ms, "model": spec.id}
        if answer.plain != expected:
            return f"{answer.plain} instead of {expected}"
        y, score = chain.y[reading - chain.start.first], chain.score[reading - chain.start.first]
        near, got = self.near, answer
        differs = first_difference("y", got.y, y, lambda: near.same_y(got.y, y))
        differs = differs or first_difference("score", got.score, score, lambda: near.same_score(got.score, score, y))
        return differs and f"step {steps} of {spec.id}, since reading {chain.start.first}: {differs}"

    def dead_letters(self, records: list[Record], lost: Lost) -> None:
        """Exactly one for each bad record; late readings and duplicates have none, unless asked for."""
        self.report.dead_letters = len(records)
        seen: set[Place] = set()
        for record in records:
            headers = record.headers
            place = int(headers["tidecast.partition"]), int(headers["tidecast.offset"])
            ours = headers["tidecast.topic"].decode() == self.topic
            if not ours or self.readings.fates.get(place) is not Fate.DEAD:
                reason = headers["tidecast.reason"].decode()
                self.report.add("dead letters of no bad record", f"{place} of {record.key!r}, reason {reason}")
            elif place in seen:
                self.report.add("dead letters doubled", f"{place} of {record.key!r}")
            seen.add(place)
        for place, fate in self.readings.fates.items():
            if fate is Fate.DEAD and place not in seen and lost.may_lack(place):
                self.report.gone += 1
            elif fate is Fate.DEAD and place not in seen:
                self.report.add("dead letters missing", f"{place} of {self.readings.keys[place]!r}")
