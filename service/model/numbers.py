"""Whether numbers are finite, for whole batches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def all_finite(*values: NDArray[np.float32]) -> bool:
    """False where a number is not finite, and perhaps where numbers are so large that their squares are not."""
    return math.isfinite(sum([float(np.vdot(each, each)) for each in values]))


def finite_rows(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[batch, ...] -> [batch]"""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
