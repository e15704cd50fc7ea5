"""Whether readings of the long form come in parts, and how far apart these are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.mapping import MappedBatch
from tidecast.service.timestamps import format_duration

_NEARLY_ALL = 0.95
_STEPS = (0, 100, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000)  # ms; what a person would write


def guess_join(mapped: MappedBatch, good: NDArray[np.int64]) -> dict[str, Any]:
    """`[input.join]` where most readings have a part of the features, and another record has the rest; {} = no need."""
    x, ts = mapped.readings.x[good], mapped.readings.ts[good]
    parts = np.isfinite(x)
    if x.shape[1] < 2 or not len(good) or parts.all(axis=1).mean() > 0.5:
        return {}
    apart: list[int] = []  # from each part to the nearest one of another feature
    steps: list[int] = []  # between parts of one feature
    keys = np.array([hash(mapped.batch.keys[row]) for row in good.tolist()])
    for key in np.unique(keys):
        mine = np.flatnonzero(keys == key)
        columns = [np.sort(ts[mine[parts[mine, column]]]) for column in range(x.shape[1])]
        columns = [times for times in columns if len(times)]
        for at, times in enumerate(columns):
            steps += [step for step in np.diff(times).tolist() if step]
            others = [other for number, other in enumerate(columns) if number != at]
            if others:
                apart += np.abs(times[:, None] - np.concatenate(others)[None, :]).min(axis=1).tolist()
    if not apart or not steps:
        return {}
    furthest, step = float(np.quantile(apart, _NEARLY_ALL)), float(np.median(steps))
    tolerance = next((each for each in _STEPS if each >= furthest), None)
    if tolerance is None or tolerance > step / 2:
        return {}
    return {
        "tolerance": format_duration(tolerance),
        "deadline": format_duration(max(1_000, round(step / 1_000) * 1_000)),
    }
