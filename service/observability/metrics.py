"""The worker's metrics for Prometheus. Their names are a contract: later versions add names, but never rename.

Metrics are updated once per batch, not once per reading. No label holds the name of a series. All values of a label are
known when the worker starts and begin at zero, so that a rate exists before the first event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
RESET_REASONS = ("non_finite", "gap", "tombstone", "evicted", "expired", "damaged_state")
OUTCOMES = ("committed", "failed")
SWAP_OUTCOMES = ("done", "refused")

_STAGE_BUCKETS = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2.5, 5) if 2.4e-5 < m * 10.0**e < 11)
# Batches are counted together once they have this many records, or there are this many: counting a small batch costs as
# much as counting a large one.
_MAX_PENDING_RECORDS, _MAX_PENDING_BATCHES = 8_192, 256
_BATCH_BUCKETS = tuple(float(2**e) for e in range(13))
_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 900.0, 3_600.0, 21_600.0, 86_400.0),
)


class PartitionGauges(Collector):
    """Gauges of the partitions that this worker has now; revoked ones are missing from the next scrape on."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
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
        yield from (records, seconds, held, dirty)


class EmittedBatch(NamedTuple):
    """The parts of one batch's result that are counted once it is committed, together with other batches."""

    counts: BatchCounts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    spec: ModelSpec
    event_times: NDArray[np.int64]  # [forecasts] ms
    wall: float  # s, when the forecasts were made
    partitions: NDArray[np.int32]  # [records]
    timestamps: NDArray[np.int64]  # [records] ms


