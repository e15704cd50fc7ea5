"""What was there, and all that is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EXAMPLES = 5


@dataclass(slots=True)
class Report:
    """What was there, and all that is wrong: kind -> how often, and its first examples. Nothing wrong = `ok`."""

    readings: int = 0
    forecasts: int = 0
    dead_letters: int = 0
    states: int = 0
    skipped_markers: int = 0  # transactions that Kafka committed without saying so in their partitions: its own bug
    gone: int = 0  # answers that went with a topic that was deleted
    restarts: int = 0  # of series whose state was damaged
    hand_overs: Counter[str] = field(default_factory=Counter)  # of series from one model to another, by kind
    champions: int = 0  # how often a partition had another one
    serving: dict[int, str] = field(default_factory=dict)  # partition -> id of the model of its last forecast
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
        if handed := {kind: n for kind, n in self.hand_overs.items() if n}:
            lines.append("series handed over: " + ", ".join(f"{n} {kind}" for kind, n in handed.items()))
        if self.champions:
            lines.append(f"champions of partitions changed: {self.champions}")
        if self.gone or self.restarts:
            lines.append(f"gone with a deleted topic: {self.gone}, begun again after a damaged state: {self.restarts}")
        if self.skipped_markers:
            lines.append(f"Kafka skipped the markers of {self.skipped_markers} transactions: A2 in docs/upstream.md")
        for kind, count in self.found.items():
            lines += [f"{kind}: {count}, first:", *(f"    {example}" for example in self.examples[kind])]
        return "\n".join(lines if self.found else [*lines, "nothing lost, doubled, mixed or different"])
