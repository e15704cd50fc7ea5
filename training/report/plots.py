"""The plots in a model directory: forecast against actual, error by lead, the training curve."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tidecast.training.config import Config
from tidecast.training.evaluation.evaluate import Evaluation, MethodScores, Track
from tidecast.training.fit.loop import History
from tidecast.training.report.tables import shown_leads

mpl.use("agg")  # files only; a server has no display

INK, BAND, ACTUAL, ACCENT = "#1f4e8c", "#7fa8d9", "#222222", "#c8553d"
OTHERS = ("#8a8a8a", "#b58b2a", "#4b8f5c", "#8a5a9e", "#3a9aa8", "#c8553d")
SHOWN_STEPS = 240
SHOWN_TARGETS = 4
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"}  # fmt: skip


def save_plots(directory: Path, config: Config, found: list[Track], evaluation: Evaluation, history: History) -> None:
    """Write `forecast.png`, `error_by_lead.png` and `training.png` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        _forecast(config, found, evaluation).savefig(directory / "forecast.png", dpi=130)
        first = dict(list(evaluation.scores.items())[:1])
        _error_by_lead(config, first, {}).savefig(directory / "error_by_lead.png", dpi=130)
        _training(history).savefig(directory / "training.png", dpi=130)


def save_measures(
    directory: Path, config: Config, scores: dict[str, dict[str, MethodScores]], units: dict[str, str | None]
) -> list[Path]:
    """Write `error_by_lead.png` and `coverage_by_lead.png` of every method; the first one is drawn as ours."""
    directory.mkdir(parents=True, exist_ok=True)
    shown = dict(list(scores.items())[:SHOWN_TARGETS])
    paths = [directory / "error_by_lead.png", directory / "coverage_by_lead.png"]
    with mpl.rc_context(STYLE):
        _error_by_lead(config, shown, units).savefig(paths[0], dpi=130)
        _coverage_by_lead(config, shown).savefig(paths[1], dpi=130)
    return paths


def _moments(ts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[datetime]:
    return [datetime.fromtimestamp(int(t) / 1000, UTC) for t in ts]


def _forecast(config: Config, found: list[Track], evaluation: Evaluation) -> Figure:
    """The first target of the first series, at its first and last lead."""
    track = max(found, key=lambda t: len(t.ts))
    leads = sorted({1, config.model.horizon})
    target = config.targets[0]
    unit = config.data.units.get(target)
    figure = Figure(figsize=(11, 3.2 * len(leads) + 0.4), layout="constrained")
    axes = figure.subplots(len(leads), 1, sharex=True, squeeze=False)[:, 0]
    center = min(range(len(config.model.quantiles)), key=lambda i: abs(config.model.quantiles[i] - 0.5))
    for axis, lead in zip(axes, leads, strict=True):
        last = len(track.ts) - lead
        at = np.arange(max(0, last - SHOWN_STEPS), last)
        when = _moments(
            track.ts[at] + lead * (track.ts[1] - track.ts[0])
            if config.step_ms == 0
            else track.ts[at] + lead * config.step_ms
        )
        y = track.y[at, lead - 1, 0]
        axis.fill_between(when, y[:, 0], y[:, -1], color=BAND, alpha=0.35, lw=0,
                          label=f"{100 * evaluation.intervals[target].level:g} % interval")  # fmt: skip
        if len(config.model.quantiles) >= 5:
            axis.fill_between(when, y[:, 2], y[:, -3], color=BAND, alpha=0.5, lw=0)
        axis.plot(when, y[:, center], color=INK, lw=1.3, label="forecast (median)")
        axis.plot(when, track.truth[at, lead - 1, 0], color=ACTUAL, lw=1.0, ls=(0, (3, 1.5)), label="what happened")
        axis.set_title(f"{track.series}: {target}, forecast {lead} step{'s' if lead > 1 else ''} earlier")
        axis.set_ylabel(f"{target}{f' ({unit})' if unit else ''}")
    axes[0].legend(loc="upper right", ncols=3, frameon=False)
    return figure


def _error_by_lead(config: Config, shown: dict[str, dict[str, MethodScores]], units: dict[str, str | None]) -> Figure:
    """A panel for each target, a line for each method."""
    figure = Figure(figsize=(6.4 * len(shown), 4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (target, methods) in zip(panels, shown.items(), strict=True):
        for name, scores, style in _styled(methods):
            _by_lead(axis, config, scores.mae, label=name, **style)
        axis.set_title(f"{target}: mean absolute error on test rows")
        axis.set_ylabel(units.get(target) or "")
        axis.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    return figure


def _coverage_by_lead(config: Config, shown: dict[str, dict[str, MethodScores]]) -> Figure:
    """The coverage of each interval by lead, with a thin line at its nominal level; a column for each target."""
    levels = len(next(iter(next(iter(shown.values())).values())).intervals)
    figure = Figure(figsize=(6.4 * len(shown), 0.6 + 2.4 * levels), layout="constrained")
    panels = figure.subplots(levels, len(shown), squeeze=False, sharex=True)
    for column, (target, methods) in zip(panels.T, shown.items(), strict=True):
        for k, axis in enumerate(column):
            for name, scores, style in _styled(methods):
                _by_lead(axis, config, [100 * c for c in scores.intervals[k].coverage], label=name, **style)
            level = 100 * next(iter(methods.values())).intervals[k].level
            axis.axhline(level, color=ACTUAL, lw=0.9, ls=(0, (4, 2)))
            axis.set_title(f"{target}: what the {level:g} % interval held")
            axis.set_ylabel("per cent")
            axis.set_xlabel("steps ahead" if k == levels - 1 else "")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _styled(methods: dict[str, MethodScores]) -> Iterator[tuple[str, MethodScores, dict[str, Any]]]:
    """The first method is ours."""
    for i, (name, scores) in enumerate(methods.items()):
        style = (
            {"color": INK, "lw": 2.2, "zorder": 3} if i == 0 else {"color": OTHERS[(i - 1) % len(OTHERS)], "lw": 1.2}
        )
        yield name, scores, style


def _by_lead(axis: Axes, config: Config, values: list[float], **style: Any) -> None:
    leads = np.arange(1, config.model.horizon + 1)
    few = len(leads) <= 8
    axis.plot(leads, values, marker="o" if few else None, **style)
    axis.set_xlabel("steps ahead")
    axis.set_xticks(leads if few else shown_leads(config.model.horizon))


def _training(history: History) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis: Axes = figure.subplots()
    for member, (train, validation, best) in enumerate(
        zip(history.train, history.validation, history.best_epoch, strict=True)
    ):
        epochs = np.arange(1, len(validation) + 1)
        axis.plot(
            np.arange(1, len(train) + 1), train, color=INK, lw=1.2, label="training rows" if member == 0 else None
        )
        axis.plot(epochs, validation, color=ACCENT, lw=1.6, label="validation rows" if member == 0 else None)
        if 0 < best <= len(validation):
            axis.plot(best, validation[best - 1], "o", color=ACCENT, label="kept" if member == 0 else None)
    axis.set_title("quantile loss, in units of what the linear path leaves over")
    axis.set_xlabel("epoch")
    axis.legend(frameon=False)
    return figure
