"""A training config from what was found: it trains as it is, and gives the reason for each choice."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import tomli_w

from tidecast.service.errors import UsageError
from tidecast.service.input.config import InputConfig, input_table
from tidecast.service.timestamps import format_duration, format_time, parse_time
from tidecast.training.config import Config, DataConfig, FitConfig, ModelConfig, check
from tidecast.training.inspection.columns import Column
from tidecast.training.inspection.findings import SortedReadings, StepSummary, Values
from tidecast.training.inspection.seasons import DAY, LEAST_SHARE, WEEK, YEAR

MAX_IRREGULAR = 0.25  # share of readings off their step from which a model takes each step's length as it comes
MAX_LAG = 1_024  # steps: a longer lag makes the state, and the ridge over it, larger than it is worth
MAX_COVARIATES = 16
LIKELY_TARGETS = ("target", "y", "value", "ot", "label")
COVARIATE_MISSING = 0.3
Calendar = Literal["day", "week", "year"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A config, the same as text with its reasons, and what a person should know before it is used."""

    config: Config
    text: str
    left_out: dict[str, str]  # column -> why it is no covariate


def propose(
    path: Path, time: str, of: SortedReadings, steps: StepSummary, values: dict[str, Values], targets: list[str] | None,
    each_column: bool, *, relative_to: Path, table: InputConfig | None = None,
) -> Proposal:  # fmt: skip
    """The config for this file, its path relative to the directory `relative_to`.

    Raises:
        UsageError: a target that is no column of values, or none is left to forecast.
    """
    chosen = _targets(values, targets, each_column)
    step = 0 if steps.irregular > MAX_IRREGULAR else steps.step_ms
    lags, calendar, why = _seasons(values[chosen[0]], of, step)
    horizon, far = _horizon(steps.step_ms)
    covariates, left_out = _covariates(values, chosen, each_column)
    train, validate = (format_time(_moment(of, share)) for share in (0.7, 0.85))
    units = {name: str(values[name].unit) for name in [*chosen, *covariates] if values[name].unit}
    data = DataConfig(
        path=os.path.relpath(path.resolve(), relative_to.resolve()),
        time=time if table is None else None,
        step=format_duration(step),
        series="columns" if each_column else of.keys.column if table is None else None,
        targets=chosen,
        covariates=covariates,
        train_until=train,
        validate_until=validate,
        units={} if each_column else units,
    )
    if any(values[name].outliers for name in chosen) or any(values[name].far for name in covariates):
        data = msgspec.structs.replace(data, outliers="mask")
    name = re.sub(r"[^A-Za-z0-9]+", "-", path.name.split(".")[0]).strip("-").lower() or "series"
    model = ModelConfig(horizon=horizon, lags=lags, calendar=calendar)
    config = Config(name=name, data=data, model=model, fit=FitConfig(), input=table)
    check(config)
    text = _text(config, why, far, steps, of, values)
    if table is not None:
        text += "\n" + tomli_w.dumps({"input": input_table(table, relative_to)})
    return Proposal(config, text, left_out)


def trained_range(column: Column, of: SortedReadings, until: str) -> tuple[float, float]:
    """(share of the readings from `until` on that lie outside the range before it, how many IQRs the median moves)."""
    assert column.numbers is not None
    x, later = column.numbers[of.rows], of.ts >= parse_time(until)
    before, after = x[~later & np.isfinite(x)], x[later & np.isfinite(x)]
    if len(before) < 2 or not len(after):
        return 0.0, 0.0
    outside = float(((after < before.min()) | (after > before.max())).mean())
    width = float(np.subtract(*np.percentile(before, [75, 25])))
    return outside, float(np.median(after) - np.median(before)) / width if width > 0 else 0.0


def _targets(values: dict[str, Values], given: list[str] | None, each_column: bool) -> list[str]:
    if given:
        for name in given:
            if name not in values:
                raise UsageError(
                    "--targets names a column that cannot be forecast", got=name, do=f"Choose of {', '.join(values)}."
                )
        return list(dict.fromkeys(given))
    complete = [v.name for v in values.values() if v.missing_share < COVARIATE_MISSING] or list(values)
    if each_column:
        return complete
    likely = [name for name in complete if name.lower() in LIKELY_TARGETS]
    return [(likely or complete)[0]]


def _covariates(values: dict[str, Values], targets: list[str], each_column: bool) -> tuple[list[str], dict[str, str]]:
    kept: list[str] = []
    left_out: dict[str, str] = {}
    for v in values.values():
        if v.name in targets:
            continue
        if each_column:
            left_out[v.name] = "with series = columns there are no covariates"
        elif v.missing_share >= COVARIATE_MISSING:
            left_out[v.name] = f"{100 * v.missing_share:.0f} % missing"
        elif v.refused:
            left_out[v.name] = f"cells that are no numbers ({v.first_refused})"
        elif len(kept) >= MAX_COVARIATES:
            left_out[v.name] = f"more than {MAX_COVARIATES}; add it by hand if it matters"
        else:
            kept.append(v.name)
    return kept, left_out


