"""The scores of each model of a group, the champion's too, by the model's id: for comparing them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client.core import Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from tidecast.service.observability.score_metrics import ScoreMetrics
from tidecast.service.pipeline.batch import MemberScores


class ModelScoreMetrics(Collector):
    """As `ScoreMetrics`, for each model; empty until there are shadows."""

    def __init__(self) -> None:
        self._of: dict[str, ScoreMetrics] = {}
        self._lock = threading.Lock()

    def add(self, members: Sequence[MemberScores]) -> None:
        """Add the scores of several batches."""
        by_model: dict[str, list[MemberScores]] = {}
        for member in members:
            by_model.setdefault(member.spec.id, []).append(member)
        for name, own in by_model.items():
            scores = np.concatenate([each.scores for each in own])
            with self._lock:
                if name not in self._of:
                    self._of[name] = ScoreMetrics(own[0].spec)
            self._of[name].add(scores, own[0].spec)

    def collect(self) -> Iterable[Metric]:
        """One family for each kind, even where there is no model."""
        with self._lock:
            models = sorted(self._of.items())
        for kind, (name, documentation) in ScoreMetrics.KINDS.items():
            labels = ["model", "target", "horizon"] + (["level"] if kind == "inside" else [])
            family = SummaryMetricFamily(
                name.replace("tidecast_", "tidecast_model_"),
                f"{documentation}; of each model where there are shadows",
                labels=labels,
            )
            for model, scores in models:
                for diagnostic, (total, count) in scores.totals(kind).items():
                    values = [model, diagnostic.target, str(diagnostic.horizon)]
                    if kind == "inside":
                        values.append(f"{diagnostic.level or 0:.6g}")
                    family.add_metric(values, count_value=count, sum_value=total)
            yield family
