"""A part of a series without long gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Stretch:
    """Readings of one series without a long gap; rows are steps."""

    series: str
    ts: NDArray[np.int64]  # [steps] ms
    x: NDArray[np.float32]  # [steps, features] raw units, NaN = missing
    rows: NDArray[np.int64]  # [steps] index of the reading in the file's order, -1 = a silent step
