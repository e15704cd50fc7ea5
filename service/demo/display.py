"""The scoreboard in a terminal: a live table if rich is installed, else plain lines."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from tidecast.service.demo.rivals import NEEDED, Rival
from tidecast.service.demo.scoreboard import ForecastInterval, Scoreboard, SeriesRow
from tidecast.service.terminal import fitted
from tidecast.service.timestamps import format_duration, format_time

_PLAIN_EVERY_S = 2.0


class Display(Protocol):
    """Where the scoreboard is shown."""

    def show(self, board: Scoreboard) -> None:
        """Show it as it is now; called several times a second."""

    def close(self) -> None:
        """Release the terminal."""


def make_display(target: str, unit: str, title: str) -> Display:
    """A live table on a terminal with rich, plain lines elsewhere."""
    if sys.stdout.isatty():
        try:
            return LiveTable(target, unit, title)
        except ImportError:
            pass
    return PlainLines(target, unit)


class PlainLines:
    """A line for each series every few seconds, and one for the errors."""

    def __init__(self, target: str, unit: str) -> None:
        self._target, self._unit = target, f" {unit}" if unit else ""
        self._shown = 0.0
        self._newest: dict[str, int] = {}

    def show(self, board: Scoreboard) -> None:
        """Print what is new, at most every two seconds."""
        if time.monotonic() - self._shown < _PLAIN_EVERY_S:
            return
        self._shown = time.monotonic()
        fresh = [row for row in board.rows() if row.ts >= board.start_ms and self._newest.get(row.series) != row.ts]
        for row in fresh:
            self._newest[row.series] = row.ts
            step = format_duration(board.step_ms)
            print(
                f"{format_time(row.ts)}  {row.series}  {self._target} {_value(row.actual)}{self._unit}  "
                f"forecast {step} before: {_interval(row.before)}{_ahead(row)}"
            )
        if fresh:
            for line in [*error_lines(board, self._unit), *rival_lines(board, self._unit)]:
                print(line)
            sys.stdout.flush()

    def close(self) -> None:
        """Nothing to release."""


class LiveTable:
    """Two tables that are updated in place: the series, and the errors so far.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, target: str, unit: str, title: str) -> None:
        from rich.live import Live

        self._target, self._unit, self._title = target, f" {unit}" if unit else "", title
        self._live: Any = Live(auto_refresh=False, transient=False)
        self._live.start()
        self._shown = 0.0

    def show(self, board: Scoreboard) -> None:
        """Draw, at most five times a second."""
        if time.monotonic() - self._shown < 0.2:
            return
        self._shown = time.monotonic()
        self._live.update(self.draw(board), refresh=True)

    def draw(self, board: Scoreboard) -> Any:
        """What a rich console prints of it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        step, level = format_duration(board.step_ms), f"{board.level:.0%}" if board.low_name else "…"
        stations = Table(title=self._title, title_justify="left", title_style="bold", expand=False)
        stations.add_column("series", style="bold")
        stations.add_column("time (UTC)", no_wrap=True)
        stations.add_column(f"{self._target}{self._unit}", justify="right", style="bold cyan")
        stations.add_column(f"forecast\n{step} before", justify="right")
        stations.add_column(f"{level}\ninterval", justify="center", no_wrap=True)
        furthest = max(board.errors, default=0)
        ahead = format_duration(furthest * board.step_ms) if furthest else "the furthest"
        stations.add_column(f"forecast\n{ahead} ahead", justify="right", style="magenta")
        stations.add_column(f"{level}\ninterval", justify="center", style="magenta", no_wrap=True)
        for row in board.rows():
            before, next_ = row.before, row.ahead
            hit = before is not None and row.actual is not None and before.low <= row.actual <= before.high
            stations.add_row(
                row.series,
                format_time(row.ts)[:16].replace("T", " "),
                _value(row.actual),
                _value(before.mid if before else None),
                Text(_range(before), style="green" if hit else "red"),
                _value(next_.mid if next_ else None),
                _range(next_),
            )
        errors = Table(expand=False)
        for name in ("steps ahead", "forecasts checked", "mean error", "persistence", "skill", f"inside the {level}"):
            errors.add_column(name, justify="right")
        for steps, sums in sorted(board.errors.items()):
            errors.add_row(
                f"{steps} ({format_duration(steps * board.step_ms)})",
                f"{sums.count:,}",
                f"{sums.mae:.2f}{self._unit}",
                f"{sums.naive_mae:.2f}{self._unit}",
                Text(f"{sums.skill:+.0%}" if sums.naive else "…", style="green" if sums.skill > 0 else "red"),
                f"{sums.coverage:.0%}" if sums.count else "…",
            )
        tables = [fitted(stations, self._live.console), errors]
        if len(board.rivals) > 1:
            models = Table(expand=False)
            models.add_column("model")
            for steps in sorted(board.errors):
                models.add_column(f"mean error {format_duration(steps * board.step_ms)} ahead", justify="right")
            models.add_column("role")
            for name, one in board.rivals.items():
                errors_of = (f"{one.mae(steps):.2f}{self._unit}" for steps in sorted(board.errors))
                models.add_row(name, *errors_of, _role(one), style="bold" if one.answers else None)
            tables.append(models)
        return Group(*tables)

    def close(self) -> None:
        """Leave the last table where it is."""
        self._live.stop()


def error_lines(board: Scoreboard, unit: str) -> list[str]:
    """One line for each number of steps ahead; `unit` with its leading blank."""
    return [
        f"  {format_duration(steps * board.step_ms):>4} ahead: mean absolute error {sums.mae:.2f}{unit}, persistence "
        f"{sums.naive_mae:.2f}{unit}, skill {sums.skill:+.0%}, {sums.coverage:.0%} inside the {board.level:.0%} "
        f"interval ({sums.count:,} forecasts checked)"
        for steps, sums in sorted(board.errors.items())
        if sums.count
    ]


def rival_lines(board: Scoreboard, unit: str) -> list[str]:
    """One line for each model, where the worker runs several; `unit` with its leading blank."""
    if len(board.rivals) < 2:
        return []
    lines = ["  on the same readings, since both models run:"]
    for name, one in board.rivals.items():
        leads = {format_duration(steps * board.step_ms): one.mae(steps) for steps in sorted(board.errors)}
        errors = ", ".join(f"{mae:.2f}{unit} {lead} ahead" for lead, mae in leads.items())
        lines.append(f"    {name}: mean absolute error {errors}; {_role(one)}")
    return lines


def _role(one: Rival) -> str:
    if one.answers:
        return "it answers"
    if one.evidence is None:
        return "scored only"
    return f"scored only; evidence that it is better: {one.evidence:.3g} of {NEEDED:g}"


def _value(value: float | None) -> str:
    return "missing" if value is None else f"{value:.1f}"


def _range(interval: ForecastInterval | None) -> str:
    return "…" if interval is None else f"{interval.low:.1f} … {interval.high:.1f}"


def _ahead(row: SeriesRow) -> str:
    return "" if row.ahead_ts is None else f"  forecast for {format_time(row.ahead_ts)}: {_interval(row.ahead)}"


def _interval(interval: ForecastInterval | None) -> str:
    return "…" if interval is None else f"{interval.mid:.1f} ({_range(interval)})"
