"""Compares a series' reading with the forecasts that were made for it, as soon as the forecast after it has come."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from functools import lru_cache
from math import isfinite, nan
from operator import attrgetter
from typing import NamedTuple

from tidecast.service.watch.health import LeadHealth, SeriesHealth, TargetHealth
from tidecast.service.watch.messages import Forecast, Measurement, Shape

_ts = attrgetter("ts")


class _Scored(NamedTuple):
    """Where the surprises of a target are among a forecast's scores: at the fewest and the most steps ahead."""

    name: str
    target: int
    leads: tuple[int, int]
    columns: tuple[int, int]
    alarm: int | None  # where the alarm of its anomaly score is; None = it has none


def judge(health: SeriesHealth, readings: deque[Measurement], forecasts: deque[Forecast], newest: Forecast) -> None:
    """`newest`: the forecast that answers the reading to be judged; `forecasts`: those before it."""
    at = bisect_left(readings, newest.ts, key=_ts)
    if at == len(readings) or readings[at].ts != newest.ts:  # the reading has not come, or is not kept any more
        return
    reading, shape = readings[at], newest.shape
    for name, target, leads, columns, alarm in _scored(newest.scored, shape):
        value = reading.value(name)
        one = health.targets.get(name)
        if one is None or (one.near.ahead, one.far.ahead if one.far else one.near.ahead) != leads:
            one = TargetHealth(LeadHealth(leads[0]), LeadHealth(leads[1]) if leads[1] > leads[0] else None)
            health.targets[name] = one
        one.repeat(value, newest.ts)
        if not newest.warm or not isfinite(value):
            continue
        surprises, sides = [], []
        for lead, column in zip(leads, columns, strict=True):
            before = _made(forecasts, newest, lead)
            known = before is not None and before.shape.targets == shape.targets and before.shape.horizon >= lead
            median = before.at(target, before.shape.middle, lead) if before is not None and known else nan
            surprises.append(newest.scores[column] if known else nan)
            sides.append(1 if value > median else -1)
        if alarm is not None and newest.scores[alarm] > 0:
            one.alarm(newest.ts)
        one.judge(newest.ts, shape.step_ms, surprises[0], surprises[1], (sides[0], sides[1]))


@lru_cache(maxsize=1024)
def _scored(names: tuple[str, ...], shape: Shape) -> list[_Scored]:
    """Of each target that has surprises among these scores."""
    found = []
    for number, target in enumerate(shape.targets):
        prefix = f"surprise_{target}_"
        ends = {name.removeprefix(prefix): i for i, name in enumerate(names) if name.startswith(prefix)}
        columns = {int(lead): i for lead, i in ends.items() if lead.isascii() and lead.isdecimal()}
        if columns:
            leads = min(columns), max(columns)
            alarm = names.index(f"alarm_{target}") if f"alarm_{target}" in names else None
            found.append(_Scored(target, number, leads, (columns[leads[0]], columns[leads[1]]), alarm))
    return found


def _made(forecasts: deque[Forecast], newest: Forecast, steps: int) -> Forecast | None:
    """The forecast made so many steps before the newest; None where there is none."""
    if not newest.shape.step_ms:
        return forecasts[-steps] if steps <= len(forecasts) else None
    ts = newest.ts - steps * newest.shape.step_ms
    for back in range(min(steps, len(forecasts)), 0, -1):  # fewer steps ago where readings are missing
        if forecasts[-back].ts >= ts:
            return forecasts[-back] if forecasts[-back].ts == ts else None
    return None
