"""All series at a glance: which need attention, ranked, and the state of each of the others."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice
from statistics import median
from typing import Any

from tidecast.service.watch.health import SILENT, Finding
from tidecast.service.watch.store import SeriesHistory, Store, holds, words_of
from tidecast.service.watch.updates import finding_fields, json_number

SILENT_STEPS = 5  # of its own, that a series may be behind half of all series
LONGEST_SILENCE = 50  # steps; a longer one is no worse
AGE_S = 1.0  # of an overview, which all viewers share
SPARK = 48  # readings
MAX_ROWS = 100
MAX_GROUPS = 40
SEPARATOR = "/"  # between the parts of a name: site/line/machine
WAITING, FINE, NOTICE, ALARM = "0", "1", "2", "3"  # how a series is; waiting = no forecast can be trusted yet
_ALARMING = 0.7  # severity


@dataclass(slots=True)
class Overview:
    """All series, by name: how each is, and what was found."""

    made: float = -AGE_S  # monotonic time, s
    names: list[str] = field(default_factory=list)
    states: str = ""  # one digit for each name
    findings: dict[str, Finding] = field(default_factory=dict)
    version: int = 0  # changes with the names


class Fleet:
    """Makes the overview, at most once a second."""

    def __init__(self, store: Store) -> None:
        self._store, self._last = store, Overview()

    def rows(self, words: str, group: str) -> dict[str, Any]:
        """The series whose names begin with `group` and hold all words, worst first; counts; and the groups below."""
        with self._store.lock:
            overview = self._overview()
            at = self._chosen(overview, words, group)
            states = Counter(overview.states[i] for i in at)
            names = [overview.names[i] for i in at]
            found = [(overview.findings[name], name) for name in names if name in overview.findings]
            found.sort(key=lambda pair: (-pair[0].severity, pair[1]))
            others = (name for name in names if name not in overview.findings)
            shown = islice(chain((name for _, name in found), others), MAX_ROWS)
            return {
                "known": len(overview.names),
                "found": len(at),
                "attention": len(found),
                "fine": states[FINE],
                "waiting": states[WAITING],
                "kinds": dict(Counter(finding.kind for finding, _ in found).most_common()),
                "rows": [self._row(name, overview) for name in shown],
                "groups": _groups(names, overview, group),
            }

    def cells(self, words: str, group: str, version: int) -> dict[str, Any]:
        """One digit for the state of each of these series; their names too unless the viewer has this `version`."""
        with self._store.lock:
            overview = self._overview()
            at = self._chosen(overview, words, group)
        cells: dict[str, Any] = {"version": overview.version, "states": "".join(overview.states[i] for i in at)}
        if version != overview.version:
            cells["names"] = [overview.names[i] for i in at]
        return cells

    @staticmethod
    def _chosen(overview: Overview, words: str, group: str) -> list[int]:
        wanted = words_of(words)
        if not wanted and not group:
            return list(range(len(overview.names)))
        names = enumerate(overview.names)
        return [i for i, name in names if name.startswith(group) and holds(name.casefold(), wanted)]

    def _overview(self) -> Overview:
        now, last = time.monotonic(), self._last
        if now - last.made < AGE_S:
            return last
        every = self._store.all()
        newest = [one.forecasts[-1].ts for one in every if one.forecasts]
        usual = median(newest) if newest else 0.0
        names = sorted(one.name for one in every)
        findings, states = {}, dict.fromkeys(names, WAITING)
        for one in every:
            finding = _finding(one, usual)
            if finding is not None:
                findings[one.name] = finding
                states[one.name] = ALARM if finding.severity >= _ALARMING else NOTICE
            elif one.warm:
                states[one.name] = FINE
        version = last.version + (names != last.names)
        self._last = Overview(now, names, "".join(states.values()), findings, version)
        return self._last

    def _row(self, name: str, overview: Overview) -> dict[str, Any]:
        one, finding = self._store.get(name), overview.findings.get(name)
        assert one is not None
        shape = one.forecasts[-1].shape if one.forecasts else None
        names = one.readings[-1].names if one.readings else ()
        target = finding.target if finding else shape.targets[0] if shape else next(iter(names), "")
        newest = list(islice(reversed(one.readings), SPARK))[::-1]
        row: dict[str, Any] = {
            "series": name,
            "target": target,
            "kind": finding.kind if finding else "fine" if one.warm else "waiting",
            "step_ms": shape.step_ms if shape else 0,
            "level": shape.level if shape else 0,
            "times": [reading.ts for reading in newest],
            "values": [json_number(reading.value(target)) for reading in newest],
        }
        if finding is not None:
            row |= finding_fields(finding)
        return row


def _finding(one: SeriesHistory, usual: float) -> Finding | None:
    """What is the matter with a series, where half of all series have come to the time `usual`, ms."""
    if one.forecasts and (step := one.forecasts[-1].shape.step_ms):
        last = one.forecasts[-1].ts
        missing = int((usual - last) // step)
        if missing > SILENT_STEPS:
            severity = 0.5 + 0.5 * min(missing, LONGEST_SILENCE) / LONGEST_SILENCE
            return Finding(SILENT, one.forecasts[-1].shape.targets[0], last, missing, missing, severity)
    return one.health.finding()


def _groups(names: list[str], overview: Overview, group: str) -> list[dict[str, Any]]:
    """The next part of the names after `group`: how many series, and how many of them need attention; worst first."""
    series: Counter[str] = Counter()
    attention: Counter[str] = Counter()
    for name in names:
        part, found, _ = name[len(group) :].partition(SEPARATOR)
        if found:
            series[group + part + SEPARATOR] += 1
            attention[group + part + SEPARATOR] += name in overview.findings
    worst = sorted(series, key=lambda each: (-attention[each], each))[:MAX_GROUPS]
    return [{"group": each, "series": series[each], "attention": attention[each]} for each in worst]
