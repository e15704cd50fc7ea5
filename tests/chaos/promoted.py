"""A storm over a group of models: each is made the champion in turn, by `tidecast promote`, while workers are killed.

All models step over the whole input, whoever answers. So each forecast must be that of the model which it names,
stepped alone from the first reading on; each state of the changelog holds the states of all of them; and in each
partition the models follow each other as they were decided.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tests.chaos.answers import Answer, Nearness, first_difference
from tests.chaos.chains import Chain, Start, advance
from tests.chaos.readings import Place, Readings, Record
from tests.chaos.report import Report
from tests.chaos.states import waiting_of
from tests.chaos.storm import Storm
from tests.chaos.topics import read_all
from tests.chaos.verifier import Run, verify
from tests.support.worker_process import tidecast
from tidecast.service.broker.port import Broker
from tidecast.service.champion.decisions import read_history
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.state.codec import Codec

DECISIONS = "decisions"
IN_FORCE_SECONDS = 90.0  # after which the last decision must be seen in every partition


class GroupRun(Run):
    """Each model over the whole input, from the first reading of each series on; see `LinearRun`."""

    def __init__(self, models: Sequence[Model], readings: Readings, answers: Mapping[Place, Answer]) -> None:
        super().__init__()
        self._answers = answers
        self.by_model: list[dict[bytes, Chain]] = []
        for m, model in enumerate(models):
            starts = [Start(one, m, 0, 0, len(one.ts) - 1, 0, model.initial_state) for one in readings.series.values()]
            self.by_model.append({chain.start.one.key: chain for chain in advance(model, readings, starts)})

    def answering(self, key: bytes, reading: int) -> Chain:
        """The chain of the model that the forecast names."""
        one = self.by_model[0][key].start.one
        answer = self._answers.get((one.partition, one.offsets[reading]))
        return self.by_model[(answer.model if answer is not None else None) or 0][key]


class PromoteStorm(Storm):
    """The first of the model directories is served, the others are its shadows."""

    def _make_topics(self, broker: Broker) -> None:
        super()._make_topics(broker)
        broker.create_topic(DECISIONS, 1)

    def _flags(self) -> list[str]:
        shadows = [f"--shadow={path}" for path in self._model_paths[1:]]
        return [*super()._flags(), *shadows, f"--decisions-topic={DECISIONS}"]

    def _promote(self) -> bool:
        """Another model is to answer, or the one before again; then a worker is killed, perhaps before it has heard."""
        if not self._await_champion():
            return False
        ids = [model.spec.id for model in self.models]
        now = self._decided()[-1]
        back = len(self._decided()) > 1 and self.rng.random() < 0.4
        to = "--rollback" if back else self.rng.choice([each for each in ids if each != now])
        code, _, log = tidecast(
            *("promote", to, f"--bootstrap-servers={self.kafka.bootstrap_servers}", f"--group={self.group}"),
            *(f"--decisions-topic={DECISIONS}", f"--input-topic={self.names.readings}"),
        )
        self.say(f"promoted {to}" if code == 0 else f"not promoted: {log}")
        self.rest(self.rng.choice((0.0, 0.5, 1.0, 1.5)))
        self._kill()
        return code == 0

    def _decided(self) -> list[str]:
        """The champions, in order, as the decisions topic has them."""
        settings = Settings(bootstrap_servers=self.kafka.bootstrap_servers, decisions_topic=DECISIONS, group=self.group)
        history = read_history(self.broker, settings)
        return [self.models[0].spec.id, *(each.decision.to for each in history.decisions)]

    def _await_champion(self) -> bool:
        """Wait until the last decision is seen in every partition; whether it is."""
        deadline, wanted = time.monotonic() + IN_FORCE_SECONDS, self._decided()[-1]
        while (serving := self.lookout.serving()) != dict.fromkeys(range(self.scenario.partitions), wanted):
            if time.monotonic() > deadline:
                self.say(f"{wanted} does not answer everywhere: {serving}")
                return False
            self.rest(0.5)
        self.say(f"{wanted} answers everywhere")
        return True

    def _await_last_model(self) -> None:
        self._await_champion()

    def _verdict(self) -> Report:
        runs: list[GroupRun] = []

        def run_of(models: Sequence[Model], readings: Readings, answers: Mapping[Place, Answer]) -> GroupRun:
            self._readings = readings
            runs.append(GroupRun(models, readings, answers))
            return runs[0]

        exact = {"rtol": 0.0, "atol": 0.0}
        names = self.names
        report = verify(self.broker, self.models, names, run_of=run_of, **exact)
        judge_order(read_all(self.broker, names.forecasts), self.models, self._decided(), report)
        if names.changelog is not None:
            judge_group_states(read_all(self.broker, names.changelog), self.models, self._readings, runs[0], report)
        return report


def judge_order(forecasts: Sequence[Record], models: Sequence[Model], decided: Sequence[str], report: Report) -> None:
    """In each partition the champions follow each other as they were decided, each once for a decision."""
    told: dict[int, list[str]] = {}
    for record in forecasts:
        name = next((m.spec.id for m in models if f'"model":"{m.spec.id}"'.encode() in (record.value or b"")), "?")
        own = told.setdefault(record.partition, [])
        if own[-1:] != [name]:
            own.append(name)
    for partition, names in sorted(told.items()):
        report.champions += len(names) - 1
        if names != list(decided):
            report.add("champions not as decided", f"{partition}: {names} instead of {list(decided)}")


def judge_group_states(
    records: Sequence[Record], models: Sequence[Model], readings: Readings, run: GroupRun, report: Report
) -> None:
    """Each record has the states of all models after one reading, and the last one of each series after its last."""
    order = sorted(range(len(models)), key=lambda m: models[m].spec.hash)
    codec, near = Codec(*(models[m].spec for m in order)), Nearness(0.0, 0.0)
    at = codec.states.steps_at
    assert at is not None
    latest: dict[bytes, int] = {}
    for record in records:
        key = record.key or b""
        what = f"{key!r} at {record.partition}-{record.offset}"
        if record.value is None:
            latest.pop(key, None)
            continue
        found = codec.decode(record.value)
        one, reading = readings.after((record.partition, found.offset)) or (None, -1)
        if one is None or one.key != key or found.changed:
            report.add("states of no reading", f"{what}, said to be after offset {found.offset}")
            continue
        if waiting_of(found.waiting) != readings.waits((record.partition, found.offset)):
            report.add("states wrong", f"{what}: {found.waiting} waits")
        for nth, m in enumerate(order) if reading >= 0 else ():  # before, parts of its first reading wait
            chain = run.by_model[m][key]
            own, true = found.state[codec.states.slices[nth]], chain.state(reading)
            differs = first_difference("state", own, true, lambda a=own, b=true: near.same(a, b, np.abs(b).max()))
            if differs or int(found.state[at[nth]]) != chain.steps(reading):
                steps = int(found.state[at[nth]])
                report.add("states wrong", f"{what}, {models[m].spec.id}: {differs}, {steps} of {chain.steps(reading)}")
        if found.offset < latest.get(key, -1):
            report.add("states that go back", f"{what}: before it, there was that of offset {latest[key]}")
        latest[key] = found.offset
    report.states = len(latest)
    for key, one in readings.series.items():
        last = readings.changes(one)[-1]
        if latest.get(key, -1) < last:
            report.add("states behind", f"{key!r} was stepped at {last}, its state is of {latest.get(key)}")
