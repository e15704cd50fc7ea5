"""What happens in a storm, and what it leaves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.handover import BACK, CARRIED, OLDER, REBUILT
from tests.chaos.report import Report

KINDS = (
    *("kill", "freeze", "usurp", "broker", "roll", "add", "remove", "swap"),
    "promote",
    *("evict", "rights", "remake", "jump", "damage", "flood"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Without any misfortune unless told; `calm` = seconds without any before the first and after the last."""

    seed: int = 1
    delivery: str = "exactly-once"
    client: str = "kafka-python"  # of the workers
    workers: int = 3
    routers: int = 0  # of `tidecast route`, from a topic with null keys to the readings; see `routed`
    sources: int = 6  # partitions of that topic
    joins: bool = False  # the readings come in parts, which the workers join; see `joined`
    partitions: int = 8
    series: int = 500
    rate: float = 2_000.0  # records a second
    commit_interval_ms: int = 100
    max_poll_records: int = 50  # few, so that batches are full, and commits are made while the next ones are processed
    kills: int = 0  # kill -9 of a worker
    freezes: int = 0  # SIGSTOP for longer than the session, then SIGCONT
    usurps: int = 0  # the same, and meanwhile another process takes its name
    brokers: int = 0  # kill -9 of Kafka, and a restart
    rolls: int = 0  # all workers, one after the other, by SIGTERM
    changes: int = 0  # a worker more, and later one less
    swaps: int = 0  # another model is published
    promotes: int = 0  # another model of a group of three is made the champion; see `promoted`
    evicts: int = 0  # two workers are evicted from the group, one of them in the middle of a join, or frozen
    rights: int = 0  # nobody may write, or read, a topic for a while
    remakes: int = 0  # the output or the dead-letter topic is deleted and made again
    jumps: int = 0  # a series more, whose clock jumps ahead once
    damages: int = 0  # states on the changelog are damaged, and their worker is killed
    floods: int = 0  # one key sends as much as all others, or rubbish
    away: float = 60.0  # s without a right
    pause: tuple[float, float] = (1.0, 3.0)  # s between two misfortunes
    calm: float = 5.0

    def __post_init__(self) -> None:
        if self.swaps and (self.jumps or self.damages):
            raise ValueError("after a jump of a clock, or a damaged state, the verifier knows no change of models")

    def misfortunes(self) -> list[tuple[float, str]]:
        """Pauses in seconds and kinds, in an order that the seed decides."""
        rng = random.Random(self.seed)
        kinds = ["kill"] * self.kills + ["freeze"] * self.freezes + ["usurp"] * self.usurps
        kinds += ["broker"] * self.brokers + ["roll"] * self.rolls + ["change"] * (2 * self.changes)
        kinds += ["swap"] * self.swaps + ["promote"] * self.promotes
        kinds += ["evict"] * self.evicts + ["rights"] * self.rights + ["remake"] * self.remakes
        kinds += ["jump"] * self.jumps + ["damage"] * self.damages + ["flood"] * self.floods
        rng.shuffle(kinds)
        added = False
        for i, kind in enumerate(kinds):
            if kind == "change":
                kinds[i] = "remove" if added else "add"
                added = not added
        return [(rng.uniform(*self.pause), kind) for kind in kinds]


LONG = Scenario(kills=60, freezes=2, usurps=1, brokers=2, rolls=1, changes=2, swaps=2)
# What changes, fails or lies around the workers. No model is changed: see `verifier.Wounds`.
AROUND = Scenario(
    kills=8, freezes=1, brokers=1, changes=1, evicts=20, rights=1, remakes=2, jumps=3, damages=4, floods=3
)
# Half of the misfortunes meet the routers, half the workers.
ROUTE = Scenario(routers=3, kills=40, freezes=2, usurps=1, brokers=2, rolls=2, changes=2, evicts=12)
JOIN = Scenario(joins=True, kills=40, freezes=2, usurps=1, brokers=2, rolls=1, changes=2, evicts=12)
PROMOTE = Scenario(promotes=12, kills=30, freezes=2, usurps=1, brokers=2, rolls=1, changes=2, evicts=8)
SCENARIOS = {"long": LONG, "around": AROUND, "join": JOIN, "route": ROUTE, "promote": PROMOTE}


_HANDED = {"carried": CARRIED, "older": OLDER, "rebuilt": REBUILT, "back": BACK}  # columns of series handed over


@dataclass(slots=True)
class Outcome:
    """What one storm did and what it left."""

    seed: int
    seconds: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    moving: int = 0  # misfortunes since whose forerunner forecasts had come: the others hit a group at rest
    ended: list[str] = field(default_factory=list)
    refused: int = 0  # workers that ended rightly, with the reason
    report: Report = field(default_factory=Report)

    @property
    def ok(self) -> bool:
        return self.report.ok and not self.ended

    def row(self) -> str:
        met = " ".join(f"{self.met[kind]:>6}" for kind in KINDS)
        handed = " ".join(f"{self.report.hand_overs[kind]:>7}" for kind in _HANDED.values())
        r, found = self.report, sum(self.report.found.values())
        said = "ok" if self.ok else ", ".join(f"{n} {kind}" for kind, n in r.found.items()) or "a worker ended"
        return (
            f"{self.seed:>6} {self.seconds:>5.0f} {met} {self.moving:>6} {handed} {r.readings:>9,} {r.forecasts:>9,} "
            f"{r.dead_letters:>6,} {r.states:>6,} {found:>6} {self.refused:>7} {len(self.ended):>6}  {said}"
        )


HEADER = " ".join(
    [f"{'seed':>6} {'s':>5}"]
    + [f"{name:>6}" for name in (*KINDS, "moving")]
    + [f"{name:>7}" for name in _HANDED]
    + [f"{'readings':>9} {'forecasts':>9} {'dead':>6} {'states':>6} {'faults':>6} {'refused':>7} {'ended':>6}"]
)
