"""How far each partition is, and how many series it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class PartitionGauges(Collector):
    """Gauges of the partitions that this worker has now; revoked ones are missing from the next scrape on."""

    def __init__(self, wall: Callable[[], float], *, series: bool) -> None:
        self._wall, self._has_series = wall, series
        self._lock = threading.Lock()
        self._topic = ""
        self._lag: Mapping[int, int] = {}
        self._last_ms: dict[int, int] = {}
        self._series: Mapping[int, int] = {}
        self._unwritten: Mapping[int, int] = {}

    def seen(self, partitions: NDArray[np.int32], timestamps_ms: NDArray[np.int64]) -> None:
        """Note the partitions [n] and timestamps [n] of records that were processed, in this order."""
        last = np.full(int(partitions.max(initial=-1)) + 1, -1)  # [partition] row of its last record
        last[partitions] = np.arange(len(partitions))  # where a partition occurs twice, the last one counts
        held = np.flatnonzero(last >= 0)
        found = zip(held.tolist(), timestamps_ms[last[held]].tolist(), strict=True)
        with self._lock:
            self._last_ms = {**self._last_ms, **dict(found)}

    def update(
        self, topic: str, lag: Mapping[int, int], series: Mapping[int, int], unwritten: Mapping[int, int]
    ) -> None:
        """Set by partition: unprocessed records, series in memory, and how many of these have unwritten changes.

        Partitions that are not in `lag` are not this worker's.
        """
        self._topic, self._lag, self._series, self._unwritten = topic, dict(lag), dict(series), dict(unwritten)
        with self._lock:
            self._last_ms = {p: ms for p, ms in self._last_ms.items() if p in self._lag}

    def collect(self) -> Iterable[Metric]:
        """Lag in records and seconds, and numbers of series, of each partition."""
        # Attributes are replaced as a whole and never changed in place, so reading them needs no lock.
        lag, last_ms, series, unwritten = self._lag, self._last_ms, self._series, self._unwritten
        records = GaugeMetricFamily(
            "tidecast_lag_records",
            "readings of the partition that are not answered and committed yet",
            labels=["topic", "partition"],
        )
        seconds = GaugeMetricFamily(
            "tidecast_lag_seconds",
            "age of the last processed reading, by its record's timestamp; 0 if no reading is waiting",
            labels=["topic", "partition"],
        )
        held = GaugeMetricFamily("tidecast_series", "series whose state is in memory", labels=["partition"])
        dirty = GaugeMetricFamily(
            "tidecast_unwritten_series",
            "series whose state changed after it was last written to the changelog",
            labels=["partition"],
        )
        for p in sorted(lag):
            records.add_metric([self._topic, str(p)], lag[p])
            age = self._wall() - last_ms[p] / 1_000 if lag[p] and p in last_ms else 0.0
            seconds.add_metric([self._topic, str(p)], max(age, 0.0))
            held.add_metric([str(p)], series.get(p, 0))
            dirty.add_metric([str(p)], unwritten.get(p, 0))
        yield from (records, seconds, held, dirty) if self._has_series else (records, seconds)
