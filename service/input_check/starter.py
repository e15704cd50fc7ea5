"""The `tidecast starter` command that fits a topic's readings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.mapping import MappedBatch
from tidecast.service.timestamps import format_duration, parse_duration_ms

_STEPS = (
    "1s",
    "2s",
    "5s",
    "10s",
    "15s",
    "30s",
    "1min",
    "2min",
    "5min",
    "10min",
    "15min",
    "30min",
    "1h",
    "2h",
    "3h",
    "6h",
    "12h",
    "1d",
    "7d",
)
_HORIZONS = ("10s", "1min", "10min", "1h", "6h", "12h", "1d", "7d", "28d")
_MOST_STEPS = 144  # of a proposed horizon
_NEAR = 0.2  # share by which the usual distance of readings may be off the step


def starter_command(mapped: MappedBatch, good: NDArray[np.int64]) -> Iterator[str]:
    """One line, where the usual time from a reading of a series to its next is seen."""
    step_ms = _step(mapped, good)
    if step_ms is None or not len(mapped.features):
        return
    shares = np.isfinite(mapped.readings.x[good]).mean(axis=0)
    features = [name for name, share in zip(mapped.features, shares.tolist(), strict=True) if share]
    if not features:
        return
    target = mapped.features[int(shares.argmax())]
    fitting = [text for text in _HORIZONS if step_ms <= parse_duration_ms(text) <= _MOST_STEPS * step_ms
               and parse_duration_ms(text) % step_ms == 0]  # fmt: skip
    words = ["--step", format_duration(step_ms), "--features", ",".join(features), "--target", target,
             "--horizon", fitting[-1] if fitting else "24"]  # fmt: skip
    yield f"a forecaster without training: tidecast starter {shlex.join(words)} --out starter"


def _step(mapped: MappedBatch, good: NDArray[np.int64]) -> int | None:
    """The usual time between two readings of a series, ms; None where it is not near a usual one, or not seen."""
    times: dict[bytes, list[int]] = {}
    for row in good.tolist():
        if (key := mapped.batch.keys[row]) is not None:
            times.setdefault(key, []).append(int(mapped.readings.ts[row]))
    apart = np.concatenate([np.diff(np.unique(each)) for each in times.values()] or [np.zeros(0)])
    if len(apart) < 2:
        return None
    usual = float(np.median(apart))
    nearest = min((parse_duration_ms(text) for text in _STEPS), key=lambda ms: abs(np.log(ms / usual)))
    return nearest if abs(nearest / usual - 1) < _NEAR else None
