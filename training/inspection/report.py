"""What a person sees of an inspection: tables, what to know, a config."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidecast.service.timestamps import format_duration, format_time
from tidecast.training.data.outliers import THRESHOLD, WINDOW
from tidecast.training.inspection.findings import LONG_GAP
from tidecast.training.inspection.inspect import Inspection, count

NOT_A_TERMINAL_WIDTH = 140  # a file or a pipe wraps little

LEGEND_OUTLIERS = f"more than {THRESHOLD:g} robust deviations from the median of {WINDOW} readings (Hampel)"
LEGEND_SEASONS = (
    "share of the later half's variance about its moving level that the profile of the earlier half explains"
)


def show(found: Inspection, *, config_written: str | None = None, plots: list[str] | None = None) -> None:
    """Print it on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=NOT_A_TERMINAL_WIDTH, highlight=False)
    console.print(_overview(found))
    console.print(_values(found))
    console.print(Text(f"outliers: {LEGEND_OUTLIERS}", style="dim"))
    console.print(_seasons(found))
    console.print(Text(f"day, week: {LEGEND_SEASONS}", style="dim"))
    others = [r for r in found.roles if r.role not in ("value", "time", "key")]
    if others:
        console.print(_others(found))
    outliers = [(v, location) for v in found.values.values() for location in v.first_outliers]
    shifts = [(v, shift) for v in found.values.values() for shift in v.shifts]
    if outliers or shifts or found.steps.longest:
        console.print(_places(found))
    if found.notes:
        console.print(Text("\nWorth knowing", style="bold"))
        for note in found.notes:
            # A hanging indent by hand: rich's own would need a table.
            console.print(Text(f"  - {note}"), soft_wrap=not console.is_terminal)
    if plots:
        console.print(Text("\nPlots", style="bold"))
        console.print(Text(f"  {', '.join(plots)}"), soft_wrap=True)
    if config_written:
        console.print(Text(f"\nThe config is in {config_written}; train with", style="bold"))
        console.print(Text(f"  tidecast train {config_written} --out model"), soft_wrap=True)
    else:
        console.print(Text("\nA config to start from (--write-config FILE writes it)\n", style="bold"))
        console.print(Text(found.proposal.text.rstrip()), soft_wrap=True)


def _overview(found: Inspection) -> Table:
    steps, order, keys = found.steps, found.order, found.readings.keys
    table = _table(str(found.path), "", "")
    table.show_header = False
    rows, first, last = len(found.time_column.ts), int(found.readings.ts.min()), int(found.readings.ts.max())
    mapped = f"{found.rows.rows:,}, which the table input makes {count(rows, 'reading')}"
    table.add_row("rows", mapped if found.rows.rows else f"{rows:,} of {len(found.columns)} columns")
    table.add_row("time", f"{found.time_column.name} ({found.time_column.form})")
    table.add_row("period", f"{format_time(first)} to {format_time(last)}, {_long(last - first)}")
    if keys.column is None:
        table.add_row("series", "one")
    else:
        sizes = (found.readings.bounds[1:] - found.readings.bounds[:-1]).tolist()
        named = ", ".join(keys.names[:5]) + (", …" if len(keys.names) > 5 else "")
        table.add_row("series", f"{len(keys.names):,} by {keys.column}: {named} ({_range(sizes)} readings each)")
    even = "regular, but for gaps" if steps.gaps else "always"
    regular = f"{100 * steps.irregular:.2g} % irregular" if steps.irregular else even
    jitter = f", {100 * steps.jitter:.0f} % a little off it" if steps.jitter > 0.005 else ""
    if _irregular(found):
        pause = f"; the longest pause is about {steps.longest[0].steps + 1:,} times that" if steps.longest else ""
        table.add_row("step", f"irregular, in the median {format_duration(steps.step_ms)}{pause}")
    else:
        table.add_row("step", f"{format_duration(steps.step_ms)} ({regular}{jitter})")
    due = len(found.readings.ts) + steps.missing
    table.add_row("gaps", "without a step none is due" if _irregular(found) else "none" if not steps.gaps else (
        f"{steps.gaps:,}, {steps.missing:,} steps missing ({100 * steps.missing / due:.2g} % of those due), "
        f"the longest {steps.longest[0].steps:,}; {steps.long:,} of more than {LONG_GAP} steps"
    ))  # fmt: skip
    table.add_row("order", ", ".join([
        count(order.duplicates, "duplicate") if order.duplicates else "no duplicates",
        f"{count(order.unsorted, 'row')} out of order" if order.unsorted else "in order of time",
    ]))  # fmt: skip
    return table


