"""A file's readings through the pipeline, as the worker would poll them, and what came of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from service.broker.base import Batch
from service.pipeline import Pipeline
from service.policy import Result
from service.records import keys, values
from service.table import Table

_encode = msgspec.json.Encoder().encode


def replay(pipeline: Pipeline, tables: Iterable[Table], tally: Tally) -> Iterator[list[bytes]]:
    """For each table its forecasts as JSON lines, in the order of the readings, each with "series" added."""
    offset = 0
    prefixes: dict[bytes, bytes] = {}  # key -> the line's beginning
    for table in tables:
        # One partition, offset = the reading's number in the file. The pipeline makes the waves.
        n = len(table)
        ts = table.ts.tolist()
        batch = Batch(
            topic="replay",
            partitions=[0] * n,
            offsets=list(range(offset, offset + n)),
            timestamps=ts,
            keys=list(keys(table)),
            values=list(values(table)),
            headers=[()] * n,
            next_offsets={0: offset + n},
        )
        offset += n
        result = pipeline.process(batch)
        tally.add(table, result)
        lines: list[bytes] = []
        for key, value in zip(result.forecasts.keys, result.forecasts.values, strict=True):
            if key is None or value is None:
                raise AssertionError("a forecast has a key and a value")
            prefix = prefixes.get(key)
            if prefix is None:
                prefix = prefixes[key] = b'{"series":' + _encode(key.decode()) + b","
            lines.append(prefix + value[1:] + b"\n")
        yield lines


class Tally:
    """What became of the readings of a replay."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.readings = 0
        self.forecasts = 0
        self.silent: Counter[str] = Counter()  # why a reading got no line
        self.series: set[str] = set()
        self.missing_steps = 0
        self.restarts = 0

    def add(self, table: Table, result: Result) -> None:
        """Count one batch."""
        counts = result.counts
        self.readings += len(table)
        self.forecasts += counts.forecasts
        self.series.update(table.series)
        self.missing_steps += counts.silent_steps
        self.restarts += counts.gaps["restarted"]
        reasons = {
            "late, before the newest of its series": counts.late,
            "duplicate, at the time of its series' last": counts.duplicates,
            **{f"dead letter, {reason}": count for reason, count in counts.dead_letters.items()},
        }
        self.silent.update({reason: count for reason, count in reasons.items() if count})

    def summary(self) -> str:
        """For a person, on stderr."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        lines = [
            f"replay: {self.readings:,} readings of {len(self.series):,} series, {self.forecasts:,} forecasts, "
            f"{seconds:.1f} s ({self.readings / seconds:,.0f} readings per second)"
        ]
        if self.missing_steps or self.restarts:
            lines.append(
                f"replay: {self.missing_steps:,} missing steps filled in; {self.restarts:,} gaps too long, after which "
                "the series started again, cold"
            )
        lines += [f"replay: no forecast for {count:,}: {reason}" for reason, count in sorted(self.silent.items())]
        return "\n".join(lines)
