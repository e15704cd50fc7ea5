"""Checks of a model's spec. It comes from outside, so each part is checked before it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tidecast.service.errors import ModelError
from tidecast.service.model.spec import ModelSpec, quantile_name

EXPORT_AGAIN = "Export the model again with this version of `tidecast train`"
_LONGEST_NAME = 500  # characters: names are in each forecast
_MOST_STEPS = 1_000  # of the self-test; `tidecast train` writes 32


def check_spec(spec: ModelSpec) -> None:
    """Refuse a spec that contradicts itself.

    Raises:
        ModelError: for the first fault found.
    """
    require(bool(spec.name.strip()), "the spec's name is empty", spec.name)
    _check_length("name", spec.name)
    require(re.fullmatch("[0-9a-f]{64}", spec.hash) is not None, "the spec's hash is not a sha256", spec.hash)
    require(spec.kind in ("forecaster", "classifier"), "the spec's kind is unknown", spec.kind)
    _check_names("features", spec.features)
    require("ts" not in spec.features, 'a feature is called "ts", the name of the time of a reading', spec.features)
    if is_classifier(spec):
        _check_names("classes", spec.classes)
    else:
        _check_names("targets", spec.targets)
        _check_names("quantiles", [quantile_name(q) for q in spec.quantiles])
        ascending = all(0 < q < 1 for q in spec.quantiles) and all(a < b for a, b in pairwise(spec.quantiles))
        require(ascending, "the quantiles do not ascend between 0 and 1", spec.quantiles)
        require(spec.horizon >= 1, "the horizon is not at least 1 step", spec.horizon)
    if spec.diagnostics:
        _check_names("diagnostics", [diagnostic.name for diagnostic in spec.diagnostics])
    require(spec.step_ms >= 0, "the step is negative (0 = irregular)", spec.step_ms)
    require(spec.warmup_steps >= 0, "the warm-up is negative", spec.warmup_steps)
    _check_state(spec)
    _check_self_test(spec)


def _check_state(spec: ModelSpec) -> None:
    require(spec.state_size >= 1, "the state is empty", spec.state_size)
    position = 0
    for part in sorted(spec.state, key=lambda part: part.start):
        size = math.prod(part.shape)
        require(size >= 1 and all(n >= 1 for n in part.shape), "a slice of the state is empty", part.name)
        require(
            part.start == position,
            f"the state's slices must follow each other without gap or overlap, {part.name!r} from {position}",
            part.start,
        )
        position += size
    require(position == spec.state_size, f"the state's slices must cover all {spec.state_size} of it", position)
    _check_names("state slices", [part.name for part in spec.state])
    length = len(spec.initial_state)
    require(length == spec.state_size, f"the initial state must have length {spec.state_size}", length)
    initial = np.array(spec.initial_state, dtype=np.float64)
    require(bool((np.abs(initial) <= np.finfo(np.float32).max).all()), "the initial state is not finite", None)


def _check_self_test(spec: ModelSpec) -> None:
    test, features = spec.self_test, len(spec.features)
    size = len(spec.classes) if is_classifier(spec) else math.prod(forecast_shape(spec))
    require(len(test.ts) >= 1 and len(test.x) == len(test.ts), "the self-test has no reading for each time", None)
    require(len(test.ts) <= _MOST_STEPS, f"the self-test has more than {_MOST_STEPS} readings", len(test.ts))
    require(all(len(row) == features for row in test.x), f"the self-test's readings must have {features} values", None)
    require(all(-(2**63) <= ts < 2**63 for ts in test.ts), "the self-test's times are not 64-bit", None)
    require(len(test.y) == size, f"the self-test's forecast must have {size} values", len(test.y))
    require(all(map(math.isfinite, [*test.y, test.rtol])), "the self-test's forecast is not finite", None)
    require(0 < test.rtol <= 0.1, "the self-test's tolerance must lie in (0, 0.1]", test.rtol)


def _check_names(what: str, names: Sequence[str]) -> None:
    require(len(names) >= 1, f"the spec has no {what}", list(names))
    for name in names:
        _check_length(what, name)
    require(len(set(names)) == len(names), f"the spec's {what} are not unique", list(names))


def _check_length(what: str, name: str) -> None:
    longest = f"the spec's {what}: at most {_LONGEST_NAME} characters are allowed"
    require(len(name) <= _LONGEST_NAME, longest, len(name))


def require(holds: bool, what: str, got: object) -> None:
    """Raises ModelError unless `holds`."""
    if not holds:
        raise ModelError(what, got=got, do=EXPORT_AGAIN)


def is_classifier(spec: ModelSpec) -> bool:
    """True if the model returns classes instead of forecasts."""
    return spec.kind == "classifier"


def forecast_shape(spec: ModelSpec) -> list[int]:
    """[horizon, targets, quantiles]"""
    return [spec.horizon, len(spec.targets), len(spec.quantiles)]
