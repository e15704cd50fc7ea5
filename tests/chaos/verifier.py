"""Was any step lost, doubled or mixed? Reads the topics as anybody may (`read_committed`), knows nothing of the worker.

For every valid reading exactly one forecast, on its key and partition, in order within its series, equal to the
linear run's; one dead letter for each bad record; and states in the changelog that equal that run's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.answers import Answer, Nearness, first_difference, read_answer
from tests.chaos.linear import LinearRun
from tests.chaos.readings import Fate, Place, Readings, Record
from tests.chaos.report import Report
from tests.chaos.states import judge_states
from tests.chaos.topics import Names, read_all
from tidecast.service.broker.port import Broker
from tidecast.service.model.session import Model


def verify(
    broker: Broker,
    models: Sequence[Model],
    names: Names,
    *,
    flushed: Mapping[int, int] | None = None,
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
        rtol: allowed difference of a number, relative to it; 0 (with `atol`) = equal as float32.
        atol: the same, relative to the forecast's largest number: near 0 there is no useful relative error.

    Raises:
        ValueError: the models do not take the same readings.
    """
    if len({(tuple(m.spec.features), m.spec.step_ms) for m in models}) > 1:
        raise ValueError("all models must have the same features and the same step")
    near = Nearness(rtol, atol)
    records = read_all(broker, names.readings)
    readings = Readings(models[0].spec, records)
    forecasts = [
        _Forecast(r, _source(names.readings, r), read_answer(r, models)) for r in read_all(broker, names.forecasts)
    ]
    answers: dict[Place, Answer] = {}
    for f in forecasts:
        if f.place in readings.found and isinstance(f.answer, Answer):
            answers.setdefault(f.place, f.answer)
    run = LinearRun(models, readings, answers, near)
    report = Report(readings=len(records), forecasts=len(forecasts), hand_overs=run.hand_overs)
    judge = _Judge(models, names.readings, readings, run, report, near)
    judge.forecasts(forecasts)
    judge.dead_letters(read_all(broker, names.dead_letters))
    if names.changelog is not None:
        judge_states(read_all(broker, names.changelog), models, readings, run, report, near, flushed)
    return report


@dataclass(frozen=True, slots=True)
class _Forecast:
    record: Record
    place: Place | None  # of its reading, as it says
    answer: Answer | str  # or why it is none


def _source(topic: str, record: Record) -> Place | None:
    # also of one that is otherwise no forecast
    match = re.search(rf'"source": ?"{re.escape(topic)}-(\d+)-(\d+)"'.encode(), record.value or b"")
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class _Judge:
    models: Sequence[Model]
    topic: str
    readings: Readings
    run: LinearRun
    report: Report
    near: Nearness

    def forecasts(self, forecasts: Sequence[_Forecast]) -> None:
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

    def dead_letters(self, records: list[Record]) -> None:
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
            if fate is Fate.DEAD and place not in seen:
                self.report.add("dead letters missing", f"{place} of {self.readings.keys[place]!r}")
