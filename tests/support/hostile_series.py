"""Series of everything that sensors do wrong, from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("usual", "stuck", "zeros", "spike", "huge spike", "scale", "level", "missing", "noise", "steps", "tiny")


def hostile(series: int, steps: int, seed: int, quiet: int = 0) -> NDArray[np.float32]:
    """[series, steps]: stretches of random kinds; the last `quiet` steps are a usual daily wave again."""
    generator = np.random.default_rng(seed)
    t = np.arange(steps)
    phase = generator.uniform(0, 6, (series, 1))
    size = 10.0 ** generator.uniform(-6, 6, (series, 1))
    offset = generator.choice([0.0, 1.0, 1e3, -1e6], (series, 1)) * size
    noise = generator.normal(size=(series, steps))
    usual = np.sin(2 * np.pi * t / 24 + phase) + 0.1 * noise
    x = usual.copy()
    for row in range(series):
        at = 0
        while at < steps - quiet:
            length = int(generator.integers(1, 200))
            part = slice(at, min(at + length, steps - quiet))
            kind = KINDS[int(generator.integers(len(KINDS)))]
            if kind == "stuck":
                x[row, part] = x[row, at]
            elif kind == "zeros":
                x[row, part] = 0.0
            elif kind in ("spike", "huge spike"):
                x[row, at] = generator.choice([-1, 1]) * (1e4 if kind == "spike" else 1e30)
            elif kind == "scale":
                x[row, part] *= 100
            elif kind == "level":
                x[row, part] += generator.choice([-50.0, 5.0])
            elif kind == "missing":
                x[row, part] = np.nan
            elif kind == "noise":
                x[row, part] = generator.standard_t(1, len(x[row, part]))
            elif kind == "steps":
                x[row, part] = np.round(x[row, part])
            elif kind == "tiny":
                x[row, part] *= 1e-20
            at += length
    with np.errstate(over="ignore"):
        return (x * size + offset).astype(np.float32)
