"""What the worker tells Prometheus. Names are a contract: later versions add to them, never rename.

Everything is fed once for a batch, not once for a reading. No label ever carries a series' name; each label's
values are known when the worker starts and begin at zero, so that a rate exists before the first event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidecast import __version__
from tidecast.service.model.spec import ModelSpec
from tidecast.service.observability.histogram import BulkHistogram
from tidecast.service.observability.score_metrics import ScoreMetrics
from tidecast.service.pipeline.batch import BatchCounts, BatchResult

STAGES = ("poll", "decode", "step", "encode", "emit", "commit")
GAP_ACTIONS = ("filled", "restarted")
RESET_REASONS = ("non_finite", "gap", "tombstone", "evicted", "expired")
OUTCOMES = ("committed", "failed")
SWAP_OUTCOMES = ("done", "refused")

_STAGE_BUCKETS = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2.5, 5) if 2.4e-5 < m * 10.0**e < 11)
# So many records of several batches, or so many batches, are counted at a time: one of a handful costs as much as a
# large one.
_TOGETHER, _BATCHES_TOGETHER = 8_192, 256
_BATCH_BUCKETS = tuple(float(2**e) for e in range(13))
_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 900.0, 3_600.0, 21_600.0, 86_400.0),
)


class PartitionGauges(Collector):
    """Gauges of the partitions that this worker holds now; those that left are gone from the next scrape on."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._topic = ""
        self._lag: Mapping[int, int] = {}
        self._last_ms: dict[int, int] = {}
        self._series: Mapping[int, int] = {}
        self._unwritten: Mapping[int, int] = {}

    def seen(self, partitions: NDArray[np.int32], timestamps_ms: NDArray[np.int64]) -> None:
        """Records were processed, in this order: their partitions [n] and timestamps [n]."""
        last = np.full(int(partitions.max(initial=-1)) + 1, -1)  # [partition] the row of its last record
        last[partitions] = np.arange(len(partitions))  # where a partition comes twice, the later one stays
        held = np.flatnonzero(last >= 0)
        found = zip(held.tolist(), timestamps_ms[last[held]].tolist(), strict=True)
        with self._lock:
            self._last_ms = {**self._last_ms, **dict(found)}

    def update(
        self, topic: str, lag: Mapping[int, int], series: Mapping[int, int], unwritten: Mapping[int, int]
    ) -> None:
        """By partition: records behind, series held, and of these the ones that the changelog is behind of.

        A partition absent from `lag` is not ours.
        """
        self._topic, self._lag, self._series, self._unwritten = topic, dict(lag), dict(series), dict(unwritten)
        with self._lock:
            self._last_ms = {p: ms for p, ms in self._last_ms.items() if p in self._lag}

    def collect(self) -> Iterable[Metric]:
        """Lag in records and seconds, and series, of each partition."""
        # Each attribute is replaced as a whole, never changed in place: no lock against the loop is needed.
        lag, last_ms, series, unwritten = self._lag, self._last_ms, self._series, self._unwritten
        records = GaugeMetricFamily(
            "tidecast_lag_records",
            "readings in the partition that are not processed yet",
            labels=["topic", "partition"],
        )
        seconds = GaugeMetricFamily(
            "tidecast_lag_seconds",
            "age of the last reading processed, by its record's timestamp; 0 where none is waiting",
            labels=["topic", "partition"],
        )
        held = GaugeMetricFamily("tidecast_series", "series whose state is held", labels=["partition"])
        dirty = GaugeMetricFamily(
            "tidecast_unwritten_series",
            "series whose state has moved on since it was last written to the changelog",
            labels=["partition"],
        )
        for p in sorted(lag):
            records.add_metric([self._topic, str(p)], lag[p])
            age = self._wall() - last_ms[p] / 1_000 if lag[p] and p in last_ms else 0.0
            seconds.add_metric([self._topic, str(p)], max(age, 0.0))
            held.add_metric([str(p)], series.get(p, 0))
            dirty.add_metric([str(p)], unwritten.get(p, 0))
        yield from (records, seconds, held, dirty)


