"""A sequential paired test: is one model better than another? It may be asked after each block of readings.

Each block gives one number, how much less one model loses than the other. Under the null hypothesis the blocks' means
are normal with a mean of at most 0 and an unknown variance. The e-value is the Bayes factor of Wang and Ramdas
("Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", 2023): the effect has the
prior N(0, EFFECT), the scale the right Haar prior. By Ville's inequality it exceeds 1 / alpha at any time with
a probability of at most alpha, however often one looks.

Blocks that depend on each other count as fewer (the batch means of Law and Carson, Operations Research 1979): with the
autocorrelation r of successive blocks, n of them count as n (1 - r) / (1 + r). Of r the estimate's bias is removed, and
half a standard error is added. When there are MOST_BLOCKS, pairs become one, so that longer windows have longer blocks.
The constants were chosen by `benchmarks/promotion.py`.
"""

from __future__ import annotations

import math

import numpy as np

ALPHA = 0.01  # how often a model that is no better is promoted, for each comparison from its begin to its end
EFFECT = 1.0  # variance of the prior of mean / standard deviation of a block
ERRORS_ADDED = 0.5  # standard errors of the autocorrelation
FEWEST_BLOCKS = 12
MOST_BLOCKS = 64
_MOST_CORRELATED = 0.95
_LARGEST_LOG = 60.0  # of an e-value


class PairedTest:
    """Evidence that the mean of a stream of block means is above 0. Its memory does not grow."""

    def __init__(self) -> None:
        self._blocks: list[float] = []
        self._e_value: float | None = 0.0  # None = to be computed
        self._width, self._sum, self._waiting = 1, 0.0, 0

    def add(self, difference: float) -> None:
        """Add the mean of one block of readings: by how much the candidate loses less, above 0 = it is better."""
        self._sum += difference
        self._waiting += 1
        if self._waiting < self._width:
            return
        self._blocks.append(self._sum / self._width)
        self._sum, self._waiting, self._e_value = 0.0, 0, None
        if len(self._blocks) == MOST_BLOCKS:
            self._blocks = [(a + b) / 2 for a, b in zip(self._blocks[::2], self._blocks[1::2], strict=True)]
            self._width *= 2

    @property
    def e_value(self) -> float:
        """How many times likelier the blocks are if the candidate is better; 0 = too few blocks, or it is not."""
        if self._e_value is None:
            self._e_value = 0.0 if len(self._blocks) < FEWEST_BLOCKS else e_value(self._blocks)
        return self._e_value


def e_value(blocks: list[float]) -> float:
    """The e-value of these block means, in order; 0 where their mean is not above 0."""
    values = np.array(blocks)
    n, mean = len(values), float(values.mean())
    if mean <= 0.0:
        return 0.0
    around = values - mean
    squares = float(around @ around)
    raw = float(around[1:] @ around[:-1]) / squares if squares > 0.0 else 0.0
    r = (n * raw + 1.0) / (n - 4.0) + ERRORS_ADDED / math.sqrt(n)
    r = min(max(r, 0.0), _MOST_CORRELATED)
    counted = max(n * (1.0 - r) / (1.0 + r), 1.5)
    freedom, prior = counted - 1.0, math.log1p(counted * EFFECT)
    if squares > 0.0:
        t2 = counted * mean * mean * (n - 1.0) / squares
        gain = math.log1p(t2 / freedom) - math.log1p(t2 / (freedom * (1.0 + counted * EFFECT)))
    else:
        gain = prior  # the limit
    return math.exp(min(counted / 2.0 * gain - prior / 2.0, _LARGEST_LOG))
