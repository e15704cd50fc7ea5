"""The picture of gaps: which readings came, which values they hold, how far they lie apart."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tidecast.service.timestamps import format_duration
from tidecast.training.inspection.columns import Floats, Int64
from tidecast.training.inspection.findings import LONG_GAP
from tidecast.training.inspection.inspect import Inspection
from tidecast.training.inspection.plot_style import ACCENT, BAND, column, spans, when

HEAT_ROWS, HEAT_BINS, IRREGULAR_BINS = 30, 240, 60


def gaps(found: Inspection) -> Figure:
    """Which readings came and which values they hold, over time; and how far readings lie apart."""
    shown, ts = spans(found)[::-1][:HEAT_ROWS], found.readings.ts  # those of fewest readings: they have the gaps
    irregular, many = found.proposal.config.data.step == "0", len(found.readings.keys.names)
    edges = bins(found, IRREGULAR_BINS if irregular else HEAT_BINS)
    counts = np.stack([np.histogram(ts[at], edges)[0] for _, at in shown]).astype(np.float64)
    columns = list(found.values)[:HEAT_ROWS]
    known = np.stack([np.histogram(ts[np.isfinite(column(found, name))], edges)[0] for name in columns])
    if irregular:  # there is no regular step: compared with the usual number
        due, of_all = _usual(counts), _usual(np.histogram(ts, edges)[0][None])
    else:
        due = np.diff(edges)[None] / found.steps.step_ms
        of_all = many * due
    series, values = counts / due, known / of_all
    of = "of the usual number" if irregular else "of those due"
    few = f": the {len(shown)} of {many:,} series that have the fewest" if many > len(shown) else ""
    heights = [0.28 * len(shown) + 0.5, 0.28 * len(columns) + 0.5, 2.4]
    figure = Figure(figsize=(12, sum(heights) + 1.6), layout="constrained")
    axes = figure.subplots(3, 1, gridspec_kw={"height_ratios": heights})
    colours = LinearSegmentedColormap.from_list("present", [ACCENT, "#f3d9a8", "#dfe9f5", BAND])
    picture = None
    left, right = when(edges[[0, -1]]).tolist()
    for axis, rows, labels, title in (
        (axes[0], series, [name for name, _ in shown], f"readings that came, {of}{few}"),
        (axes[1], values, columns, f"values that are there, {of}, by column"),
    ):
        picture = axis.imshow(np.clip(rows, 0, 1), aspect="auto", cmap=colours, vmin=0, vmax=1,
                              extent=(left, right, len(rows) - 0.5, -0.5), interpolation="nearest")  # fmt: skip
        axis.set_yticks(range(len(rows)), labels if rows is values or many > 1 else [""])
        axis.tick_params(axis="y", length=0)
        axis.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axis.grid(visible=False)
        axis.grid(which="minor", axis="y", color="white", lw=2, alpha=1)
        axis.tick_params(which="minor", length=0)
        axis.xaxis_date()
        axis.set_title(title)
    assert picture is not None
    figure.colorbar(picture, ax=axes[:2].tolist(), format=lambda share, _: f"{100 * share:.0f} %",
                    aspect=6 * sum(heights[:2]), pad=0.01)  # fmt: skip
    _differences(axes[2], found)
    return figure


def bins(found: Inspection, most: int) -> Int64:
    """[bins + 1] edges, ms. A bin is of whole steps, or bins would differ in how many readings are due."""
    step, first, last = found.steps.step_ms, int(found.readings.ts.min()), int(found.readings.ts.max())
    steps = max(2, -(-(last - first) // step) + 1)
    each = -(-steps // most)
    edges = first - (step + 1) // 2 + np.arange(-(-steps // each) + 1, dtype=np.int64) * each * step
    edges[-1] = edges[0] + steps * step
    return edges


def _usual(counts: Floats) -> Floats:
    """[series, 1] the median number of readings in the bins that have any."""
    return np.array([[float(np.median(row[row > 0]))] for row in counts])


def _differences(axis: Axes, found: Inspection) -> None:
    """How far readings of one series lie apart, in steps."""
    apart = np.concatenate([np.diff(found.readings.ts[at]) for _, at in found.readings.spans()]) / found.steps.step_ms
    top = max(2.0, float(apart.max()))
    whole = top <= 60 and found.steps.irregular < 0.05
    if top <= 60:
        edges = np.arange(0.5, np.ceil(top) + 1.5) if whole else np.linspace(0, np.ceil(top), 80)
    else:
        edges = np.geomspace(max(0.05, float(apart.min()) * 0.9), top * 1.05, 80)
        axis.set_xscale("log")
    counts, edges = np.histogram(apart, edges)
    if whole:
        axis.set_xlim(0.5, float(np.ceil(apart.max())) + 0.5)
    middle, wide = (edges[:-1] + edges[1:]) / 2, np.diff(edges) * (0.6 if whole else 1.0)
    axis.bar(middle, counts, wide, color=BAND, edgecolor="white", lw=0.5)
    if top > LONG_GAP:
        axis.axvline(LONG_GAP + 1, color=ACCENT, lw=1.2)
        axis.annotate(" beyond: the series starts again", (LONG_GAP + 1, 0.9), xycoords=("data", "axes fraction"),
                      color=ACCENT, fontsize=9)  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(0.7, None)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if top <= 12:
        axis.set_xticks(range(1, int(np.ceil(apart.max())) + 1))
    axis.set_xlabel(f"steps of {format_duration(found.steps.step_ms)} between a reading and the next of its series")
    axis.set_title("how many lie how far apart")
