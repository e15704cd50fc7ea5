"""The models that a worker runs, by its own metrics: which of them answers, and their errors on the same readings."""

from __future__ import annotations

import http.client
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tidecast.service.champion.paired_test import ALPHA

NEEDED = 1 / ALPHA  # evidence for one shadow to take over
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Rival:
    """One model of the worker. Its errors are counted since there are several."""

    answers: bool
    evidence: float | None  # that it is better than the one that answers, an e-value; None = not compared yet
    sums: Mapping[int, float]  # steps ahead -> sum of absolute errors
    counts: Mapping[int, float]

    def mae(self, steps: int) -> float:
        """Mean absolute error so many steps ahead; NaN before the first."""
        return self.sums[steps] / self.counts[steps] if self.counts.get(steps) else float("nan")


def read_rivals(url: str) -> dict[str, Rival]:
    """Name -> model, of the worker with this address; empty where it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:
            return rivals(answer.read().decode())
    except (OSError, http.client.HTTPException, ValueError):
        return {}


def rivals(text: str) -> dict[str, Rival]:
    """The same of the text of the metrics."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name].append(sample)
    evidence = {_name(each): each.value for each in samples["tidecast_promotion_evidence"]}
    sums, counts = (_by_lead(samples[f"tidecast_model_absolute_error_{part}"]) for part in ("sum", "count"))
    return {
        name: Rival(each.labels.get("role") == "champion", evidence.get(name), sums[name], counts[name])
        for each in samples["tidecast_model_info"]
        for name in [each.labels["name"]]
    }


def _by_lead(samples: Iterable[Sample]) -> defaultdict[str, defaultdict[int, float]]:
    """Name of the model -> steps ahead -> the sum over its targets."""
    found: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for each in samples:
        found[_name(each)][int(each.labels["horizon"])] += each.value
    return found


def _name(sample: Sample) -> str:
    return sample.labels["model"].rpartition("@")[0]