def _seasons(v: Values, of: SortedReadings, step: int) -> tuple[list[str], list[Calendar], str]:
    """(lags, calendar, why)."""
    found = v.seasons
    lags: list[str] = []
    calendar: list[Calendar] = []
    reasons = []
    if found is None:
        return lags, calendar, "no season could be looked for"
    day = found.day is not None and found.day.explained >= LEAST_SHARE
    week = found.week is not None and found.week.explained >= LEAST_SHARE and found.week_beyond_day >= LEAST_SHARE / 2
    if day and found.day:
        calendar.append("day")
        reasons.append(f"the time of day explains {100 * found.day.explained:.0f} %")
        lags += ["1d"] if found.day.steps <= MAX_LAG else []
    if week and found.week:
        calendar.append("week")
        reasons.append(f"the day of the week {100 * found.week_beyond_day:.0f} % more")
        if found.week.steps <= MAX_LAG:
            lags.append("7d")
        else:
            reasons.append(f"a lag of 7d would be {found.week.steps:,} steps: left to the calendar")
    other = found.strongest
    if other and other.explained >= LEAST_SHARE and other.steps <= MAX_LAG and other.period not in lags:
        natural = {season.steps for season in (found.day, found.week) if season}
        # A multiple of a season that is there already says nothing new.
        if not any(other.steps % steps == 0 for steps in natural):
            lags.append(other.period)
            reasons.append(f"a period of {other.period} explains {100 * other.explained:.0f} %")
    if len(of.ts) and int(of.ts.max() - of.ts.min()) >= 2 * YEAR and step >= DAY // 24:
        calendar.append("year")
        reasons.append("more than two years of data")
    lags = [] if step == 0 else sorted(lags, key=lambda lag: DAY if lag == "1d" else WEEK if lag == "7d" else 0)
    return lags, calendar, "; ".join(reasons) or "no season stands out"


def _horizon(step: int) -> tuple[int, str]:
    """One day where that is 2 to 48 steps, else 12 steps."""
    steps = DAY // step if DAY % step == 0 else 0
    return (steps, "one day") if 2 <= steps <= 48 else (12, "12 steps")


def _moment(of: SortedReadings, share: float) -> int:
    """A moment at this share of the period, on a whole hour or second where the period is long enough."""
    start, end = int(of.ts.min()), int(of.ts.max())
    unit = next((u for u in (DAY, 3_600_000, 60_000, 1_000) if (end - start) >= 100 * u), 1)
    return (start + int(share * (end - start))) // unit * unit


def _text(config: Config, why: str, far: str, steps: StepSummary, of: SortedReadings, values: dict[str, Values]) -> str:
    data, model = config.data, config.model
    exact = (
        "exact" if steps.irregular + steps.jitter == 0 else f"{100 * steps.irregular:.1f} % of the readings are off it"
    )
    rows: list[tuple[str, object, str]] = [
        ("path", data.path, ""),
        *([("time", data.time, "")] if data.time else []),
        ("step", data.step, "irregular: each step is as long as it is" if data.step == "0" else f"median; {exact}"),
    ]
    if data.series:
        named = ", ".join(of.keys.names[:3]) + (", …" if len(of.keys.names) > 3 else "")
        each = "each target column is a series of one shared model"
        rows.append(("series", data.series, each if config.each_column else f"{len(of.keys.names):,} series: {named}"))
    rows += [
        ("targets", data.targets, "what is forecast; change it with --targets" if len(values) > 1 else ""),
        ("covariates", data.covariates, "known when the reading arrives" if data.covariates else ""),
        ("train_until", data.train_until, "70 % of the period; scalers and weights see nothing later"),
        ("validate_until", data.validate_until, "85 %; what follows is test"),
    ]
    if data.outliers != "keep":
        many = [name for name in (*data.targets, *data.covariates) if values[name].outliers]
        found = ", ".join(f"{values[name].outliers:,} in {name}" for name in many[:3]) + (", …" if many[3:] else "")
        rows.append(("outliers", "mask", f"in training rows only; in the whole file {found}"))
    lines = [f"name = {_value(config.name)}", "", "[data]", *_aligned(rows)]
    if data.units:
        lines += ["", "[data.units]", *(f"{_key(k)} = {_value(v)}" for k, v in data.units.items())]
    lines += ["", "[model]", *_aligned([
        ("horizon", model.horizon, far),
        ("lags", model.lags, "" if model.calendar else why),
        ("calendar", model.calendar, why if model.calendar else ""),
    ])]  # fmt: skip
    return "\n".join(lines) + "\n"


def _aligned(rows: list[tuple[str, object, str]]) -> list[str]:
    made = [(f"{name} = {_value(value)}", why) for name, value, why in rows]
    width = min(48, max((len(text) for text, why in made if why), default=0))
    return [f"{text:<{width}}  # {why}" if why else text for text, why in made]


def _value(value: object) -> str:
    """A TOML value; a JSON text is a TOML text but for the character DEL."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)
