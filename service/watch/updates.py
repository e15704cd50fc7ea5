"""What a viewer of a series is sent: everything once, then updates. Plain values, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median
from typing import Any, TypeVar

from tidecast.service.watch.health import Finding
from tidecast.service.watch.messages import Forecast, Measurement, Shape
from tidecast.service.watch.store import SeriesHistory, Store

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a viewer has chosen."""

    series: str
    target: str = ""  # "" = the first
    ahead: int = 1  # steps


class Subscription:
    """One viewer's subscription to one series; remembers what was sent."""

    def __init__(self, store: Store, choice: Choice) -> None:
        self._store, self._choice = store, choice
        self._epoch = self._readings = self._forecasts = -1
        self._shape: Shape | None = None

    def next_event(self) -> tuple[str, dict[str, Any]] | None:
        """("all", …) first and whenever what was sent is no longer valid, then ("more", …); None = no update."""
        with self._store.lock:
            one = self._store.get(self._choice.series)
            if one is None:
                if self._epoch == 0:
                    return None
                self._epoch, self._shape = 0, None
                return "all", empty_content(self._choice)
            newest = one.forecasts[-1] if one.forecasts else None
            shape = newest.shape if newest else None
            readings, forecasts = one.readings_total - self._readings, one.forecasts_total - self._forecasts
            fits = readings <= len(one.readings) and forecasts <= len(one.forecasts)
            if one.epoch != self._epoch or shape != self._shape or not fits or (shape and not shape.step_ms):
                if one.epoch == self._epoch and shape == self._shape and not readings and not forecasts:
                    return None
                kind, content = "all", full_content(one, self._choice)
            elif readings or forecasts:
                kind, content = "more", self._more(one, readings, forecasts)
            else:
                return None
            self._epoch, self._shape = one.epoch, shape
            self._readings, self._forecasts = one.readings_total, one.forecasts_total
            return kind, content

    def _more(self, one: SeriesHistory, readings: int, forecasts: int) -> dict[str, Any]:
        shape = one.forecasts[-1].shape if one.forecasts else None
        target, ahead = _resolve(self._choice, shape, one)
        content: dict[str, Any] = {"readings": _readings(_last(one.readings, readings), target)}
        if shape is not None and forecasts:
            number = shape.targets.index(target)
            content["past"] = _past(_last(one.forecasts, forecasts), one, number, ahead)
            content["fan"] = _fan(one, number)
            content["quality"] = quality(one.forecasts, target, ahead)
            content["finding"] = _finding(one, target)
        return content


def full_content(one: SeriesHistory, choice: Choice) -> dict[str, Any]:
    """Everything about a series, for one target and one number of steps ahead. Call it under the store's lock."""
    shape = one.forecasts[-1].shape if one.forecasts else None
    target, ahead = _resolve(choice, shape, one)
    content = {**empty_content(choice), "known": True, "target": target, "readings": _readings(one.readings, target)}
    if shape is None:
        content["targets"] = sorted(one.readings[-1].names) if one.readings else []
        return content
    number = shape.targets.index(target)
    same = [forecast for forecast in one.forecasts if forecast.shape.targets == shape.targets]
    return content | {
        "targets": list(shape.targets),
        "model": shape.model,
        "step_ms": shape.step_ms,
        "horizon": shape.horizon,
        "level": shape.level,
        "ahead": ahead,
        "past": _past(same, one, number, ahead),
        "fan": _fan(one, number),
        "quality": quality(one.forecasts, target, ahead),
        "finding": _finding(one, target),
    }


def empty_content(choice: Choice) -> dict[str, Any]:
    """For an unknown series."""
    return {
        "series": choice.series, "known": False, "target": choice.target, "targets": [], "model": "", "step_ms": 0,
        "horizon": 0, "level": 0.0, "ahead": choice.ahead, "readings": [[], []], "past": [[], [], [], [], [], []],
        "fan": None, "quality": None, "finding": None,
    }  # fmt: skip


