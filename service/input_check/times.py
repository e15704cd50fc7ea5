"""Which value is the time of a reading, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any

from tidecast.service.input.config import parse_input
from tidecast.service.input.times import TimeReader
from tidecast.service.input_check.survey import Leaf
from tidecast.service.timestamps import epoch_unit

_DAY_MS = 86_400_000
_MOST_VALUES = 60  # of a leaf
_MOST_ARE = 0.6
_SOME = 0.1
_NAMES = re.compile(
    r"(ts|t|dt|time|clock|timestamp|date_?time|epoch|bt|when|(source|event|device|sample|measure(ment|d)?|observ(ation|ed)|"
    r"record(ed)?|read(ing)?|log|utc|unix|phenomenon|result|metric)_?(ts|t|at|time|timestamp|time_?unix|time_?stamp)|"
    r"time_?(ms|ns|us|s|sec|utc|unix|unix_?nano|stamp)|ts_?(ms|ns|us|s))",
    re.IGNORECASE,
)
_LIKELY = re.compile(r"time|date|stamp|epoch|_(at|ts)$|At$|Ts$", re.IGNORECASE)
_OTHER = re.compile(  # times of something else than what was measured
    r"server|receiv|ingest|process|enqueue|publish|insert|expir|start|begin|boot|install|updated|created|gateway|sync",
    re.IGNORECASE,
)
_FORMS = (
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M",
    "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p",
    "%d-%m-%Y %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%a, %d %b %Y %H:%M:%S %z", "%Y.%m.%d %H:%M:%S",
    "%a, %d %b %Y %H:%M:%S GMT", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %Y", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%S",
    "%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S,%f",
)  # fmt: skip


@dataclass(slots=True)
class TimeGuess:
    """Where the time is. `table`: what an [input] table says of it."""

    leaf: Leaf | None  # None = the record's own time
    table: dict[str, Any] = field(default_factory=dict)
    say: list[str] = field(default_factory=list)
    score: float = 0.0


NO_TIME = TimeGuess(None, {"time": "@record"}, ["No field looks like a time: the record's own time is used."])


def time_of(leaf: Leaf, record_ms: Sequence[int]) -> TimeGuess | None:
    """The leaf as a time; None where it does not look like one."""
    rows = [row for row, value in enumerate(leaf.values) if isinstance(value, int | float | str | datetime)]
    rows = [row for row in rows if not isinstance(leaf.values[row], bool) and leaf.values[row] != ""]
    steps = [step for step in leaf.place if isinstance(step, str)]
    hint = 2.0 if _NAMES.fullmatch(leaf.word) else 1.0 if any(map(_LIKELY.search, steps)) else 0.0
    if not rows or (len(rows) < len(leaf.values) / 2 and hint < 2):
        return None
    rows = rows[-_MOST_VALUES:]
    read = _read([leaf.values[row] for row in rows])
    if read is None:
        return None
    ms, table, say = read
    apart = [at - record_ms[row] for at, row in zip(ms, rows, strict=True) if at and record_ms[row] > 0]
    near = min(map(abs, apart), default=_DAY_MS * 500)
    is_text = isinstance(leaf.values[rows[0]], str) and not str(leaf.values[rows[0]]).strip().isdecimal()
    if not hint and near > _DAY_MS and not is_text:
        return None
    known = len(leaf.known) / len(leaf.values)
    score = 3 * hint + (1.5 if near < _DAY_MS else 0.5 if near < 400 * _DAY_MS else 0.0) + known
    score -= 0.6 * leaf.out + 0.1 * len(leaf.place) + (2 if _OTHER.search(leaf.word) else 0)
    time = leaf.path
    if _SOME < known < 1 - _SOME:
        time += " | @record"
        say.append("Where a record has no time, its own is used.")
    say += _zone([leaf.values[row] for row in rows], apart)
    return TimeGuess(leaf, {"time": time} | table, say, score)


def _read(values: list[Any]) -> tuple[list[int], dict[str, Any], list[str]] | None:
    """([values] ms, 0 = not read; what the table says; sentences) of the form that reads most."""
    forms: list[dict[str, Any]] = [{}, {"time_unit": "s"}, {"time_unit": "us"}, {"time_unit": "ns"}]
    texts = [value.strip() for value in values if isinstance(value, str)]
    if texts and not any(len(text) >= 8 and re.search(r"\d", text) for text in texts):
        return None
    if any(re.search(r"\d[-/.: ]|\d{14}", text) for text in texts):
        forms += [{"time_format": form} for form in _FORMS]
    best: list[int] = []
    chosen: dict[str, Any] = {}
    for form in forms:
        ms = _by(values, form)
        if sum(map(bool, ms)) > sum(map(bool, best)):
            best, chosen = ms, form
        if all(best) and best:
            break
    if sum(map(bool, best)) < _MOST_ARE * len(values):
        return None
    form, say = chosen.get("time_format", ""), []
    if form.startswith(("%d/%m", "%m/%d")):
        other = form.replace("%d/%m", "%m/%d") if form.startswith("%d") else form.replace("%m/%d", "%d/%m")
        if sum(map(bool, _by(values, {"time_format": other}))) == sum(map(bool, best)):
            say = ["Is the day first, or the month? Both fit these times; correct time_format if it is wrong."]
    return best, chosen, say


def _by(values: list[Any], form: dict[str, Any]) -> list[int]:
    """[values] ms as a table with this form reads them; 0 = it does not, or not as a time of 1990..2100."""
    ms = TimeReader(parse_input(form)).read(values, lambda row, rejection: None)
    return [at if at and epoch_unit(at, at) == "milliseconds" else 0 for at in ms.tolist()]


def _zone(values: Sequence[Any], apart: Sequence[int]) -> list[str]:
    """What to say of times without a zone."""
    texts = [value.strip() for value in values if isinstance(value, str)]
    texts = [text for text in texts if not text.isdecimal() or len(text) == 14]
    if not texts or any(re.search(r"(Z|UTC|GMT|[+-]\d\d:?\d\d)$", text) for text in texts):
        return []
    middle, quarter = (median(apart) if apart else 0.0), 900_000.0
    turns = round(middle / quarter)
    if turns and abs(turns) <= 56 and abs(middle - turns * quarter) < 300_000 and max(apart) - min(apart) < 600_000:
        return [
            f"The times name no zone and are {turns / 4:+g} h from their records' times: they seem to be local.",
            'Set time_zone, such as time_zone = "Europe/Berlin"; without it they are taken as UTC.',
        ]
    return _UTC


_UTC = ["The times name no zone, and are taken as UTC; set time_zone if they are local."]
