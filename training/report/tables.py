"""What a person is shown of a model: tables, plots, and the model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tidecast.service.model.spec import ModelSpec
from tidecast.service.terminal import fitted
from tidecast.service.timestamps import format_duration, format_time
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.evaluation.evaluate import LINEAR, MODEL, Evaluation, MethodScores
from tidecast.training.evaluation.metrics import mean
from tidecast.training.export.parity import Parity
from tidecast.training.fit.loop import History
from tidecast.training.report.data_section import card_lines

NOT_A_TERMINAL_WIDTH = 120  # a file or a pipe


def shown_leads(horizon: int) -> list[int]:
    """At most four leads to print, the first and the last among them."""
    return sorted({1, round(1 + (horizon - 1) / 3), round(1 + 2 * (horizon - 1) / 3), horizon})


def rows(
    evaluation: Evaluation, config: Config, target: str, leads: list[int] | None = None
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of one target's table: MAE by lead, means over all leads of the others, and the model's gain."""
    leads = leads or shown_leads(config.model.horizon)
    methods = evaluation.scores[target]
    ours = float(mean(methods[MODEL].mae))
    body = []
    for name, scores in methods.items():
        theirs = float(mean(scores.mae))
        label = f"{name} ({evaluation.season})" if name == "seasonal naive" else name
        gain = "" if name == MODEL or theirs == 0 else f"{100 * (1 - ours / theirs):+.1f} %"
        body.append([label, *scores_row(scores, leads), gain])
    return ["method", *scores_head(config, leads), "our gain"], body


def scores_head(config: Config, leads: list[int]) -> list[str]:
    """The columns of `scores_row`."""
    return [*(f"MAE +{_ahead(config, lead)}" for lead in leads), "MAE mean", "RMSE mean", "CRPS mean"]


def scores_row(scores: MethodScores, leads: list[int]) -> list[str]:
    """One method's cells."""
    means = [float(mean(values)) for values in (scores.mae, scores.rmse, scores.crps)]
    return [number(value) for value in [*(scores.mae[lead - 1] for lead in leads), *means]]


def interval_rows(evaluation: Evaluation, target: str) -> tuple[list[str], list[list[str]]]:
    """(head, rows): coverage and width of each interval, means over the leads, and the linear autoregression's."""
    pairs = zip(evaluation.scores[target][MODEL].intervals, evaluation.scores[target][LINEAR].intervals, strict=True)
    head = ["interval", "held", "width", "held, linear", "width, linear"]
    body = []
    for ours, linear in pairs:
        cells = [
            cell
            for one in (ours, linear)
            for cell in (f"{100 * float(mean(one.coverage)):.1f} %", number(float(mean(one.width))))
        ]
        body.append([f"{100 * ours.level:g} %", *cells])
    return head, body


def print_tables(
    evaluation: Evaluation, config: Config, *, leads: list[int] | None = None, intervals: bool = False
) -> None:
    """One table on stdout for each target, in its own units or scaled; with `intervals` a second one."""
    console = stdout_console()
    for target, widest in evaluation.intervals.items():
        unit = unit_of(evaluation, config, target)
        covered = f"{100 * float(mean(widest.coverage)):.1f} %"
        head, body = rows(evaluation, config, target, leads)
        table = grid(
            f"{target}{f' in {unit}' if unit else ''}: {evaluation.rows:,} test readings",
            head,
            body,
            f"The {100 * widest.level:g} % interval held {covered} of what happened.",
        )
        console.print(fitted(table, console))
        if intervals:
            console.print(grid(f"{target}: intervals, mean of all leads", *interval_rows(evaluation, target)))


def grid(title: str, head: list[str], body: list[list[str]], caption: str | None = None) -> Table:
    """A table for the terminal; our own row stands out. A head is broken before its last word, so that all fit."""
    table = Table(title=title, caption=caption)
    for i, name in enumerate(head):
        table.add_column("\n".join(name.rsplit(" ", 1)), justify="left" if i == 0 else "right", overflow="fold")
    for line in body:
        table.add_row(*line, style="bold" if line[0] == MODEL else None)
    return table