def quality(forecasts: Iterable[Forecast], target: str, ahead: int) -> dict[str, Any] | None:
    """Skill and coverage over the forecasts that are kept, from their own scores.

    A model scores only some numbers of steps ahead; the nearest to `ahead` is used, and returned as `ahead`.
    """
    kept = list(forecasts)
    prefix = f"absolute_error_{target}_"
    names = [name.removeprefix(prefix) for name in kept[-1].scored if name.startswith(prefix)] if kept else []
    leads = sorted(int(name) for name in names if name.isdecimal())
    if not leads:
        return None
    lead = min(leads, key=lambda each: abs(each - ahead))
    wanted = [f"{kind}_{target}_{lead}" for kind in ("absolute_error", "naive_error", "inside")]
    places: dict[tuple[str, ...], list[int | None]] = {}  # nearly all forecasts have the same names
    errors = naives = inside = 0.0
    count = covered = 0
    for forecast in kept:
        if (at := places.get(forecast.scored)) is None:
            at = [forecast.scored.index(name) if name in forecast.scored else None for name in wanted]
            places[forecast.scored] = at
        error, naive, within = (math.nan if i is None else forecast.scores[i] for i in at)
        if math.isfinite(error) and math.isfinite(naive):
            errors, naives, count = errors + error, naives + naive, count + 1
        if math.isfinite(within):
            inside, covered = inside + within, covered + 1
    return {
        "ahead": lead,
        "count": count,
        "skill": 1 - errors / naives if naives > 0 else None,
        "error": errors / count if count else None,
        "coverage": inside / covered if covered else None,
    }


def _finding(one: SeriesHistory, target: str) -> dict[str, Any] | None:
    health = one.health.targets.get(target)
    found = None if health is None else health.finding(target)
    return None if found is None else finding_fields(found)


def finding_fields(found: Finding) -> dict[str, Any]:
    """A finding as the page needs it to say why."""
    return {"kind": found.kind, "target": found.target, "since": found.since, "times_out": found.times,
            "of": found.of, "ahead": found.ahead}  # fmt: skip


def _resolve(choice: Choice, shape: Shape | None, one: SeriesHistory) -> tuple[str, int]:
    if shape is None:
        names = one.readings[-1].names if one.readings else ()
        return (choice.target if choice.target in names else next(iter(names), "")), max(1, choice.ahead)
    target = choice.target if choice.target in shape.targets else shape.targets[0]
    return target, min(max(1, choice.ahead), shape.horizon)


def _last(items: Sequence[_T], count: int) -> list[_T]:
    return list(islice(items, len(items) - count, None))


def _readings(readings: Iterable[Measurement], target: str) -> list[list[Any]]:
    kept = list(readings)
    return [[r.ts for r in kept], [json_number(r.value(target)) for r in kept]]


def _past(forecasts: Iterable[Forecast], one: SeriesHistory, target: int, ahead: int) -> list[list[Any]]:
    """[target time], low, middle, high, warm, [time it was made] of the forecasts `ahead` steps ahead."""
    columns: list[list[Any]] = [[], [], [], [], [], []]
    irregular = bool(one.forecasts) and not one.forecasts[-1].shape.step_ms
    places = {reading.ts: i for i, reading in enumerate(one.readings)} if irregular else {}
    for forecast in forecasts:
        shape = forecast.shape
        if target >= len(shape.targets) or ahead > shape.horizon:
            continue
        if shape.step_ms:
            due: int | None = forecast.ts + ahead * shape.step_ms
        else:  # the time of the reading `ahead` readings later, once it has arrived
            place = places.get(forecast.ts, len(places)) + ahead
            due = one.readings[place].ts if place < len(one.readings) else None
        if due is None:
            continue
        row = (due, *(json_number(forecast.at(target, q, ahead)) for q in (0, shape.middle, len(shape.quantiles) - 1)))
        for column, value in zip(columns, (*row, int(forecast.warm), forecast.ts), strict=True):
            column.append(value)
    return columns


def _fan(one: SeriesHistory, target: int) -> dict[str, Any]:
    """The newest forecast, all steps, each with its target time."""
    forecast = one.forecasts[-1]
    shape = forecast.shape
    step = shape.step_ms
    if not step:
        times = [reading.ts for reading in _last(one.readings, min(20, len(one.readings)))]
        step = round(median(b - a for a, b in pairwise(times))) if len(times) > 1 else 1000
    return {
        "made": forecast.ts,
        "warm": forecast.warm,
        "ts": [forecast.ts + (i + 1) * step for i in range(shape.horizon)],
        "guessed": not shape.step_ms,  # irregular: the steps are the median distance of the last readings
        "quantiles": list(shape.quantiles),
        "middle": shape.middle,
        "values": [[json_number(value) for value in forecast.quantile(target, q)] for q in range(len(shape.quantiles))],
    }


def json_number(value: float) -> float | None:
    """Seven digits, as many as float32 has."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
