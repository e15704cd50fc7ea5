"""Look at a data file before anything is trained on it: what is in it, what is wrong with it, what config would fit.

Needs no torch. In order: columns as they are (`inspection.columns`), the time column (`time_column`), what the
others are for (`roles`), what is in them (`findings`, `seasons`), a config (`proposal`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tidecast.service.errors import DataError, UsageError
from tidecast.service.input.config import InputConfig
from tidecast.service.input.files import FileCounts
from tidecast.service.timestamps import format_duration, format_time
from tidecast.training.inspection.columns import Column, read_columns
from tidecast.training.inspection.findings import (
    LONG_GAP,
    Location,
    Order,
    SortedReadings,
    StepSummary,
    Values,
    find_steps,
    find_values,
    sort_readings,
    value_names,
)
from tidecast.training.inspection.input_table import Source, by_table, find_table, find_wide_table
from tidecast.training.inspection.proposal import Proposal, propose, trained_range
from tidecast.training.inspection.roles import Role, find_keys, find_roles
from tidecast.training.inspection.seasons import Seasons, find_seasons, on_grid
from tidecast.training.inspection.time_column import TimeColumn, find_time_column

SEASON_SERIES = 20  # so many series are looked at for seasons; the others are like them
LEAST_ROWS = 40
EARLY_1970_MS = 60 * 86_400_000  # seconds read as milliseconds lie before it, milliseconds read as nanoseconds too


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What the user has said about the file; the rest is found."""

    time: str | None = None
    series: str | None = None  # a column, "columns" or "none"
    targets: list[str] | None = None
    table: InputConfig | None = None  # how rows become readings, instead of time and series


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that was found."""

    path: Path
    columns: list[Column]
    roles: list[Role]
    time_column: TimeColumn
    readings: SortedReadings
    order: Order
    steps: StepSummary
    values: dict[str, Values]
    proposal: Proposal
    rows: FileCounts  # with a table, what became of the file's rows
    notes: list[str] = field(default_factory=list)  # what to know or do before training, the gravest first

    def report(self) -> dict[str, object]:
        """The same without the data, for JSON."""
        return {
            "path": str(self.path),
            "rows": self.rows.rows or len(self.time_column.ts),
            "readings": len(self.time_column.ts),
            "rows_not_used": self.rows.sentences(),
            "columns": self.roles,
            "time": {
                "column": self.time_column.name,
                "form": self.time_column.form,
                "usable": self.time_column.usable,
                "first": format_time(int(self.readings.ts.min())),
                "last": format_time(int(self.readings.ts.max())),
            },
            "series": {
                "column": self.readings.keys.column,
                "count": len(self.readings.keys.names),
                "names": self.readings.keys.names[:20],
                "shortest": int(np.diff(self.readings.bounds).min()),
                "longest": int(np.diff(self.readings.bounds).max()),
            },
            "order": self.order,
            "step": format_duration(self.steps.step_ms),
            "steps": self.steps,
            "values": {name: _without_rows(v) for name, v in self.values.items()},
            "notes": self.notes,
            "config": self.proposal.config,
            "left_out": self.proposal.left_out,
        }


def inspect(path: Path | str, options: InspectOptions | None = None, *, relative_to: Path | None = None) -> Inspection:
    """Read and describe the file; the config's path is relative to `relative_to` (default: here).

    Raises:
        DataError: the file cannot be read, or nothing in it can be forecast: no times, no numbers, too few rows.
        UsageError: a chosen target cannot be forecast.
    """
    path, options = Path(path), options or InspectOptions()
    source = _source(path, options)
    columns, time_column, keys, roles = source.columns, source.time_column, source.keys, source.roles
    values_of = [column.numbers for column in columns if column.numbers is not None]
    readings, order = sort_readings(time_column.ts, keys, values_of)
    steps = _steps(path, readings, order)
    by_name = {column.name: column for column in columns}
    names = value_names(roles)
    if not names:
        raise DataError(
            f"{path} has no column of numbers to forecast",
            got="; ".join(f"{r.name}: {r.why or r.role}" for r in roles)[:300],
            do="Give a file with at least one column of readings that vary.",
        )
    values = {name: find_values(by_name[name], readings, steps.step_ms) for name in names}
    for name, found in values.items():
        found.seasons = _seasons(by_name[name], readings, steps.step_ms)
    each_column = options.series == "columns"
    proposal = propose(
        path,
        time_column.name,
        readings,
        steps,
        values,
        options.targets,
        each_column,
        relative_to=relative_to or Path.cwd(),
        table=source.table,
    )
    found_all = Inspection(path, columns, roles, time_column, readings, order, steps, values, proposal, source.counts)
    found_all.notes.extend(_notes(found_all, by_name))
    return found_all


def _source(path: Path, options: InspectOptions) -> Source:
    columns = read_columns(path)
    if options.table is not None:
        for flag, given in (("--time", options.time), ("--series", options.series)):
            if given is not None:
                raise UsageError(f"the table of --input says what {flag} would say", do="Leave one of them out.")
        return by_table(path, columns, options.table)
    time_column = find_time_column(columns, str(path), options.time)
    table = find_table(columns, time_column) if options.series is None else None
    if table is not None:
        return by_table(path, columns, table, time_column.form)
    keys = find_keys(columns, time_column, str(path), options.series)
    if options.series != "columns" and (table := find_wide_table(columns, time_column, keys)) is not None:
        return by_table(path, columns, table, time_column.form)
    return Source(columns, time_column, keys, find_roles(columns, time_column, keys))


def _steps(path: Path, readings: SortedReadings, order: Order) -> StepSummary:
    steps = find_steps(readings)
    longest = int(np.diff(readings.bounds).max())
    if steps is None or longest < LEAST_ROWS:
        raise DataError(
            f"{path} has too few readings to learn from: its longest series has {longest}",
            do=f"Give at least {LEAST_ROWS} readings of one series; with some hundreds a model begins to help."
            + (f" {order.duplicates:,} of its rows repeat a time: is a key column missing?" if order.duplicates else "")
            + (
                f" (The series column is {readings.keys.column!r}; --series changes it.)"
                if readings.keys.column
                else ""
            ),
        )
    return steps


def _seasons(column: Column, readings: SortedReadings, step_ms: int) -> Seasons:
    assert column.numbers is not None
    x = column.numbers[readings.rows]
    spans = sorted((at for _, at in readings.spans()), key=lambda at: at.start - at.stop)[:SEASON_SERIES]
    return find_seasons([on_grid(readings.ts[at], x[at], step_ms) for at in spans if at.stop - at.start > 2], step_ms)


def _without_rows(values: Values) -> dict[str, object]:
    return {name: getattr(values, name) for name in Values.__dataclass_fields__ if name != "outlier_rows"}


def _notes(of: Inspection, by_name: dict[str, Column]) -> list[str]:
    """Sentences for the user; each says what was found and what follows from it."""
    out = []
    table = of.proposal.config.input
    if table is not None and table.long:
        out.append(
            f"Each row holds one value: {table.value}, of the feature that {table.name or 'the table'} names. By the "
            f"table input of the config, {of.rows.rows:,} rows are {count(len(of.time_column.ts), 'reading')}. "
            "(--series COLUMN takes each row as a reading.)"
        )
    out += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in of.rows.sentences()]
    if not of.time_column.usable:
        out.append(
            f"Column {of.time_column.name!r} counts {of.time_column.form.split()[1]} since 1970. The trainer and the "
            "producer refuse that: make it milliseconds or ISO 8601."
        )
    first, last = int(of.readings.ts.min()), int(of.readings.ts.max())
    if first >= 0 and last < EARLY_1970_MS:
        out.append(
            f"All times lie between {format_time(first)} and {format_time(last)}, as of an epoch that was read in the "
            "wrong unit on its way into this file."
        )
    keys, order, steps = of.readings.keys, of.order, of.steps
    if keys.together:
        out.append(
            f"Only {keys.together[0]!r} and {keys.together[1]!r} together tell the readings apart: join them into one "
            "column and name it with --series."
        )
    if order.duplicates:
        hint = "" if keys.column or order.duplicates < 0.2 * len(of.time_column.ts) else " Is a key column missing?"
        out.append(
            f"{count(order.duplicates, 'reading')} for a time that the series already has, first at "
            f"{order.first_duplicate}, {order.contradictions:,} of them with other values: the trainer keeps the "
            f"first in the file and drops the rest.{hint}"
        )
    if order.unsorted:
        out.append(
            f"{count(order.unsorted, 'row')} earlier than the one before: the trainer sorts them; a stream in this "
            "order would drop them as late."
        )
    if of.proposal.config.data.step == "0":
        out.append(
            f"{100 * steps.irregular:.0f} % of the readings are more than a tenth of a step from where they are due: "
            "proposed as irregular (step 0), so without lags. Resampling to a fixed step would allow them."
        )
    elif steps.irregular > 0.001:
        out.append(f"{100 * steps.irregular:.1f} % of the readings are off their step; each is taken as the next step.")
    if steps.others:
        named = ", ".join(f"{name} ({format_duration(ms)})" for name, ms in list(steps.others.items())[:3])
        out.append(
            f"{count(len(steps.others), 'series', 'series')} with another step than {format_duration(steps.step_ms)}: "
            f"{named}. One model has one step: train them apart."
        )
    if steps.long and of.proposal.config.data.step != "0":
        out.append(
            f"{count(steps.long, 'gap')} longer than {LONG_GAP} steps: there the series starts again, cold "
            "(data.max_gap)."
        )
    for v in of.values.values():
        out += _about(v, keys.column is None)
    # At an end of the range it may be the sensor's own limit.
    stuck = [(v, v.flat_at) for v in of.values.values() if v.flat_at and v.flat_at.value not in (v.low, v.high)]
    if stuck:
        named = "; ".join(
            f"{v.name} {v.flat} times {at.value:g} from {_place(at, keys.column is None)}" for v, at in stuck[:3]
        )
        more = f"; and {count(len(stuck) - 3, 'more column')}" if len(stuck) > 3 else ""
        out.append(f"The same reading many times in a row, as from a stuck sensor: {named}{more}.")
    config = of.proposal.config
    for name in config.data.targets:
        outside, moved = trained_range(by_name[name], of.readings, config.data.train_until)
        if outside > 0.01 or abs(moved) > 0.75:
            parts = [f"{100 * outside:.1f} % of it lies outside the range that training sees"] if outside > 0.01 else []
            parts += [f"its median is {moved:+.1f} interquartile ranges away"] if abs(moved) > 0.75 else []
            out.append(f"{name} after train_until is not as it was before: {', and '.join(parts)}.")
    longest = np.diff(of.readings.bounds)
    lag = max(config.lag_steps, default=0)
    short = int((longest < 3 * max(lag, 24)).sum())
    if short:
        out.append(f"{count(short, 'series', 'series')} shorter than three times the longest lag: they add little.")
    if keys.column is None and not config.each_column and _alike(list(of.values)):
        out.append(
            "The columns look like many sensors of one kind: --series columns proposes one shared model, which "
            "learns from all of them."
        )
    return out


def _about(v: Values, one: bool) -> list[str]:
    out = []
    if v.refused:
        out.append(
            f"{v.name}: {count(v.refused, 'cell')} neither a number nor missing, first {v.first_refused}: the trainer "
            "refuses the file until they are empty."
        )
    if v.far:
        out.append(
            f"{v.name}: {v.far.value:.6g} at {_place(v.far, one)} lies far beyond the rest (usual there: "
            f"{v.far.usual:.4g}). One such reading spoils a scaler: fix it, or leave the cell empty."
        )
    return out


def _alike(names: list[str]) -> bool:
    stems = {name.rstrip("0123456789") for name in names}
    return len(names) >= 3 and len(stems) == 1 and stems != set(names)


def _place(location: Location, one: bool) -> str:
    return location.time if one else f"{location.time} of {location.series}"


def count(n: int, one: str, many: str | None = None) -> str:
    """ "1 row", "2 rows"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
