"""Several models side by side: each as it is served, scored on the same test rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from tidecast.service.errors import UsageError
from tidecast.service.model.session import Model
from tidecast.training.config import Config, read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.evaluation.evaluate import MODEL, Evaluation, MethodScores, Track, evaluate, tracks
from tidecast.training.evaluation.metrics import mean
from tidecast.training.report.tables import grid, number, scores_head, scores_row, shown_leads, stdout_console, unit_of

BEST = "*"


@dataclass(frozen=True, slots=True)
class Measured:
    """A model directory, evaluated."""

    label: str
    config: Config
    found: list[Track]
    evaluation: Evaluation


def measured(directory: Path, data: Path | None, *, scaled: bool, label: str = MODEL) -> Measured:
    """Run a model directory on `data`, or on the file it was trained on.

    Raises:
        TidecastError: the directory or the data cannot be used.
    """
    config = read_config(directory / "config.toml")
    model = Model.load(directory)
    if data is None and config.data.path is None:
        raise UsageError("the model's config has no data.path", do="Give the file with --data FILE.")
    file = data if data is not None else directory / str(config.data.path)
    dataset = load_dataset(config, file)
    for sentence in dataset.rows:
        print(f"{file}: {sentence}.", file=sys.stderr)
    found = tracks(model.step, model.initial_state, config, dataset)
    return Measured(label, config, found, evaluate(found, config, dataset, scaled=scaled))


def side_by_side(directories: list[Path], data: Path | None, *, scaled: bool) -> list[Measured]:
    """Each model directory, evaluated.

    Raises:
        UsageError: two of them do not forecast the same: targets, horizon or test rows differ.
    """
    labels = _labels(directories)
    configs = [read_config(d / "config.toml") for d in directories]
    for config, label in zip(configs[1:], labels[1:], strict=True):
        _refuse(labels[0], label, different_task(configs[0], config))
    out: list[Measured] = []
    for directory, label in zip(directories, labels, strict=True):
        out.append(measured(directory, data, scaled=scaled, label=label))
        _refuse(labels[0], label, _different_rows(out[0], out[-1]))
    return out


def _refuse(first: str, other: str, difference: tuple[str, object] | None) -> None:
    if difference:
        what, got = difference
        raise UsageError(
            f"{first} and {other} cannot be compared: {what}",
            got=got,
            do="Compare models of the same targets, horizon and test rows.",
        )


def _labels(directories: list[Path]) -> list[str]:
    if len({d.resolve() for d in directories}) < len(directories):
        raise UsageError("the same model twice", got=[str(d) for d in directories], do="Name each directory once.")
    names = [d.resolve().name for d in directories]
    return names if len(set(names)) == len(names) else [str(d) for d in directories]


def different_task(a: Config, b: Config) -> tuple[str, object] | None:
    """What makes two models not comparable, and what each has; None where nothing does."""
    if a.targets != b.targets:
        return "their targets differ", (a.targets, b.targets)
    if a.model.horizon != b.model.horizon:
        return "their horizons differ", (a.model.horizon, b.model.horizon)
    if a.model.quantiles != b.model.quantiles:
        return "their quantiles differ", (a.model.quantiles, b.model.quantiles)
    return None


def _different_rows(first: Measured, other: Measured) -> tuple[str, object] | None:
    same = len(first.found) == len(other.found) and all(
        s.series == t.series and np.array_equal(s.ts, t.ts) and np.array_equal(s.truth, t.truth, equal_nan=True)
        for s, t in zip(_ordered(first.found), _ordered(other.found), strict=True)
    )
    starts = first.config.data.validate_until, other.config.data.validate_until
    return None if same else ("their test rows differ", starts)


def _ordered(found: list[Track]) -> list[Track]:
    return sorted(found, key=lambda t: (t.series, int(t.ts[0])))


def methods_of(models: list[Measured]) -> dict[str, dict[str, MethodScores]]:
    """target -> label -> scores: the models in the order given, then the first one's baselines."""
    out: dict[str, dict[str, MethodScores]] = {}
    for target, methods in models[0].evaluation.scores.items():
        out[target] = {m.label: m.evaluation.scores[target][MODEL] for m in models}
        out[target] |= {name: scores for name, scores in methods.items() if name != MODEL}
    return out


def print_comparison(models: list[Measured], leads: list[int] | None = None) -> None:
    """One table on stdout for each target; the best of each column is marked."""
    config, evaluation = models[0].config, models[0].evaluation
    leads = leads or shown_leads(config.model.horizon)
    console = stdout_console()
    for target, methods in methods_of(models).items():
        level = evaluation.intervals[target].level
        head = ["model", *scores_head(config, leads), f"{100 * level:g} % held", f"{100 * level:g} % width"]
        numbers = np.array([_row(scores, leads, level) for scores in methods.values()])  # [methods, columns]
        best = np.nanargmin(np.where(np.isfinite(numbers), numbers, np.inf), axis=0)
        body = []
        for i, (label, scores) in enumerate(methods.items()):
            widest = scores.intervals[0]
            cells = [*scores_row(scores, leads), f"{100 * float(mean(widest.coverage)):.1f} %"]
            cells = [f"{cell}{BEST if best[k] == i else ' '}" for k, cell in enumerate(cells)]
            body.append([label, *cells, number(float(mean(widest.width)))])
        unit = unit_of(evaluation, config, target)
        title = f"{target}{f' in {unit}' if unit else ''}: {evaluation.rows:,} test readings"
        console.print(grid(title, head, body, f"{BEST} the best of its column"))


def _row(scores: MethodScores, leads: list[int], level: float) -> list[float]:
    """What is compared: smaller is better, so coverage counts by its distance from the level."""
    means = [float(mean(values)) for values in (scores.mae, scores.rmse, scores.crps)]
    return [*(scores.mae[h - 1] for h in leads), *means, abs(float(mean(scores.intervals[0].coverage)) - level)]


def as_json(models: list[Measured]) -> bytes:
    """Everything, by model and lead."""
    return msgspec.json.encode({"models": {m.label: m.evaluation for m in models}})