def stdout_console() -> Console:
    """As wide as the terminal; elsewhere wide enough for every table."""
    console = Console()
    return console if console.is_terminal else Console(width=NOT_A_TERMINAL_WIDTH)


def unit_of(evaluation: Evaluation, config: Config, target: str) -> str | None:
    """What the target's numbers are in."""
    return "standard deviations of training rows" if evaluation.scaled else config.data.units.get(target)


def write_card(
    directory: Path, spec: ModelSpec, config: Config, dataset: Dataset, history: History, evaluation: Evaluation,
    parity: list[Parity], limits: NDArray[np.float64], adapt: str | None = None,
) -> None:  # fmt: skip
    """`MODEL_CARD.md`: what the model is, what it was made of, how good it is, and what it is not for.

    `limits` [features, 2] are in raw units: the graph clips what lies outside. `adapt`: how `model.adapt` was decided.
    """
    model, data = config.model, config.data
    step = "irregular" if spec.step_ms == 0 else format_duration(spec.step_ms)
    lines = [
        f"# {spec.name}",
        "",
        f"A stateful {model.cell.upper()} ({model.layers} x {model.hidden}, {config.fit.members} member(s)) that "
        f"corrects a ridge autoregression. It reads one reading at a time, remembers {spec.state_size} numbers for "
        f"each series, and forecasts {', '.join(spec.targets)} 1 to {spec.horizon} steps of {step} ahead as quantiles "
        f"{', '.join(f'{q:g}' for q in spec.quantiles)}.",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{spec.id}` |",
        f"| features | {', '.join(spec.features)} (raw units; missing values are allowed) |",
        f"| trusted after | {spec.warmup_steps} steps of a series (`warm` in its forecasts) |",
        f"| training rows | {spec.training_data.rows:,} readings, {format_time(spec.training_data.start)} to "
        f"{format_time(spec.training_data.end)} |",
        f"| validation rows | until {format_time(config.validate_until_ms)}; what follows is test |",
        f"| data | sha256 `{spec.training_data.sha256[:16]}…` |",
        f"| trained | {history.seconds:.0f} s, best epoch {', '.join(map(str, history.best_epoch))}, "
        f"seed {config.fit.seed} |",
        "",
        *([f"{adapt} (`model.adapt`).", ""] if adapt is not None else []),
        *card_lines(dataset, config, limits),
        "",
        "## How good it is",
        "",
        "On test rows, each forecast made before its truth was seen, in original units. Seasonal naive repeats the "
        "season that was best on validation rows; the linear autoregression sees the same past values as the model.",
    ]
    for target, intervals in evaluation.intervals.items():
        head, body = rows(evaluation, config, target)
        unit = data.units.get(target)
        lines += ["", f"### {target}{f' ({unit})' if unit else ''}", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(line) for line in body]
        held, wide = float(mean(intervals.coverage)), float(mean(intervals.width))
        lines += [
            "",
            f"The {100 * intervals.level:g} % interval held {100 * held:.1f} % of what happened, "
            f"at a mean width of {number(wide)}.",
        ]
    lines += [
        "",
        "![forecasts](plots/forecast.png) ![error by lead](plots/error_by_lead.png) ![training](plots/training.png)",
        "",
        "## The export",
        "",
        "The file was written only after torch's window pass, torch's folded steps and onnxruntime's folded steps "
        "agreed (largest relative difference, 10 % of the values missing):",
        "",
        "| batch | steps carried | window to fold | fold to onnxruntime |",
        "|---|---|---|---|",
        *(f"| {p.batch} | {p.steps} | {p.window_to_fold:.1e} | {p.fold_to_onnx:.1e} |" for p in parity),
        "",
        "## Limits",
        "",
        "It knows only its training rows: values beyond the limits above are clipped to them, "
        "and the intervals follow a sudden change only after some misses. `config.toml` in this directory trains "
        "it again; `tidecast evaluate --model DIR` prints the table again.",
        "",
    ]
    (directory / "MODEL_CARD.md").write_text("\n".join(lines), encoding="utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ahead(config: Config, lead: int) -> str:
    return format_duration(lead * config.step_ms) if config.step_ms else f"{lead} steps"


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
