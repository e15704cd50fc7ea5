"""Who is to answer, as a worker sees it: it follows the decisions, and with `--promote auto` makes some itself.

Of a group's workers, the one that has partition 0 decides, by the readings of its own partitions. All of them compare,
so that the next owner of partition 0 has evidence of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tidecast.service.champion.comparison import Comparison
from tidecast.service.champion.decisions import Decision, Numbered, number_of
from tidecast.service.champion.follower import DecisionFollower, facts
from tidecast.service.champion.paired_test import ALPHA
from tidecast.service.champion.series_numbers import SeriesNumbers
from tidecast.service.config.settings import Settings
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.batch import ScoredBatch

log = logging.getLogger("tidecast.champion")

_DECIDES = 0  # the partition whose owner decides


class ChampionPolicy:
    """Follows the decisions about the group, and compares the shadows with the champion. For the loop's thread.

    Args:
        settings: the group, and whether a better shadow is promoted.
        follower: reads and writes decisions.
        metrics: to feed.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        follower: DecisionFollower,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._follower, self._metrics, self._wall = settings, follower, metrics, wall
        self._followed: Numbered | None = None  # the newest that is known here
        self._started = False
        self._counted = -1  # number of the newest decision that took effect here
        self._asked = False  # a decision of this worker is on its way
        self._of = ""  # id of the champion that the shadows are compared with
        self._series, self._blocks = SeriesNumbers(), 0
        self._comparisons: dict[str, Comparison] = {}  # by the id of the shadow

    def committed(self, batches: Sequence[ScoredBatch]) -> None:
        """Compare what was answered; after each commit."""
        if self._settings.promote == "auto":
            for batch in batches:
                self._compare(batch)

    def champion(self, assigned: Collection[int]) -> tuple[str, int] | None:
        """Id of the model that is to answer, and the number of the decision; None = that was never decided.

        Also decides, if it is time.
        """
        last = self._follower.last
        if not self._started:  # what was decided before the start is no news
            self._started, self._followed, self._counted = True, last, number_of(last)
        if last is not None and last is not self._followed:
            self._followed = last
            log.info("another model is to answer", extra=facts(last))
            self._begin("")
        if self._comparisons and not self._asked and _DECIDES in assigned:
            self._decide()
        return None if last is None else (last.decision.to, last.number)

    def took_over(self, model_id: str, was: Mapping[int, str], offsets: Mapping[int, int]) -> None:
        """The decision is in force here."""
        last = self._follower.last
        if last is not None and last.decision.to == model_id and last.number > self._counted:
            self._counted = last.number
            self._metrics.promotions.labels(last.decision.by).inc()

    def _begin(self, champion: str) -> None:
        """Compare afresh, with this champion."""
        self._of, self._asked = champion, False
        self._series, self._blocks = SeriesNumbers(), 0
        for shadow in self._comparisons:
            self._metrics.promotion_evidence.remove(shadow)
        self._comparisons = {}

    def _compare(self, batch: ScoredBatch) -> None:
        best, *shadows = batch.members
        if best.spec.id != self._of:
            self._begin(best.spec.id)
        series = self._series.of(batch.keys)
        for shadow in shadows:
            compared = self._comparisons.get(shadow.spec.id)
            if compared is None:
                compared = self._comparisons[shadow.spec.id] = Comparison(best.spec, shadow.spec)
                if not compared.possible:
                    log.warning(
                        "the shadow scores no lead of a target that the champion scores too: it cannot be compared",
                        extra={"model": shadow.spec.id, "champion": best.spec.id},
                    )
            both = best.warm & shadow.warm
            compared.add(series[both], batch.ts[both], best.scores[both], shadow.scores[both])
            self._metrics.promotion_evidence.labels(shadow.spec.id).set(compared.e_value)
        blocks = sum(compared.blocks for compared in self._comparisons.values())
        if blocks > self._blocks:
            self._blocks = blocks
            self._series.keep(np.any([compared.active for compared in self._comparisons.values()], axis=0))

    def _decide(self) -> None:
        needed = len(self._comparisons) / ALPHA  # one of several is wrong as rarely as a single one
        least_ms = self._settings.promote_seconds * 1_000
        enough = [
            (compared.e_value, shadow)
            for shadow, compared in self._comparisons.items()
            if compared.e_value >= needed and compared.span_ms >= least_ms
        ]
        if not enough:
            return
        _, shadow = max(enough)
        self._asked = True
        evidence = self._comparisons[shadow].evidence(needed)
        self._follower.write(
            Decision(
                ts=round(self._wall() * 1_000),
                group=self._settings.group,
                was=self._of,
                to=shadow,
                by="auto",
                after=number_of(self._followed),
                evidence=evidence,
            )
        )
