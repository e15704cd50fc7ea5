"""Three pictures of a file: the series with its outliers and shifts, its seasons, its gaps."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tidecast.service.timestamps import format_duration
from tidecast.training.inspection.columns import Floats, Int64
from tidecast.training.inspection.findings import LONG_GAP
from tidecast.training.inspection.gap_plot import gaps
from tidecast.training.inspection.inspect import Inspection, count
from tidecast.training.inspection.plot_style import ACCENT, BAND, GREY, INK, column, label, spans, thousands, when
from tidecast.training.inspection.seasons import DAY, WEEK, autocorrelation, moving_level, on_grid

mpl.use("agg")  # files only; a server has no display

PANELS, BINS = 6, 900
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONDAY = 4 * DAY  # 1970-01-05, the first Monday


def save_plots(found: Inspection, directory: Path) -> list[Path]:
    """Write `series.png`, `seasons.png` and `gaps.png` into `directory`; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    out = []
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
                         "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"}):  # fmt: skip
        for name, figure in (("series", _series(found)), ("seasons", _seasons(found)), ("gaps", gaps(found))):
            out.append(directory / f"{name}.png")
            figure.savefig(out[-1], dpi=130)
    return out


def _panels(found: Inspection) -> list[tuple[str, str, slice]]:
    """(column, series, where): each target in up to three series, then other columns in the first."""
    sizes = spans(found)
    data = found.proposal.config.data
    panels = [(name, key, at) for name in data.targets for key, at in sizes[:3]]
    panels += [(name, *sizes[0]) for name in found.values if name not in data.targets]
    return panels[:PANELS]


