"""The model's scores of its own earlier forecasts, summed for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from tidecast.service.model.spec import Diagnostic, ModelSpec

_ROWS_TOGETHER, _MIN_ROWS = 64, 512


def _column_sums(values: NDArray[np.float32] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n, columns] -> [columns]. Adding a few long rows takes a quarter of the time of many short ones."""
    n, columns = values.shape
    whole = n - n % _ROWS_TOGETHER if n >= _MIN_ROWS else 0
    sums: NDArray[np.float64] = values[whole:].sum(axis=0, dtype=np.float64)
    if whole:
        long = values[:whole].reshape(whole // _ROWS_TOGETHER, _ROWS_TOGETHER * columns).sum(axis=0, dtype=np.float64)
        sums += long.reshape(_ROWS_TOGETHER, columns).sum(axis=0)
    return sums


class ScoreMetrics(Collector):
    """Sums and counts of the model's scores of its earlier forecasts, so that rates can be divided.

    Skill over the naive forecast is `1 - rate(absolute_error_sum) / rate(naive_error_sum)`; an interval's coverage
    is `rate(interval_coverage_sum) / rate(interval_coverage_count)`.
    """

    KINDS = {  # noqa: RUF012
        "absolute_error": ("tidecast_absolute_error", "|forecast median - actual value|, in the target's unit"),
        "naive_error": ("tidecast_naive_error", "|naive forecast - actual value|, in the target's unit"),
        "inside": ("tidecast_interval_coverage", "1 if the actual value was inside the interval, else 0"),
    }

    LEVEL = "the share of actual values that should be inside the interval: the label `level` as a number"
    ALARMS = "readings whose anomaly score says alarm"
    CLIPPED = "values outside the range of the training data, replaced by its limit"

    def __init__(self, spec: ModelSpec) -> None:
        # For each model so far: its diagnostics, sums [diagnostics] and counts [diagnostics]. The key is the id of the
        # list, since hashing its contents is slow; the list is kept here, so no other object gets that id.
        self._of: dict[int, tuple[list[Diagnostic], NDArray[np.float64], NDArray[np.int64]]] = {}
        self._lock = threading.Lock()
        self.add(np.empty((0, len(spec.diagnostics)), dtype=np.float32), spec)

    def add(self, scores: NDArray[np.float32], spec: ModelSpec) -> None:
        """Add `scores` [n, diagnostics] of a model; NaN = nothing to score."""
        scored = np.isfinite(scores)
        counts = np.full(scores.shape[1], len(scores))
        if not scored.all():
            scores, counts = np.where(scored, scores, np.float32(0)), _column_sums(scored).astype(np.int64)
        sums = _column_sums(scores)
        found = self._of.get(id(spec.diagnostics))
        with self._lock:
            if found is None:
                self._of[id(spec.diagnostics)] = spec.diagnostics, sums, counts
            else:
                np.add(found[1], sums, out=found[1])
                np.add(found[2], counts, out=found[2])

    def totals(self, kind: str) -> dict[Diagnostic, tuple[float, int]]:
        """Sum and count of each diagnostic of one kind over all models, whatever its name."""
        found: dict[Diagnostic, tuple[float, int]] = {}
        with self._lock:
            for diagnostics, sums, counts in self._of.values():
                for diagnostic, total, count in zip(diagnostics, sums.tolist(), counts.tolist(), strict=True):
                    if diagnostic.kind == kind:
                        same = msgspec.structs.replace(diagnostic, name="")
                        before = found.get(same, (0.0, 0))
                        found[same] = before[0] + total, before[1] + count
        return found

    def collect(self) -> Iterable[Metric]:
        """One family for each kind, even if the model has no such diagnostics."""
        for kind, (name, documentation) in self.KINDS.items():
            labels = ["target", "horizon"] + (["level"] if kind == "inside" else [])
            family = SummaryMetricFamily(name, documentation, labels=labels)
            for diagnostic, (total, count) in self.totals(kind).items():
                values = [diagnostic.target, str(diagnostic.horizon)]
                if kind == "inside":
                    values.append(f"{diagnostic.level or 0:.6g}")
                family.add_metric(values, count_value=count, sum_value=total)
            yield family
        level = GaugeMetricFamily("tidecast_interval_level", self.LEVEL, labels=["target", "horizon", "level"])
        for diagnostic in self.totals("inside"):
            share = diagnostic.level or 0.0
            level.add_metric([diagnostic.target, str(diagnostic.horizon), f"{share:.6g}"], share)
        yield level
        for kind, name, documentation in (
            ("clipped", "tidecast_clipped_values", self.CLIPPED),
            ("alarm", "tidecast_alarms", self.ALARMS),
        ):
            counted = CounterMetricFamily(name, documentation, labels=["target"])
            for diagnostic, (total, _) in self.totals(kind).items():
                counted.add_metric([diagnostic.target], total)
            yield counted
