"""A shadow against the champion on the same readings: their losses, as blocks of a paired test.

The loss is the absolute error of the median at each lead that both models score. Within a block each series gives, for
each lead, (champion - shadow) / (champion + shadow) of its summed losses: a number from -1 to 1 that has no unit, so
that large series do not outweigh small ones. The mean over series and leads is the block's number. Series share the
blocks, because those of one plant or city are not independent; errors of successive readings are not either, so a
block is no shorter than the longest lead.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.champion.paired_test import PairedTest
from tidecast.service.champion.series_numbers import SAMPLE
from tidecast.service.model.spec import ModelSpec

# A block has so many readings of each series. With few series their regimes do not cancel out, so blocks are longer.
BLOCK, BLOCK_OF_FEW, FEW = 12, 144, 16
MOST_LEADS = 8  # that are compared, over all targets; of more, some between the first and the last
FEWEST_READINGS = 288  # of each series, before there is any evidence: a day, where one comes every 5 min

Loss = NDArray[np.float32]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision is based on."""

    series: int
    readings: int  # that both models answered, warm
    span_seconds: float  # of event time
    e_value: float
    needed: float  # the e-value from which the shadow is promoted
    loss: dict[str, dict[str, float]]  # target -> lead -> the shadow's loss over the champion's, mean of the series


class Comparison:
    """One shadow against one champion, from now on.

    Args:
        champion: what answers.
        shadow: what may replace it.

    Attributes:
        blocks: how many are complete.
    """

    def __init__(self, champion: ModelSpec, shadow: ModelSpec) -> None:
        columns = _errors(champion), _errors(shadow)
        common = [lead for lead in columns[0] if lead in columns[1]]  # (target, horizon)
        some = np.linspace(0, len(common) - 1, min(len(common), MOST_LEADS)).round().astype(int)
        self._leads = [common[i] for i in some]
        self._champions = [columns[0][lead] for lead in self._leads]
        self._shadows = [columns[1][lead] for lead in self._leads]
        self._longest = max((horizon for _, horizon in self._leads), default=1)
        self._test = PairedTest()
        self._met = np.zeros(SAMPLE, dtype=np.bool_)
        self._active = np.zeros((2, SAMPLE), dtype=np.bool_)  # in the last block, in the open one
        leads = len(self._leads)
        self._losses = np.zeros((SAMPLE, 2 * leads))  # sums in the open block, of the champion and then of the shadow
        self._scored = np.zeros((SAMPLE, leads), dtype=np.int64)  # readings in it
        self._in_block, self.blocks = 0, 0  # readings in the open block; blocks so far
        self._differences, self._blocks = np.zeros(len(self._leads)), np.zeros(len(self._leads), dtype=np.int64)
        self._readings, self._first, self._last = 0, 0, 0

    @property
    def possible(self) -> bool:
        """False where the models score no lead of the same target."""
        return bool(self._leads)

    @property
    def span_ms(self) -> int:
        """Event time between the first and the last reading compared."""
        return self._last - self._first

    @property
    def e_value(self) -> float:
        """See `PairedTest.e_value`; 0 until there are FEWEST_READINGS of each series."""
        enough = self._readings >= FEWEST_READINGS * np.count_nonzero(self._met)
        return self._test.e_value if enough else 0.0

    @property
    def active(self) -> NDArray[np.bool_]:
        """[SAMPLE] the series of the open block and of the one before."""
        either: NDArray[np.bool_] = np.asarray(self._active.any(axis=0))
        return either

    def add(self, series: NDArray[np.int64], ts: NDArray[np.int64], champion: Loss, shadow: Loss) -> None:
        """Add readings that both models answered, warm, in the order of the log.

        Args:
            series: [readings] the number of each one's series; from SAMPLE on they are left out.
            ts: [readings] event time, ms.
            champion: [readings, its diagnostics] its scores.
            shadow: [readings, its diagnostics] its scores.
        """
        chosen = series < SAMPLE
        if not self._leads or not chosen.any():
            return
        series, ts = series[chosen], ts[chosen]
        losses = np.hstack([champion[chosen][:, self._champions], shadow[chosen][:, self._shadows]])
        self._first = int(ts.min()) if not self._readings else min(self._first, int(ts.min()))
        self._last = int(ts.max()) if not self._readings else max(self._last, int(ts.max()))
        self._readings += len(series)
        self._met[series] = self._active[1][series] = True
        start = 0
        while start < len(series):
            length = self._block_length()
            end = min(len(series), start + max(length - self._in_block, 1))
            self._count(series[start:end], losses[start:end])
            self._in_block += end - start
            start = end
            if self._in_block >= length:
                self._close()
                self._active[1][series[start:]] = True

    def _block_length(self) -> int:
        """Readings of all series that the open block is to have. Series that have gone are soon not waited for."""
        active = int(np.count_nonzero(self.active))
        return max(BLOCK_OF_FEW if active < FEW else BLOCK, self._longest) * active

    def _count(self, series: NDArray[np.int64], losses: Loss) -> None:
        """Add readings to the open block; `losses` [readings, leads of the champion and then of the shadow]."""
        leads = len(self._leads)
        order = np.argsort(series, kind="stable")
        series, losses = series[order], losses[order]
        begins = np.flatnonzero(np.diff(series, prepend=-1))
        here, finite = series[begins], np.isfinite(losses)
        if finite.all():
            self._scored[here] += np.diff(begins, append=len(series))[:, None]
        else:
            scored = finite[:, :leads] & finite[:, leads:]
            self._scored[here] += np.add.reduceat(scored, begins, axis=0, dtype=np.int64)
            losses = np.where(np.hstack([scored, scored]), losses, np.float32(0))
        self._losses[here] += np.add.reduceat(losses, begins, axis=0, dtype=np.float64)

    def _close(self) -> None:
        champion, shadow = np.hsplit(self._losses, 2)  # [series, leads] each
        both, scored = champion + shadow, self._scored > 0
        ratios = (champion - shadow) / np.where(both > 0.0, both, 1.0)
        known = scored.any(axis=0)  # [leads]
        means = np.where(scored, ratios, 0.0).sum(axis=0)[known] / scored.sum(axis=0)[known]
        if len(means):
            self._test.add(float(means.mean()))
            self._differences[known] += means
            self._blocks[known] += 1
        self._losses[:], self._scored[:], self._in_block = 0.0, 0, 0
        self.blocks += 1
        self._active = np.stack([self._active[1], np.zeros_like(self._active[1])])

    def evidence(self, needed: float) -> Evidence:
        """All of it, as it is now."""
        loss: dict[str, dict[str, float]] = {}
        for (target, horizon), total, blocks in zip(self._leads, self._differences, self._blocks, strict=True):
            if blocks:
                difference = float(total / blocks)
                loss.setdefault(target, {})[str(horizon)] = round((1.0 - difference) / (1.0 + difference), 4)
        return Evidence(
            series=int(np.count_nonzero(self._met)),
            readings=self._readings,
            span_seconds=self.span_ms / 1_000,
            e_value=float(f"{self.e_value:.4g}"),
            needed=needed,
            loss=loss,
        )


def _errors(spec: ModelSpec) -> dict[tuple[str, int], int]:
    """(target, lead) -> the column of `score` that has its absolute error."""
    return {(d.target, d.horizon): i for i, d in enumerate(spec.diagnostics) if d.kind == "absolute_error"}
