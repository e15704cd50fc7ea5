"""Storms: readings flow, workers and broker are killed, frozen and replaced, and afterwards nothing may be amiss.

    python -m tests.chaos.storm --seed 1 --storms 10 --kills 60

The misfortunes are the same for a seed; when exactly they meet the worker is not.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.broker.base import Broker, Consumer
from service.broker.connect import connect
from service.broker.embedded import EmbeddedBroker
from service.errors import BrokerError
from service.model import Model
from service.settings import FIELDS
from tests.chaos.feed import Feeder, feed
from tests.chaos.fleet import Fleet, known
from tests.chaos.verifier import Names, Report, verify

SESSION_SECONDS = 6.0 if "session_timeout_seconds" in FIELDS else 20.0  # after it the group takes a member for dead
STUCK_SECONDS = 120.0  # without any progress, at the end
COMPACTED = {"cleanup.policy": "compact", "segment.ms": "10000", "min.cleanable.dirty.ratio": "0.01"}
KINDS = ("kill", "freeze", "usurp", "broker", "roll", "add", "remove")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens. Counts are of misfortunes; `calm` = seconds without any before the first and after the last."""

    seed: int = 1
    delivery: str = "exactly-once"
    workers: int = 3
    partitions: int = 8
    series: int = 500
    rate: float = 2_000.0  # records a second
    commit_interval_ms: int = 100
    kills: int = 60  # kill -9 of a worker
    freezes: int = 2  # SIGSTOP for longer than the session, then SIGCONT
    usurps: int = 1  # the same, and meanwhile another process takes its name
    brokers: int = 2  # kill -9 of Kafka, and a restart
    rolls: int = 1  # all workers, one after the other, by SIGTERM
    changes: int = 2  # a worker more, and later one less
    pause: tuple[float, float] = (1.0, 3.0)  # s between two misfortunes
    calm: float = 5.0

    def misfortunes(self) -> list[tuple[float, str]]:
        """Pauses in seconds and kinds, in an order that the seed decides."""
        rng = random.Random(self.seed)
        kinds = ["kill"] * self.kills + ["freeze"] * self.freezes + ["usurp"] * self.usurps
        kinds += ["broker"] * self.brokers + ["roll"] * self.rolls + ["change"] * (2 * self.changes)
        rng.shuffle(kinds)
        added = False
        for i, kind in enumerate(kinds):
            if kind == "change":
                kinds[i] = "remove" if added else "add"
                added = not added
        return [(rng.uniform(*self.pause), kind) for kind in kinds]


@dataclass(slots=True)
class Outcome:
    """What one storm did and what it left."""

    seed: int
    seconds: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    moving: int = 0  # misfortunes since whose forerunner forecasts had come: the others hit a group at rest
    ended: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def ok(self) -> bool:
        return self.report.ok and not self.ended

    def row(self) -> str:
        met = " ".join(f"{self.met[kind]:>6}" for kind in KINDS)
        r, found = self.report, sum(self.report.found.values())
        said = "ok" if self.ok else ", ".join(f"{n} {kind}" for kind, n in r.found.items()) or "a worker ended"
        return (
            f"{self.seed:>6} {self.seconds:>5.0f} {met} {self.moving:>6} {r.readings:>9,} {r.forecasts:>9,} "
            f"{r.dead_letters:>6,} {r.states:>6,} {found:>6} {len(self.ended):>6}  {said}"
        )


HEADER = (
    f"{'seed':>6} {'s':>5} {' '.join(f'{kind:>6}' for kind in KINDS)} {'moving':>6} {'readings':>9} {'forecasts':>9} "
    f"{'dead':>6} {'states':>6} {'faults':>6} {'ended':>6}"
)


