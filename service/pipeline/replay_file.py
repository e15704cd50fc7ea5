"""Runs the readings of a file through the pipeline, as the worker would, and counts the outcomes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.datafiles.readings import keys, values
from tidecast.service.datafiles.table import Table
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.batch import BatchResult
from tidecast.service.pipeline.pipeline import Pipeline

_BATCH = 2_000  # readings in one call of the pipeline
_WINDOW_BYTES = 64 << 20
_encode = msgspec.json.Encoder().encode


def window_rows(spec: ModelSpec) -> int:
    """How many readings to keep in memory at once: their lines fit in about 64 MB."""
    numbers = spec.horizon * len(spec.targets) * len(spec.quantiles)
    return max(_BATCH, min(50_000, _WINDOW_BYTES // (12 * numbers + 300)))


def replay(pipeline: Pipeline, windows: Iterable[Table], tally: Tally) -> Iterator[list[bytes]]:
    """The forecasts of each window as JSON lines, in the order of the readings, each with "series" added.

    Inside a window the series take turns, so that waves are wide even where the file holds one series after the other.
    The order within a series is kept, so its forecasts are the same.
    """
    offset = 0
    prefixes: dict[bytes, bytes] = {}  # key -> the start of its lines
    for window in windows:
        lines: list[bytes] = [b""] * len(window)
        for rows in _turns(window.series):
            result = pipeline.process(_batch(window.select(rows), rows, offset))
            tally.add(result)
            forecasts = result.forecasts
            rows_answered = (
                result.positions.offsets - offset
            ).tolist()  # an offset is the reading's number in the file
            for key, value, row in zip(forecasts.keys, forecasts.values, rows_answered, strict=True):
                if key is None or value is None:
                    raise AssertionError("a forecast has a key and a value")
                prefix = prefixes.get(key)
                if prefix is None:
                    prefix = prefixes[key] = b'{"series":' + _encode(key.decode()) + b","
                lines[row] = prefix + value[1:] + b"\n"
        tally.series.update(window.series)
        offset += len(window)
        yield [line for line in lines if line]


def _turns(series: list[str]) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches: every series' first reading, then every series' second, and so on."""
    seen: Counter[str] = Counter()
    turns = np.empty(len(series), dtype=np.int64)
    for row, name in enumerate(series):
        turns[row] = seen[name]
        seen[name] += 1
    order = np.argsort(turns, kind="stable")
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]


def _batch(store: Table, rows: NDArray[np.int64], offset: int) -> Batch:
    """A batch as the worker polls it: one partition, and the reading's number in the file as its offset."""
    n = len(store)
    return Batch(
        topic="replay",
        partitions=[0] * n,
        offsets=(rows + offset).tolist(),
        timestamps=store.ts.tolist(),
        keys=list(keys(store)),
        values=list(values(store)),
        headers=[()] * n,
    )


class Tally:
    """Counts the outcomes of the readings of a replay."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.readings = 0
        self.forecasts = 0
        self.unanswered: Counter[str] = Counter()  # reason -> readings without a forecast
        self.series: set[str] = set()
        self.missing_steps = 0
        self.restarts = 0
        self.clock_recoveries = 0

    def add(self, result: BatchResult) -> None:
        """Count one batch."""
        counts = result.counts
        self.readings += counts.readings
        self.forecasts += counts.forecasts
        self.missing_steps += counts.imputed_steps
        self.restarts += counts.gaps["restarted"]
        self.clock_recoveries += counts.clock_recoveries
        reasons = {
            "late, before the newest of its series": counts.late,
            "duplicate, at the time of its series' last": counts.duplicates,
            **{f"dead letter, {reason}": count for reason, count in counts.dead_letters.items()},
        }
        self.unanswered.update({reason: count for reason, count in reasons.items() if count})

    def summary(self) -> str:
        """A text for the terminal."""
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
        if self.clock_recoveries:
            lines.append(
                f"replay: {self.clock_recoveries:,} jumps ahead that later readings contradicted; the series then "
                "started again, cold"
            )
        lines += [f"replay: no forecast for {count:,}: {reason}" for reason, count in sorted(self.unanswered.items())]
        return "\n".join(lines)