class _BeforeScrape(Collector):
    """Runs a function at the start of each scrape. Must be registered first."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def collect(self) -> Iterable[Metric]:
        """Run it; there are no metrics."""
        self._do()
        return ()


class Metrics:
    """All metrics of one worker, over a registry of its own.

    Args:
        spec: of the model; its diagnostics determine the scores.
        dead_letter_reasons: all of them, so that each begins at zero.
        wall: seconds since the epoch.
    """

    def __init__(
        self, spec: ModelSpec, dead_letter_reasons: Iterable[str], wall: Callable[[], float] = time.time
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # otherwise each counter has a second, useless series
        self.registry = CollectorRegistry()
        self._wall = wall
        self._lock = threading.Lock()
        self._pending: list[EmittedBatch] = []
        self._damaged = 0  # states set aside
        self._records = 0  # in the pending batches
        self.registry.register(_BeforeScrape(self._count_pending))
        self._batch_counters = {  # by the field of BatchCounts
            "readings": self._counter("readings", "records read from the input topic, except tombstones"),
            "forecasts": self._counter("forecasts", "forecasts committed"),
            "duplicates": self._counter(
                "duplicate_readings", "readings with the same time as the newest of their series; no forecast"
            ),
            "late": self._counter("late_readings", "readings older than the newest of their series; no forecast"),
            "replayed": self._counter(
                "replayed_readings",
                "readings read again to update restored states; they were answered before",
            ),
            "imputed_steps": self._counter("silent_steps", "steps without a reading, made to fill gaps"),
        }
        self._labelled_batch_counters = {
            "dead_letters": self._counter(
                "dead_letters", "records sent to the dead-letter topic", "reason", dead_letter_reasons
            ),
            "gaps": self._counter(
                "gaps",
                "gaps in a series: filled with steps, or followed by a restart",
                "action",
                GAP_ACTIONS,
            ),
            "missing": self._counter(
                "missing_values",
                "values that answered readings lacked; the model uses its own forecast for them",
                "feature",
                spec.features,
            ),
            "resets": self._counter("resets", "series whose state was dropped or reset", "reason", RESET_REASONS),
        }
        self.transactions = self._counter("transactions", "commits of forecasts and offsets", "outcome", OUTCOMES)
        self.start_overs = self._counter(
            "start_overs", "times that all states were dropped and restored because a transaction failed"
        )
        self.changelog_records = self._counter(
            "changelog_records", "states, and tombstones of removed series, written to the changelog"
        )
        self.rebalances = self._counter("rebalances", "times that the group assigned partitions to this worker")
        self.stalls = self._counter("stalls", "times that the watchdog found the loop hanging")

        self.batch_size = self._histogram("batch_size", "readings in one call of the model", _BATCH_BUCKETS)
        self.stage_seconds = self._histogram(
            "stage_seconds", "time that each stage of the loop takes, per batch", _STAGE_BUCKETS, "stage", STAGES
        )
        self.event_to_forecast = self._histogram(
            "event_to_forecast_seconds",
            "from a reading's event time until its forecast is handed to Kafka",
            _LATENCY_BUCKETS,
        )
        self.scores = ScoreMetrics(spec)
        self.registry.register(self.scores)
        self.partitions = PartitionGauges(wall)
        self.registry.register(self.partitions)

        self.last_poll = self._gauge("last_poll_timestamp_seconds", "when the loop last polled Kafka for readings")
        self.kafka_answered = self._gauge(
            "kafka_answer_timestamp_seconds", "when Kafka last answered; it is asked every 10 s while idle; 0 = not yet"
        )
        self.last_commit = self._gauge("last_commit_timestamp_seconds", "when the last commit succeeded; 0 = not yet")
        self.max_series = self._gauge(
            "max_series",
            "the most series that this worker keeps in memory",
        )
        self.restoring = self._gauge("restoring_partitions", "partitions not read yet: their states are being restored")
        self.restore_remaining = self._gauge("restore_remaining_records", "changelog records still to read")
        self.restore_seconds = self._gauge("restore_seconds", "duration of the last restore of states")
        self.model_swaps = self._counter(
            "model_swaps", "newer models that took over or were refused", "outcome", SWAP_OUTCOMES
        )
        self._model = self._gauge("model_info", "the served model; always 1", "name", "hash", "kind", "contract")
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
        """Show this model as the served one."""
        self._model.clear()
        self._model.labels(spec.name, spec.hash[:12], spec.kind, str(spec.contract)).set(1)

    def emitted(self, result: BatchResult) -> EmittedBatch:
        """What to count of a batch. Call it as its forecasts are handed to Kafka."""
        return EmittedBatch(
            result.counts,
            result.scores,
            result.spec,
            result.event_times,
            self._wall(),
            result.partitions,
            result.timestamps,
        )

    def count(self, batches: Sequence[EmittedBatch]) -> None:
        """Count batches that are committed."""
        with self._lock:
            self._pending += batches
            self._records += sum(len(each.partitions) for each in batches)
        if self._records >= _MAX_PENDING_RECORDS or len(self._pending) >= _MAX_PENDING_BATCHES:
            self._count_pending()

    def _add(self, counts: Sequence[BatchCounts]) -> None:
        """Add the sums over batches."""
        for name, counter in self._batch_counters.items():
            counter.inc(sum(getattr(each, name) for each in counts))
        for name, counter in self._labelled_batch_counters.items():
            for each in counts:
                for label, n in getattr(each, name).items():
                    if n:  # rare, and looking up a label is expensive
                        counter.labels(label).inc(n)
        for stage in counts[0].stage_seconds:
            self.stage_seconds.observe([each.stage_seconds[stage] for each in counts], stage)
        self.batch_size.observe([size for each in counts for size in each.waves])

    def _count_pending(self) -> None:
        """Count the pending batches. Called by the loop, and by scrapes in other threads."""
        with self._lock:
            waiting, self._pending, self._records = self._pending, [], 0
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
        """Note that a commit succeeded."""
        self.last_commit.set(self._wall())

    def note_damaged_states(self, total: int) -> None:
        """Note how many states were set aside in all restores."""
        self._labelled_batch_counters["resets"].labels("damaged_state").inc(total - self._damaged)
        self._damaged = total

    def note_answer(self) -> None:
        """Note that Kafka answered."""
        self.kafka_answered.set(self._wall())
