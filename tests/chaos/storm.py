"""Storms: readings flow, workers and broker are killed, frozen and replaced, and afterwards nothing may be amiss.

    python -m tests.chaos.storm --seed 1 --storms 10 --kills 60

The misfortunes are the same for a seed; when exactly they meet the worker is not.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.administration import AUTHORIZER, Administration
from tests.chaos.around import AROUND
from tests.chaos.feed import Feeder, feed
from tests.chaos.fleet import Fleet
from tests.chaos.lookout import Lookout
from tests.chaos.readings import Readings, Record
from tests.chaos.report import Report
from tests.chaos.scenario import Outcome, Scenario
from tests.chaos.topics import Lost, Names
from tests.chaos.verifier import Wounds, verify
from tests.support.kafka import own_kafka
from tests.support.models import publish
from tidecast.service.broker.connect import connect
from tidecast.service.broker.port import Broker
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec

SESSION_SECONDS = 6.0  # after it the group takes a member for dead
SWAP_SECONDS = 60.0  # after the storm, for the last model to answer everywhere
SKIPPED_MARKERS = "Couldn't find leader endpoint for partitions"  # in the broker's log: A2 in docs/upstream.md
STUCK_SECONDS = 120.0  # without any progress, at the end
COMPACTED = {"cleanup.policy": "compact", "segment.ms": "10000", "min.cleanable.dirty.ratio": "0.01"}


class Storm:
    """One run: its own broker, topics, workers. All of it is in `folder`, and stays there.

    The first of the model directories is served; each swap publishes the next one.

    Raises:
        ValueError: there are fewer models than the swaps need.
    """

    def __init__(self, scenario: Scenario, folder: Path, models: Sequence[Path]) -> None:
        if len(models) <= scenario.swaps:
            raise ValueError(f"{scenario.swaps} swaps need {scenario.swaps + 1} models, got {len(models)}")
        self.scenario, self.folder = scenario, folder
        self.models = [Model.load(path) for path in models]
        self.rng = random.Random(scenario.seed + 1)
        self.kafka = own_kafka(folder / "kafka", properties=AUTHORIZER)
        exactly_once = scenario.delivery == "exactly-once"
        self.names = Names("readings", "forecasts", "dead-letters", "states" if exactly_once else None)
        self.group = "storm"
        self.outcome = Outcome(scenario.seed)
        self.feeders: list[Feeder] = []
        self.jumping: list[bytes] = []  # keys of series whose clock jumps
        self.lost: dict[str, Lost] = {}
        self.damaged: set[tuple[bytes | None, bytes | None]] = set()
        self._model_paths, self._served = models, folder / "served"
        self._log = (folder / "storm.log").open("a", buffering=1)
        self._publish(0)

    def run(self) -> Outcome:
        """Everything, from the start of Kafka to the verdict.

        Raises:
            TimeoutError, RuntimeError, BrokerError: the storm itself failed; that says nothing good either.
        """
        began = time.monotonic()
        self.kafka.start()
        self.broker = connect(self.kafka.bootstrap_servers, timeout_s=30)
        self.administration = Administration(self.kafka.bootstrap_servers)
        self.lookout = Lookout(self.broker, self.names, self.group, self.scenario.partitions)
        self._make_topics(self.broker)
        self.fleet = Fleet(self.folder, self._flags())
        self.fleets = [self.fleet]
        try:
            self._start()
            self._blow()
            self._drain()
            self.say("stopping the workers")
            for fleet in self.fleets:
                for slot in list(fleet.workers):
                    fleet.stop(slot)
            self.say("judging")
            self.outcome.report = self._verdict()
            broker_log = (self.folder / "kafka" / "broker.log").read_text("utf-8", "replace")
            self.outcome.report.skipped_markers = broker_log.count(SKIPPED_MARKERS)
        finally:
            for fleet in self.fleets:
                fleet.kill_all()
            self.broker.close()
            self.kafka.stop()
            self.outcome.ended = [each for fleet in self.fleets for each in fleet.ended]
            self.outcome.refused = sum(fleet.refused for fleet in self.fleets)
            self.outcome.seconds = time.monotonic() - began
            self.say(f"{self.outcome.row()}\n{self.outcome.report}\n" + "\n".join(self.outcome.ended))
            self._log.close()
        return self.outcome

    def _start(self) -> None:
        for slot in range(self.scenario.workers):
            self.fleet.start(slot)
        self.fleet.settle(self.scenario.partitions)

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
            f"--max-poll-records={self.scenario.max_poll_records}",
            f"--model={self._served}",
            "--http-port=0",
            f"--dead-letter-limit={self.scenario.rate / 4 if self.scenario.floods else 0:.0f}",
            "--changelog-topic=states",
            "--changelog-seconds=3",
            f"--session-timeout-seconds={SESSION_SECONDS}",
            "--model-watch-seconds=0.5",
            f"--client={self.scenario.client}",
        ]

    def _blow(self) -> None:
        """The readings, and the misfortunes while they flow."""
        s = self.scenario
        self._feed()
        self.rest(s.calm)
        for pause, kind in s.misfortunes():
            self.rest(pause)
            moved = self.lookout.moved()
            self._aim()
            if AROUND[kind](self) if kind in AROUND else getattr(self, f"_{kind}")():
                self.outcome.met[kind] += 1
                self.outcome.moving += moved
        while any(fleet.zombies or fleet.due for fleet in self.fleets):
            self.rest(0.2)
        self.rest(s.calm)
        self._await_last_model()
        for feeder in self.feeders:
            feeder.finish()
        self.say(f"{sum(feeder.sent for feeder in self.feeders):,} records are in")

    def _feed(self) -> None:
        s = self.scenario
        self.feed_too(feed(self.models[0].spec, s.series, s.seed), s.rate)

    def _aim(self) -> None:
        """Choose whom the next misfortune hits, where there are several fleets."""

    def feed_too(self, records: Iterator[Any], rate: float) -> bool:
        """Send these as well, from now on; True."""
        return self._feed_into(self.names.readings, records, rate)

    def _feed_into(self, topic: str, records: Iterator[Any], rate: float) -> bool:
        self.feeders.append(Feeder(self.broker, topic, records, rate))
        self.feeders[-1].start()
        return True

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for fleet in self.fleets:
                fleet.tend()
            time.sleep(0.05)

    # The misfortunes; each says whether it could come about ---------------------------------------------------

    def _victim(self) -> int | None:
        running = self.fleet.running
        return self.rng.choice(running) if running else None

    def _kill(self) -> bool:
        again_in = self.rng.choice((0.0, 0.0, 1.5))
        if (slot := self._victim()) is None:
            return False
        self.say(f"kill -9 in slot {slot}, the next in {again_in} s")
        self.fleet.kill(slot, again_in)
        return True

    def _freeze(self, replace: bool = False) -> bool:
        seconds = SESSION_SECONDS + self.rng.uniform(2, 4)
        if (slot := self._victim()) is None:
            return False
        self.say(f"SIGSTOP in slot {slot} for {seconds:.0f} s" + ", replaced at once" * replace)
        self.fleet.freeze(slot, seconds, replace=replace)
        return True

    def _usurp(self) -> bool:
        return self._freeze(replace=True)

    def _broker(self) -> bool:
        self.say("kill -9 of the broker")
        self.kafka.kill()
        self.rest(self.rng.uniform(0.5, 3))
        self.kafka.start()
        self.say("the broker is back")
        return True

    def _roll(self) -> bool:
        for slot in sorted(self.fleet.running):
            if slot in self.fleet.running:
                self.say(f"rolling restart: SIGTERM in slot {slot}")
                self.fleet.stop(slot)
                self.fleet.start(slot)
                self.rest(3)
        return True

    def _add(self) -> bool:
        slot = max([*self.fleet.workers, *self.fleet.due]) + 1
        self.say(f"a worker more, in slot {slot}")
        self.fleet.start(slot)
        return True

    def _remove(self) -> bool:
        extra = [slot for slot in self.fleet.running if slot >= self.scenario.workers]
        if not extra:
            return False
        self.say(f"a worker less: SIGTERM in slot {extra[-1]}")
        self.fleet.stop(extra[-1])
        return True

    def _swap(self) -> bool:
        self._publish(self._published + 1)
        self.say(f"published {self.models[self._published].spec.id}")
        self._kill()  # before it has looked: its successor finds states that another model left; the others hand over
        return True

    def _publish(self, nth: int) -> None:
        self._published = nth
        publish(self._model_paths[nth], self._served)

    # The end --------------------------------------------------------------------------------------------------

    def _await_last_model(self) -> None:
        """Wait until the model published last answers everywhere; for ever it need not, the verdict says so then."""
        deadline = time.monotonic() + SWAP_SECONDS
        last = self.models[self._published].spec.id
        while self._published and time.monotonic() < deadline:
            self.rest(0.5)
            if (serving := self.lookout.serving()) == dict.fromkeys(range(self.scenario.partitions), last):
                return self.say(f"{last} answers everywhere")
        if self._published:
            self.say(f"{last} does not answer everywhere: {serving}")

    def _drain(self) -> None:
        """Wait until the group has committed all there is.

        Raises:
            TimeoutError: nothing has moved for a long time.
        """
        self.drain(self.lookout)

    def drain(self, lookout: Lookout) -> None:
        ends = lookout.ends()
        at, since = {}, time.monotonic()
        while at != ends:
            self.rest(0.5)
            now = lookout.committed()
            if now != at:
                at, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK_SECONDS:
                everybody = [worker for fleet in self.fleets for worker in fleet.workers.values()]
                words = "\n".join(f"{w.name}:\n{w.last_words()}" for w in everybody)
                raise TimeoutError(f"nothing moves any more: committed {at}, ends {ends}\n{words}")
        self.say("all is committed")

    def _verdict(self) -> Report:
        exact = all(m.spec.name == "counting" for m in self.models)  # whole numbers: there is nothing to round
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
        published = self.models[: self._published + 1]
        told = self._set_aside()
        wounds = Wounds(self.lost, self.damaged, told)
        report = verify(self.broker, published, self.names, wounds=wounds, read=self._read, **tolerance)
        for key in told.keys() - {key for key, _ in self.damaged}:
            report.add("states set aside that nobody damaged", repr(key))
        for partition, model in sorted(report.serving.items()):
            if model != published[-1].spec.id:
                report.add("partitions left to an older model", f"{partition}: answered by {model} at the end")
        return report

    _read: Callable[[ModelSpec, Sequence[Record]], Readings] = Readings  # how records become readings

    def _set_aside(self) -> Counter[bytes]:
        """How many states of each series the workers have set aside, as their logs say."""
        found = {
            re.findall(r"record=(\S+) key=(\S+)", line)[0]
            for log in self.folder.glob("worker-*.log")
            for line in log.read_text(errors="replace").splitlines()
            if "the state of a series is set aside" in line
        }
        return Counter(key.encode() for _, key in found)

    def say(self, what: str) -> None:
        self._log.write(f"{time.strftime('%H:%M:%S')} {what}\n")


if __name__ == "__main__":
    from tests.chaos.command import main

    raise SystemExit(main())
