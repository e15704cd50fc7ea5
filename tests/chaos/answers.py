"""What a forecast says, and how near its numbers are to others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.chaos.readings import Record
from tidecast.service.model.session import Float32, Model
from tidecast.service.model.spec import quantile_name


@dataclass(frozen=True, slots=True)
class Answer:
    """One forecast; `plain` is what of it must be equal as it stands."""

    model: int | None  # its place in the list of models, None = not in it
    y: Float32  # [horizon, targets, quantiles]
    score: Float32  # [diagnostics], NaN where it has none
    plain: dict[str, object]


def read_answer(record: Record, models: Sequence[Model]) -> Answer | str:
    """The forecast in a record, or why there is none."""
    try:
        got = json.loads(record.value or b"")
        by = next((i for i, m in enumerate(models) if m.spec.id == got["model"]), None)
        spec = models[by or 0].spec
        targets = [[got["targets"][t][quantile_name(q)] for q in spec.quantiles] for t in spec.targets]
        y = np.array(targets, np.float32).transpose(2, 0, 1)
        score = np.array([got["score"].get(d.name, np.nan) for d in spec.diagnostics], np.float32)
        return Answer(by, y, score, {name: got[name] for name in ("ts", "warm", "step_ms", "model")})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"not a forecast of these models: {error!r} in {record.value!r:.200}"


@dataclass(frozen=True, slots=True)
class Nearness:
    """How far two numbers may be apart; both 0 = equal as float32.

    Attributes:
        rtol: relative to the number.
        atol: relative to the largest number of the same forecast: a quantile near 0 has no useful relative error.
    """

    rtol: float
    atol: float

    def same(self, got: Float32, wanted: Float32, size: Float32 | float) -> np.ndarray:
        """Of each number, whether it is near enough; `size` is the largest one of the same forecast."""
        same = np.isclose(got, wanted, rtol=self.rtol, atol=0, equal_nan=True)
        return same | (np.abs(got - wanted) <= self.atol * size)

    def same_y(self, got: Float32, wanted: Float32) -> np.ndarray:
        """[..., horizon, targets, quantiles]; a target's numbers are adjacent."""
        return self.same(got, wanted, np.abs(wanted).max(axis=(-3, -1), keepdims=True))

    def same_score(self, got: Float32, wanted: Float32, y: Float32) -> np.ndarray:
        """[..., diagnostics], of the forecast `y`; what is not finite is not written."""
        size = np.abs(y).max(axis=(-3, -2, -1))[..., np.newaxis]
        return self.same(got, np.where(np.isfinite(wanted), wanted, np.nan), size)


def first_difference(name: str, got: Float32, wanted: Float32, same: Callable[[], np.ndarray]) -> str | None:
    """In words, None where all are the same; `same` is asked only where they are not equal."""
    if np.array_equal(got, wanted, equal_nan=True):
        return None
    wrong = np.argwhere(~same())
    if not len(wrong):
        return None
    at = tuple(wrong[0].tolist())
    return f"{len(wrong)} of {got.size} numbers of {name}, first at {at}: {got[at]} instead of {wanted[at]}"
