"""What the worker tells Prometheus. Names are a contract: later versions add to them, never rename.

Everything is fed once for a batch, not once for a reading. No label ever carries a series' name; each label's
values are known when the worker starts and begin at zero, so that a rate exists before the first event.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from service import __version__
from service.policy import Result
from service.spec import Diagnostic, ModelSpec

STAGES = ("poll", "decode", "step", "encode", "emit", "commit")
GAP_ACTIONS = ("filled", "restarted")
RESET_REASONS = ("non_finite", "gap", "tombstone", "evicted", "expired")
OUTCOMES = ("committed", "failed")
SWAP_OUTCOMES = ("done", "refused")

_STAGE_BUCKETS = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2.5, 5) if 2.4e-5 < m * 10.0**e < 11)
_BATCH_BUCKETS = tuple(float(2**e) for e in range(13))
_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 900.0, 3_600.0, 21_600.0, 86_400.0),
)


class BulkHistogram(Collector):
    """A Prometheus histogram that takes an array at a time; prometheus_client's own takes 1 µs for each value."""

    def __init__(
        self, name: str, documentation: str, buckets: Sequence[float], label: str = "", values: Sequence[str] = ()
    ):
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = np.asarray(buckets, dtype=np.float64)  # [buckets], ascending, without +Inf
        self._ascending = self._bounds.tolist()
        self._le = [*(f"{b:.12g}" for b in buckets), "+Inf"]
        self._counts = {v: np.zeros(len(buckets) + 1, dtype=np.int64) for v in (values or ("",))}
        self._sums = dict.fromkeys(self._counts, 0.0)
        self._lock = threading.Lock()

    def observe(self, values: NDArray[np.float64] | Sequence[float], label: str = "") -> None:
        """Count all `values` [n] under one label value."""
        array = np.asarray(values, dtype=np.float64)
        counted = np.bincount(self._bounds.searchsorted(array), minlength=len(self._bounds) + 1)
        with self._lock:
            self._counts[label] += counted
            self._sums[label] += float(array.sum())

    def observe_one(self, value: float, label: str = "") -> None:
        """Count one value under one label value; in a tenth of the time that `observe` takes."""
        with self._lock:
            self._counts[label][bisect_left(self._ascending, value)] += 1
            self._sums[label] += value

    def collect(self) -> Iterable[Metric]:
        """One family."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])
        with self._lock:
            for value, counts in self._counts.items():
                cumulated = [float(n) for n in np.cumsum(counts)]
                buckets = list(zip(self._le, cumulated, strict=True))
                family.add_metric([value] if self._label else [], buckets, self._sums[value])
        yield family


class Scores(Collector):
    """The model's own scoring of its earlier forecasts, as sums and counts: what a rate can divide.

    Skill over the naive forecast is `1 - rate(absolute_error_sum) / rate(naive_error_sum)`; an interval's coverage
    is `rate(interval_coverage_sum) / rate(interval_coverage_count)`.
    """

    KINDS = {  # noqa: RUF012
        "absolute_error": ("tidecast_absolute_error", "|forecast median - what came|, in the target's unit"),
        "naive_error": ("tidecast_naive_error", "|naive forecast - what came|, in the target's unit"),
        "inside": ("tidecast_interval_coverage", "1 where what came lay inside the interval, else 0"),
    }

    CLIPPED = "Values beyond the limits that the model was trained with, taken as the limit itself"

    def __init__(self, spec: ModelSpec) -> None:
        # What a model scores -> sums [diagnostics] and counts [diagnostics]; one entry for each model of late.
        self._of: dict[tuple[Diagnostic, ...], tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        self._lock = threading.Lock()
        self.add(np.empty((0, len(spec.diagnostics)), dtype=np.float32), spec)

    def add(self, scores: NDArray[np.float32], spec: ModelSpec) -> None:
        """Add `scores` [n, diagnostics] of a model; NaN where there was nothing to score."""
        n = len(spec.diagnostics)
        scored = np.isfinite(scores)
        sums = np.where(scored, scores, 0).sum(axis=0, dtype=np.float64)
        counts = scored.sum(axis=0)
        with self._lock:
            zero = np.zeros(n, dtype=np.float64), np.zeros(n, dtype=np.int64)
            before = self._of.get(tuple(spec.diagnostics), zero)
            self._of[tuple(spec.diagnostics)] = before[0] + sums, before[1] + counts

    def _totals(self, kind: str) -> dict[Diagnostic, tuple[float, int]]:
        """Sum and count of each diagnostic of one kind, of all models together, whatever each calls it."""
        found: dict[Diagnostic, tuple[float, int]] = {}
        with self._lock:
            for diagnostics, (sums, counts) in self._of.items():
                for diagnostic, total, count in zip(diagnostics, sums.tolist(), counts.tolist(), strict=True):
                    if diagnostic.kind == kind:
                        same = msgspec.structs.replace(diagnostic, name="")
                        before = found.get(same, (0.0, 0))
                        found[same] = before[0] + total, before[1] + count
        return found

    def collect(self) -> Iterable[Metric]:
        """One family for each kind, whether the model has such diagnostics or not."""
        for kind, (name, documentation) in self.KINDS.items():
            labels = ["target", "horizon"] + (["level"] if kind == "inside" else [])
            family = SummaryMetricFamily(name, documentation, labels=labels)
            for diagnostic, (total, count) in self._totals(kind).items():
                values = [diagnostic.target, str(diagnostic.horizon)]
                if kind == "inside":
                    values.append(f"{diagnostic.level or 0:.6g}")
                family.add_metric(values, count_value=count, sum_value=total)
            yield family
        clipped = CounterMetricFamily("tidecast_clipped_values", self.CLIPPED, labels=["target"])
        for diagnostic, (total, _) in self._totals("clipped").items():
            clipped.add_metric([diagnostic.target], total)
        yield clipped


class Partitions(Collector):
    """Gauges of the partitions that this worker holds now; those that left are gone from the next scrape on."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._topic = ""
        self._lag: Mapping[int, int] = {}
        self._last_ms: dict[int, int] = {}
        self._series: Mapping[int, int] = {}

    def seen(self, last_timestamps_ms: Mapping[int, int]) -> None:
        """The timestamp of the last record processed of each partition, ms."""
        self._last_ms = {**self._last_ms, **last_timestamps_ms}

    def update(self, topic: str, lag: Mapping[int, int], series: Mapping[int, int]) -> None:
        """Records behind, and series held, by partition; a partition absent from `lag` is not ours."""
        self._topic, self._lag, self._series = topic, dict(lag), dict(series)
        self._last_ms = {p: ms for p, ms in self._last_ms.items() if p in self._lag}

    def collect(self) -> Iterable[Metric]:
        """Lag in records and seconds, and series, of each partition."""
        # Each attribute is replaced as a whole, never changed in place: no lock against the loop is needed.
        lag, last_ms, series = self._lag, self._last_ms, self._series
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
        for p in sorted(lag):
            records.add_metric([self._topic, str(p)], lag[p])
            age = self._wall() - last_ms[p] / 1_000 if lag[p] and p in last_ms else 0.0
            seconds.add_metric([self._topic, str(p)], max(age, 0.0))
            held.add_metric([str(p)], series.get(p, 0))
        yield from (records, seconds, held)


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
        self.silent_steps = self._counter("silent_steps", "steps made without a reading to fill gaps")
        self.resets = self._counter("resets", "series whose state was given up", "reason", RESET_REASONS)
        self.transactions = self._counter("transactions", "commits of forecasts and offsets", "outcome", OUTCOMES)
        self.rebalances = self._counter("rebalances", "times that the group gave this worker its partitions")

        self.batch_size = self._histogram(
            "batch_size", "readings that went through the model in one call", _BATCH_BUCKETS
        )
        self.stage_seconds = self._histogram(
            "stage_seconds", "where the loop's time goes, for each batch", _STAGE_BUCKETS, "stage", STAGES
        )
        self.event_to_forecast = self._histogram(
            "event_to_forecast_seconds", "from a reading's own time to its forecast handed to Kafka", _LATENCY_BUCKETS
        )
        self.scores = Scores(spec)
        self.registry.register(self.scores)
        self.partitions = Partitions(wall)
        self.registry.register(self.partitions)

        self.last_poll = self._gauge("last_poll_timestamp_seconds", "when the loop last asked Kafka for readings")
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

    def count(self, result: Result) -> None:
        """What one batch led to. Call it once its forecasts are handed to Kafka."""
        counts = result.counts
        self.readings.inc(counts.readings)
        self.forecasts.inc(counts.forecasts)
        self.duplicates.inc(counts.duplicates)
        self.late.inc(counts.late)
        self.silent_steps.inc(counts.silent_steps)
        by_label = (self.dead_letters, counts.dead_letters), (self.gaps, counts.gaps), (self.resets, counts.resets)
        for counter, found in by_label:
            for label, n in found.items():
                if n:  # nearly never; with small batches to ask for the label would be the loop's dearest call
                    counter.labels(label).inc(n)
        for stage, seconds in counts.stage_seconds.items():
            self.stage_seconds.observe_one(seconds, stage)
        for size in counts.waves:
            self.batch_size.observe_one(size)
        self.scores.add(result.scores, result.spec)
        self.event_to_forecast.observe(np.maximum(self._wall() - result.event_times / 1_000, 0.0))

    def families(self) -> Iterator[Metric]:
        """Everything, as one scrape sees it."""
        return iter(self.registry.collect())