def _values(found: Inspection) -> Table:
    data = found.proposal.config.data
    table = _table("Values", "column", "as")
    for name in ("missing", "in a row", "min", "median", "max", "outliers"):
        table.add_column(name, justify="right", no_wrap=True)
    for v in found.values.values():
        place = "target" if v.name in data.targets else "covariate" if v.name in data.covariates else "left out"
        table.add_row(
            v.name + (f" {v.unit}" if v.unit and v.unit not in v.name else ""),
            Text(place, style="green" if place == "target" else "dim" if place == "left out" else ""),
            f"{v.missing:,} ({_percent(v.missing_share)})" if v.missing else "-",
            f"{v.longest_missing:,}" if v.missing else "-",
            number(v.low), number(v.median), number(v.high),
            f"{v.outliers:,}" if v.outliers else "-",
        )  # fmt: skip
    return table


def _seasons(found: Inspection) -> Table:
    table = _table("Seasons", "column")
    for name in ("day", "week", "strongest", "autocorrelation"):
        table.add_column(name, justify="right", no_wrap=True)
    for v in found.values.values():
        s = v.seasons
        if s is None:
            continue
        best = [s.strongest.period, f"{s.strongest.autocorrelation:.2f}"] if s.strongest else ["-", "-"]
        table.add_row(v.name, *(_percent(season.explained) if season else "-" for season in (s.day, s.week)), *best)
    return table


def _others(found: Inspection) -> Table:
    table = _table("Set aside", "column", "why")
    for role in found.roles:
        if role.role not in ("value", "time", "key"):
            table.add_row(role.name, role.why)
    for name, why in found.proposal.left_out.items():
        table.add_row(name, f"no covariate: {why}")
    return table


def _places(found: Inspection) -> Table:
    table = _table("Where to look", "what", "when", *(["series"] if found.readings.keys.column else []), "found")

    def add(what: str, when: str, series: str, text: str) -> None:
        table.add_row(*([what, when, series, text] if found.readings.keys.column else [what, when, text]))

    for gap in found.steps.longest:
        missing = f"about {gap.steps + 1:,} times the median" if _irregular(found) else f"{gap.steps:,} steps missing"
        add("pause" if _irregular(found) else "gap", gap.start, gap.series, f"{missing}, until {gap.end}")
    each = 1 if len(found.values) > 3 else None  # JSON has the others
    for v in found.values.values():
        for location in v.first_outliers[:each]:
            more = f" (the first of {v.outliers:,})" if location is v.first_outliers[0] and v.outliers > 1 else ""
            add(
                f"{v.name} outlier",
                location.time,
                location.series,
                f"{number(location.value)}, usual {number(location.usual)}{more}",
            )
        for shift in v.shifts[:each]:
            add(
                f"{v.name} level",
                shift.time,
                shift.series,
                f"{number(shift.before)} before, {number(shift.after)} after",
            )
    return table


def _irregular(found: Inspection) -> bool:
    """Whether it is proposed to be trained without a step."""
    return found.proposal.config.data.step == "0"


def _table(title: str, *columns: str) -> Table:
    """Without frames, so that it fits a narrow terminal; the first column is bold."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold")
    table.box, table.pad_edge, table.padding = SIMPLE_HEAD, False, (0, 1, 0, 0)
    for i, name in enumerate(columns):
        table.add_column(name, style="bold" if i == 0 else None)
    return table


def number(value: float) -> str:
    """Four figures, thousands apart."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _range(sizes: list[int]) -> str:
    return f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"


def _long(ms: int) -> str:
    days = ms / 86_400_000
    return f"{days:,.0f} days" if days >= 2 else f"{ms / 3_600_000:,.1f} hours"
