"""A Prometheus histogram that is updated once per batch."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class BulkHistogram(Collector):
    """A Prometheus histogram that counts a whole array at once; prometheus_client's own takes 1 µs per value."""

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
        """Count one value under one label value, in a tenth of the time of `observe`."""
        with self._lock:
            self._counts[label][bisect_left(self._ascending, value)] += 1
            self._sums[label] += value

    def timing(self, clock: Callable[[], float], label: str = "") -> Timing:
        """A context manager that counts the seconds spent in it."""
        return Timing(self, clock, label)

    def collect(self) -> Iterable[Metric]:
        """One family."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])
        with self._lock:
            for value, counts in self._counts.items():
                cumulated = [float(n) for n in np.cumsum(counts)]
                buckets = list(zip(self._le, cumulated, strict=True))
                family.add_metric([value] if self._label else [], buckets, self._sums[value])
        yield family


class Timing:
    """Made by `BulkHistogram.timing`. Not a `contextlib.contextmanager`, which is too slow for each batch."""

    __slots__ = ("_began", "_clock", "_histogram", "_label")

    def __init__(self, histogram: BulkHistogram, clock: Callable[[], float], label: str) -> None:
        self._histogram, self._clock, self._label = histogram, clock, label

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe_one(self._clock() - self._began, self._label)