class _PendingBatch(NamedTuple):
    """What is counted of one batch a little later, together with others."""

    counts: BatchCounts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    spec: ModelSpec
    event_times: NDArray[np.int64]  # [forecasts] ms
    wall: float  # s, when they were made
    partitions: NDArray[np.int32]  # [records]
    timestamps: NDArray[np.int64]  # [records] ms


class _BeforeScrape(Collector):
    """Does something at the beginning of each scrape, where it is registered first."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def collect(self) -> Iterable[Metric]:
        """Nothing of its own."""
        self._do()
        return ()


class Metrics:
    """All metrics of one worker, over a registry of its own.

    Args:
        spec: the model's; its diagnostics decide which scores there are.
        dead_letter_reasons: the closed set of reasons, so that each begins at zero.
        wall: seconds since the epoch.
    """

    def __init__(
        self, spec: ModelSpec, dead_letter_reasons: Iterable[str], wall: Callable[[], float] = time.time
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
        self.registry = CollectorRegistry()
        self._wall = wall
        self._lock = threading.Lock()
        self._waiting: list[_PendingBatch] = []
        self._records = 0  # in these
        self.registry.register(_BeforeScrape(self._settle))
        self.readings = self._counter("readings", "records taken from the input topic, without tombstones")
        self.forecasts = self._counter("forecasts", "forecasts written")
        self.dead_letters = self._counter(
            "dead_letters", "readings sent to the dead-letter topic", "reason", dead_letter_reasons
        )
        self.duplicates = self._counter(
            "duplicate_readings", "readings with the time of their series' last; no forecast"
        )
        self.late = self._counter("late_readings", "readings older than their series' last; no forecast")
        self.gaps = self._counter(
            "gaps", "gaps in a series: filled step by step, or started again", "action", GAP_ACTIONS
        )
        self.replayed = self._counter(
            "replayed_readings", "readings read again to bring restored states up to date; they were answered before"
        )
        self.imputed_steps = self._counter("silent_steps", "steps made without a reading to fill gaps")
        self.resets = self._counter("resets", "series whose state was given up", "reason", RESET_REASONS)
        self.transactions = self._counter("transactions", "commits of forecasts and offsets", "outcome", OUTCOMES)
        self.start_overs = self._counter(
            "start_overs", "times that all states were dropped and restored, as a transaction came to nothing"
        )
        self.changelog_records = self._counter(
            "changelog_records", "states, and tombstones of series forgotten, written to the changelog"
        )
        self.rebalances = self._counter("rebalances", "times that the group gave this worker its partitions")
        self.stalls = self._counter("stalls", "times that the watchdog found the loop stuck")

        self.batch_size = self._histogram(
            "batch_size", "readings that went through the model in one call", _BATCH_BUCKETS
        )
        self.stage_seconds = self._histogram(
            "stage_seconds", "where the loop's time goes, for each batch", _STAGE_BUCKETS, "stage", STAGES
        )
        self.event_to_forecast = self._histogram(
            "event_to_forecast_seconds", "from a reading's own time to its forecast handed to Kafka", _LATENCY_BUCKETS
        )
        self.scores = ScoreMetrics(spec)
        self.registry.register(self.scores)
        self.partitions = PartitionGauges(wall)
        self.registry.register(self.partitions)

        self.last_poll = self._gauge("last_poll_timestamp_seconds", "when the loop last asked Kafka for readings")
        self.kafka_answered = self._gauge(
            "kafka_answer_timestamp_seconds", "when Kafka was last heard of, asked every 10 s while idle; 0 = not yet"
        )
        self.last_commit = self._gauge("last_commit_timestamp_seconds", "when Kafka last took a commit; 0 = not yet")
        self.max_series = self._gauge("max_series", "series that this worker holds at the most; beyond it some go")
        self.restoring = self._gauge("restoring_partitions", "partitions that wait for their states, and are not read")
        self.restore_remaining = self._gauge("restore_remaining_records", "records to read before states are restored")
        self.restore_seconds = self._gauge("restore_seconds", "how long the last restore of states took")
        self.model_swaps = self._counter(
            "model_swaps", "newer models that have taken over, or were refused", "outcome", SWAP_OUTCOMES
        )
        self._model = self._gauge(
            "model_info", "the model that is served; always 1", "name", "hash", "kind", "contract"
        )
        self.serve(spec)
        self._gauge("build_info", "the version of tidecast; always 1", "version").labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, documentation: str, label: str = "", values: Iterable[str] = ()) -> Counter:
        counter = Counter(f"tidecast_{name}", documentation, [label] if label else [], registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"tidecast_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float], label: str = "", values: Sequence[str] = ()
    ) -> BulkHistogram:
        histogram = BulkHistogram(f"tidecast_{name}", documentation, buckets, label, values)
        self.registry.register(histogram)
        return histogram

    def serve(self, spec: ModelSpec) -> None:
        """This is the model now."""
        self._model.clear()
        self._model.labels(spec.name, spec.hash[:12], spec.kind, str(spec.contract)).set(1)

    def count(self, result: BatchResult) -> None:
        """What one batch led to. Call it once its forecasts are handed to Kafka."""
        with self._lock:
            self._waiting.append(
                _PendingBatch(
                    result.counts,
                    result.scores,
                    result.spec,
                    result.event_times,
                    self._wall(),
                    result.partitions,
                    result.timestamps,
                )
            )
            self._records += len(result.partitions)
        if self._records >= _TOGETHER or len(self._waiting) >= _BATCHES_TOGETHER:
            self._settle()

    def _add(self, counts: Sequence[BatchCounts]) -> None:
        """Sums over batches."""
        self.readings.inc(sum(each.readings for each in counts))
        self.forecasts.inc(sum(each.forecasts for each in counts))
        self.duplicates.inc(sum(each.duplicates for each in counts))
        self.late.inc(sum(each.late for each in counts))
        self.imputed_steps.inc(sum(each.imputed_steps for each in counts))
        self.replayed.inc(sum(each.replayed for each in counts))
        for each in counts:
            by_label = (self.dead_letters, each.dead_letters), (self.gaps, each.gaps), (self.resets, each.resets)
            for counter, found in by_label:
                for label, n in found.items():
                    if n:  # nearly never, and to ask for the label is dear
                        counter.labels(label).inc(n)
        for stage in counts[0].stage_seconds:
            self.stage_seconds.observe([each.stage_seconds[stage] for each in counts], stage)
        self.batch_size.observe([size for each in counts for size in each.waves])

    def _settle(self) -> None:
        """Count what waits; for the loop, and for a scrape in a thread of its own."""
        with self._lock:
            waiting, self._waiting, self._records = self._waiting, [], 0
            if not waiting:
                return
            self._add([each.counts for each in waiting])
            for _, group in groupby(waiting, key=lambda each: id(each.spec)):
                of_one = list(group)
                self.scores.add(np.concatenate([each.scores for each in of_one]), of_one[0].spec)
            partitions, timestamps, times = (
                np.concatenate(columns)
                for columns in zip(*((w.partitions, w.timestamps, w.event_times) for w in waiting), strict=True)
            )
            self.partitions.seen(partitions, timestamps)
            now = np.repeat([each.wall for each in waiting], [len(each.event_times) for each in waiting])
            self.event_to_forecast.observe(np.maximum(now - times / 1_000, 0.0))

    def note_commit(self) -> None:
        """Kafka has taken a commit."""
        self.last_commit.set(self._wall())

    def note_answer(self) -> None:
        """Kafka has answered."""
        self.kafka_answered.set(self._wall())

    def families(self) -> Iterator[Metric]:
        """Everything, as one scrape sees it."""
        return iter(self.registry.collect())
