"""What happens in a storm, and what it leaves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.handover import BACK, CARRIED, OLDER, REBUILT
from tests.chaos.report import Report

KINDS = ("kill", "freeze", "usurp", "broker", "roll", "add", "remove", "swap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Without any misfortune unless told; `calm` = seconds without any before the first and after the last."""

    seed: int = 1
    delivery: str = "exactly-once"
    client: str = "kafka-python"  # of the workers
    workers: int = 3
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
    pause: tuple[float, float] = (1.0, 3.0)  # s between two misfortunes
    calm: float = 5.0

    def misfortunes(self) -> list[tuple[float, str]]:
        """Pauses in seconds and kinds, in an order that the seed decides."""
        rng = random.Random(self.seed)
        kinds = ["kill"] * self.kills + ["freeze"] * self.freezes + ["usurp"] * self.usurps
        kinds += ["broker"] * self.brokers + ["roll"] * self.rolls + ["change"] * (2 * self.changes)
        kinds += ["swap"] * self.swaps
        rng.shuffle(kinds)
        added = False
        for i, kind in enumerate(kinds):
            if kind == "change":
                kinds[i] = "remove" if added else "add"
                added = not added
        return [(rng.uniform(*self.pause), kind) for kind in kinds]


LONG = Scenario(kills=60, freezes=2, usurps=1, brokers=2, rolls=1, changes=2, swaps=2)


_HANDED = {"carried": CARRIED, "older": OLDER, "rebuilt": REBUILT, "back": BACK}  # columns of series handed over


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
        handed = " ".join(f"{self.report.hand_overs[kind]:>7}" for kind in _HANDED.values())
        r, found = self.report, sum(self.report.found.values())
        said = "ok" if self.ok else ", ".join(f"{n} {kind}" for kind, n in r.found.items()) or "a worker ended"
        return (
            f"{self.seed:>6} {self.seconds:>5.0f} {met} {self.moving:>6} {handed} {r.readings:>9,} {r.forecasts:>9,} "
            f"{r.dead_letters:>6,} {r.states:>6,} {found:>6} {len(self.ended):>6}  {said}"
        )


HEADER = " ".join(
    [f"{'seed':>6} {'s':>5}"]
    + [f"{name:>6}" for name in (*KINDS, "moving")]
    + [f"{name:>7}" for name in _HANDED]
    + [f"{'readings':>9} {'forecasts':>9} {'dead':>6} {'states':>6} {'faults':>6} {'ended':>6}"]
)