def _series(found: Inspection) -> Figure:
    panels = _panels(found)
    config = found.proposal.config
    figure = Figure(figsize=(12, 2.1 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    many = len(found.readings.keys.names) > 1
    end = int(found.readings.ts.max())
    for axis, (name, key, at) in zip(axes, panels, strict=True):
        ts, x = found.readings.ts[at], column(found, name)[at]
        _envelope(axis, ts, x)
        odd = [i - at.start for i in found.values[name].outlier_rows if at.start <= i < at.stop]
        if odd:
            axis.plot(
                when(ts[odd]), x[odd], "o", ms=6, mfc="none", mec=ACCENT, mew=1.3, label=count(len(odd), "outlier")
            )
        _without_extremes(axis, x)
        step = found.steps.step_ms
        for gap in np.flatnonzero(np.diff(ts) > (LONG_GAP + 1.5) * step).tolist():
            axis.axvspan(*when(ts[[gap, gap + 1]]), color=ACCENT, alpha=0.15, lw=0)
        axis.set_title(f"{label(found, name)}{f', {key}' if many else ''}")
        axis.xaxis_date()
        axis.yaxis.set_major_formatter(thousands)
        for start, stop, shade in (
            (config.train_until_ms, config.validate_until_ms, 0.07), (config.validate_until_ms, end, 0.14),
        ):  # fmt: skip
            axis.axvspan(*when(np.array([start, stop])), color="#000000", alpha=shade, lw=0, zorder=0)
        if odd:
            axis.legend(loc="upper right", bbox_to_anchor=(1, 1.22), frameon=False)
    drawn, series = {name for name, _, _ in panels}, len(found.readings.keys.names)
    hidden = [name for name in found.values if name not in drawn]
    notes = [f"not drawn: {', '.join(hidden[:8])}{', …' if len(hidden) > 8 else ''}"] if hidden else []
    if series > (shown := len({key for _, key, _ in panels})):
        notes.append(f"{shown} of {series:,} series are drawn, those of most readings")
    figure.supxlabel("; ".join(notes), x=0.01, ha="left", color=GREY, fontsize=8.5)
    top = axes[0]
    for moment, text in ((found.readings.ts.min(), "training"), (config.train_until_ms, "validation"),
                         (config.validate_until_ms, "test")):  # fmt: skip
        top.annotate(text, (when(np.array([moment]))[0], 0.02), xycoords=("data", "axes fraction"),
                     xytext=(3, 1), textcoords="offset points", color=GREY, fontsize=8.5)  # fmt: skip
    return figure


def _envelope(axis: Axes, ts: Int64, x: Floats) -> None:
    """The readings as a line, or where they are too many, lowest to highest and the median of each of BINS bins."""
    if len(ts) <= 2 * BINS:
        axis.plot(when(ts), x, color=INK, lw=0.9)
        return
    edges = np.linspace(int(ts[0]), int(ts[-1]) + 1, BINS + 1)
    place = np.searchsorted(ts, edges)
    low, middle, high = (np.full(BINS, np.nan) for _ in range(3))
    for i in range(BINS):
        part = x[place[i] : place[i + 1]]
        part = part[np.isfinite(part)]
        if len(part):
            low[i], middle[i], high[i] = part.min(), np.median(part), part.max()
    at = when(((edges[:-1] + edges[1:]) / 2).astype(np.int64))
    axis.fill_between(at, low, high, color=BAND, alpha=0.5, lw=0)
    axis.plot(at, middle, color=INK, lw=0.9)


def _without_extremes(axis: Axes, x: Floats) -> None:
    """One absurd reading must not press all others into a line: it is drawn at the edge, and named."""
    known = x[np.isfinite(x)]
    if not len(known):
        return
    low, high = np.percentile(known, [0.1, 99.9])
    reach = 3 * (high - low)
    for beyond, text, y in ((known > high + reach, "highest", 0.86), (known < low - reach, "lowest", 0.06)):
        if not beyond.any() or reach == 0:
            continue
        inside = known[(known <= high + reach) & (known >= low - reach)]
        pad = 0.08 * float(np.ptp(inside))
        axis.set_ylim(float(inside.min()) - pad, float(inside.max()) + pad)
        value = known.max() if text == "highest" else known.min()
        axis.annotate(f"{int(beyond.sum())} beyond this axis, the {text} {value:,.5g}", (0.01, y),
                      xycoords="axes fraction", color=ACCENT, fontsize=9)  # fmt: skip


def _seasons(found: Inspection) -> Figure:
    data = found.proposal.config.data
    names = data.targets[:3]
    key, at = spans(found)[0]
    ts, step = found.readings.ts[at], found.steps.step_ms
    figure = Figure(figsize=(13, 3.3 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), 3, squeeze=False, gridspec_kw={"width_ratios": [1.15, 1.6, 1.35]})
    many = f", {key}" if len(found.readings.keys.names) > 1 else ""
    for row, name in zip(axes, names, strict=True):
        x, about = _about_level(ts, column(found, name)[at], step)
        if step < DAY:
            _profile(row[0], ts % DAY, x, DAY, min(96, max(2, DAY // step)))
            row[0].set_xticks(np.arange(0, 25, 6) * 3_600_000, [f"{h:02d}:00" for h in range(0, 25, 6)])
            row[0].set_title(f"{label(found, name)}{many}: by time of day (UTC)")
        else:
            month = ts.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64) % 12
            _profile(row[0], month, x, 12, 12)
            row[0].set_xticks(np.arange(12) + 0.5, list("JFMAMJJASOND"))
            row[0].set_title(f"{label(found, name)}{many}: by month")
        row[0].set_ylabel(about)
        row[1].sharey(row[0])  # before it is drawn on, so that both fit
        _profile(row[1], (ts - MONDAY) % WEEK, x, WEEK, min(168, max(7, WEEK // step)))
        row[1].set_xticks((np.arange(7) + 0.5) * DAY, list(WEEKDAYS))
        row[1].grid(axis="x", visible=False)
        for day in range(1, 7):
            row[1].axvline(day * DAY, color="#000000", alpha=0.12, lw=0.8)
        row[1].set_title("by time of week")
        row[1].tick_params(labelleft=False)
        _autocorrelation(row[2], on_grid(ts, column(found, name)[at], step), step)
        row[0].yaxis.set_major_formatter(thousands)
    axes[0, 0].legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8.5)
    return figure


def _about_level(ts: Int64, x: Floats, step: int) -> tuple[Floats, str]:
    """The readings about the moving level over a week, so that a year's arch does not hide a day's wave."""
    if step >= DAY or int(ts[-1] - ts[0]) < 4 * WEEK or (week := WEEK // step) < 2:
        return x, ""
    grid = on_grid(ts, x, step)
    at = np.rint((ts - ts[0]) / step).astype(np.int64)
    level = moving_level(grid, week)
    return np.where(at < len(grid), x - level[np.minimum(at, len(grid) - 1)], np.nan), "above the mean of its week"


def _profile(axis: Axes, phase: Int64, x: Floats, period: int, bins: int) -> None:
    """Median, quartiles and the middle 90 % of the readings at each phase."""
    place = np.minimum(phase * bins // period, bins - 1)
    order = np.argsort(place, kind="stable")
    edges = np.searchsorted(place[order], np.arange(bins + 1))
    levels = np.full((5, bins), np.nan)
    for i in range(bins):
        part = x[order[edges[i] : edges[i + 1]]]
        part = part[np.isfinite(part)]
        if len(part):
            levels[:, i] = np.percentile(part, [5, 25, 50, 75, 95])
    at = (np.arange(bins) + 0.5) * period / bins
    axis.fill_between(at, levels[0], levels[4], color=BAND, alpha=0.3, lw=0, label="middle 90 %")
    axis.fill_between(at, levels[1], levels[3], color=BAND, alpha=0.6, lw=0, label="middle 50 %")
    axis.plot(at, levels[2], color=INK, lw=1.6, label="median")
    axis.set_xlim(0, period)


def _autocorrelation(axis: Axes, grid: Floats, step: int) -> None:
    far = min(len(grid) // 3, 15 * DAY // step if step < DAY else 120)
    level = max(2, min(len(grid) // 8, 2 * WEEK // step if 16 * WEEK // step <= len(grid) else len(grid)))
    acf = autocorrelation(grid - moving_level(grid, level))[: far + 1]
    lags = np.arange(len(acf)) * step
    units = ((DAY, "days"), (3_600_000, "hours"), (60_000, "minutes"), (1_000, "seconds"), (1, "ms"))
    unit = next(unit for unit in units if len(acf) * step >= 3 * unit[0] or unit[0] == 1)
    axis.axhline(0, color=GREY, lw=0.8)
    axis.plot(lags / unit[0], acf, color=INK, lw=1.2)
    for period, text in ((DAY, "1 day"), (WEEK, "7 days")):
        if period % step == 0 and 1 < period // step < len(acf):
            value = acf[period // step]
            axis.plot(period / unit[0], value, "o", color=ACCENT, ms=5)
            axis.annotate(f"{text}: {value:.2f}", (period / unit[0], value), xytext=(5, 4),
                          textcoords="offset points", color=ACCENT, fontsize=8.5,
                          bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1})  # fmt: skip
    axis.set_ylim(min(-0.3, float(acf.min()) - 0.1), 1.12)
    axis.set_xlim(0, None)
    axis.set_xlabel(f"{unit[1]} apart")
    axis.set_title(f"autocorrelation about the level over {format_level(level * step)}")


def format_level(ms: int) -> str:
    """A duration in the largest unit of which it is at least two."""
    for unit, name in ((DAY, "days"), (3_600_000, "hours"), (60_000, "minutes")):
        if ms >= 2 * unit:
            return f"{round(ms / unit, 1):g} {name}"
    return format_duration(ms)