class Storm:
    """One run: its own broker, topics, workers. All of it is in `folder`, and stays there."""

    def __init__(self, scenario: Scenario, folder: Path, model: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.model = Model.load(model)
        self.rng = random.Random(scenario.seed + 1)
        self.kafka = EmbeddedBroker(folder / "kafka", heap_mb=384)
        exactly_once = scenario.delivery == "exactly-once"
        self.names = Names("readings", "forecasts", "dead-letters", "states" if exactly_once else None)
        self.group = "storm"
        self.outcome = Outcome(scenario.seed)
        self._model_path = model
        self._log = (folder / "storm.log").open("a", buffering=1)
        self._forecasts = 0

    def run(self) -> Outcome:
        """Everything, from the start of Kafka to the verdict.

        Raises:
            TimeoutError, RuntimeError, BrokerError: the storm itself failed; that says nothing good either.
        """
        began = time.monotonic()
        self.kafka.start()
        self.broker = connect(self.kafka.bootstrap_servers, timeout_s=30)
        self._make_topics(self.broker)
        self.fleet = Fleet(self.folder, self._flags())
        try:
            for slot in range(self.scenario.workers):
                self.fleet.start(slot)
            self.fleet.settle(self.scenario.partitions)
            self._blow()
            self._drain()
            self._say("stopping the workers")
            for slot in list(self.fleet.workers):
                self.fleet.stop(slot)
            self._say("judging")
            exact = self.model.spec.name == "counting"  # whole numbers: there is nothing to round
            tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
            self.outcome.report = verify(self.broker, self.model, self.names, **tolerance)
        finally:
            self.fleet.kill_all()
            self.broker.close()
            self.kafka.stop()
            self.outcome.ended = self.fleet.ended
            self.outcome.seconds = time.monotonic() - began
            self._say(f"{self.outcome.row()}\n{self.outcome.report}\n" + "\n".join(self.fleet.ended))
            self._log.close()
        return self.outcome

    def _make_topics(self, broker: Broker) -> None:
        count = self.scenario.partitions
        broker.create_topic(self.names.readings, count)
        broker.create_topic(self.names.forecasts, count)
        broker.create_topic(self.names.dead_letters, 1)
        broker.create_topic("states", count, COMPACTED)

    def _flags(self) -> list[str]:
        return [
            f"--bootstrap-servers={self.kafka.bootstrap_servers}",
            f"--input-topic={self.names.readings}",
            f"--output-topic={self.names.forecasts}",
            f"--dead-letter-topic={self.names.dead_letters}",
            f"--group={self.group}",
            f"--delivery={self.scenario.delivery}",
            f"--commit-interval-ms={self.scenario.commit_interval_ms}",
            f"--model={self._model_path}",
            "--http-port=0",
            "--dead-letter-limit=0",
            *known(changelog_topic="states", changelog_seconds=3, session_timeout_seconds=SESSION_SECONDS),
        ]

    def _blow(self) -> None:
        """The readings, and the misfortunes while they flow."""
        s = self.scenario
        feeder = Feeder(self.broker, self.names.readings, feed(self.model.spec, s.series, s.seed), s.rate)
        feeder.start()
        self._rest(s.calm)
        for pause, kind in s.misfortunes():
            self._rest(pause)
            moved = self._moved()
            if getattr(self, f"_{kind}")():
                self.outcome.met[kind] += 1
                self.outcome.moving += moved
        while self.fleet.zombies or self.fleet.due:
            self._rest(0.2)
        self._rest(s.calm)
        feeder.finish()
        self._say(f"{feeder.sent:,} records are in")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.fleet.tend()
            time.sleep(0.05)

    # The misfortunes; each says whether it could come about ---------------------------------------------------

    def _victim(self) -> int | None:
        running = self.fleet.running
        return self.rng.choice(running) if running else None

    def _kill(self) -> bool:
        again_in = self.rng.choice((0.0, 0.0, 1.5))
        if (slot := self._victim()) is None:
            return False
        self._say(f"kill -9 in slot {slot}, the next in {again_in} s")
        self.fleet.kill(slot, again_in)
        return True

    def _freeze(self, replace: bool = False) -> bool:
        seconds = SESSION_SECONDS + self.rng.uniform(2, 4)
        if (slot := self._victim()) is None:
            return False
        self._say(f"SIGSTOP in slot {slot} for {seconds:.0f} s" + ", replaced at once" * replace)
        self.fleet.freeze(slot, seconds, replace=replace)
        return True

    def _usurp(self) -> bool:
        return self._freeze(replace=True)

    def _broker(self) -> bool:
        self._say("kill -9 of the broker")
        self.kafka.kill()
        self._rest(self.rng.uniform(0.5, 3))
        self.kafka.start()
        self._say("the broker is back")
        return True

    def _roll(self) -> bool:
        for slot in sorted(self.fleet.running):
            if slot in self.fleet.running:
                self._say(f"rolling restart: SIGTERM in slot {slot}")
                self.fleet.stop(slot)
                self.fleet.start(slot)
                self._rest(3)
        return True

    def _add(self) -> bool:
        slot = max([*self.fleet.workers, *self.fleet.due]) + 1
        self._say(f"a worker more, in slot {slot}")
        self.fleet.start(slot)
        return True

    def _remove(self) -> bool:
        extra = [slot for slot in self.fleet.running if slot >= self.scenario.workers]
        if not extra:
            return False
        self._say(f"a worker less: SIGTERM in slot {extra[-1]}")
        self.fleet.stop(extra[-1])
        return True

    # Looking on -----------------------------------------------------------------------------------------------

    def _moved(self) -> bool:
        """Whether forecasts came since the last time of asking."""
        with suppress(BrokerError):
            ends = self._ask(lambda c, p: c.end_offsets(p), self.names.forecasts)
            before, self._forecasts = self._forecasts, sum(ends.values())
            return self._forecasts > before
        return False

    def _ask(self, question, topic: str, group: str | None = None):
        partitions = range(self.scenario.partitions)
        consumer: Consumer = self.broker.consumer(group=group, isolation="read_committed")
        try:
            consumer.assign(topic, dict.fromkeys(partitions, 0))
            return question(consumer, partitions)
        finally:
            consumer.close()

    def _drain(self) -> None:
        """Wait until the group has committed all there is.

        Raises:
            TimeoutError: nothing has moved for a long time.
        """
        ends = self._ask(lambda c, p: c.end_offsets(p), self.names.readings)
        at, since = {}, time.monotonic()
        while at != ends:
            self._rest(0.5)
            committed = self._ask(lambda c, p: c.committed(p), self.names.readings, self.group)
            now = {p: 0 if c is None else c[0] for p, c in committed.items()}
            if now != at:
                at, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK_SECONDS:
                words = "\n".join(f"{w.log.name}:\n{w.last_words()}" for w in self.fleet.workers.values())
                raise TimeoutError(f"nothing moves any more: committed {at}, ends {ends}\n{words}")
        self._say("all is committed")

    def _say(self, what: str) -> None:
        self._log.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def fresh_folder(base: Path | None, seed: int) -> Path:
    """An empty folder for one storm."""
    folder = Path(tempfile.mkdtemp(prefix="storm-")) if base is None else base / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    from tests.chaos.command import main

    raise SystemExit(main())
