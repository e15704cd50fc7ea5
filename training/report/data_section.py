"""The model card's section on the data: what was found in the file, where, and what was done about it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tidecast.service.timestamps import format_duration, format_time
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.outliers import WINDOW
from tidecast.training.data.quality import SHOWN, DataQuality

COLUMNS = 20  # where each column is a series: so many have their range listed


def card_lines(dataset: Dataset, config: Config, limits: NDArray[np.float64]) -> list[str]:
    """The card's section on the data, in Markdown.

    Args:
        dataset: as it was trained on.
        config: as it was in force.
        limits: [features, 2] raw units: what lies outside is clipped by the graph.
    """
    found, absent = _findings(dataset, config)
    step = f"a step of {format_duration(config.step_ms)}" if config.step_ms else "irregular steps"
    return [
        "## The data",
        "",
        f"{dataset.readings:,} readings of {dataset.quality.series:,} series with {step}. Lowest, median and highest "
        "are of training rows, as they were trained on; when it serves, the graph clips values to its limits.",
        "",
        *_table(*_features(dataset, config, limits)),
        *_columns(dataset, config),
        *(["", *_table(["found", "how many", "what was done"], found)] if found else []),
        *(["", f"Looked for and not found: {', '.join(absent)}."] if absent else []),
        *_outliers(dataset, config),
        *(["", f"Of the rows of the file, by [input]: {'; '.join(dataset.rows)}."] if dataset.rows else []),
    ]


def _features(dataset: Dataset, config: Config, limits: NDArray[np.float64]) -> tuple[list[str], list[list[str]]]:
    head = ["feature", "role", "unit", "lowest", "median", "highest", "limits", "missing", "in a row", "outliers"]
    fills = config.data.missing == "fill"
    body = []
    for f, name in enumerate(config.features):
        of, missing, outliers = dataset.quality.ranges[name], dataset.missing[name], dataset.outliers[name]
        body.append([
            name, "target" if name in config.targets else "covariate", config.data.units.get(name, ""),
            *(_number(value) for value in (of.low, of.median, of.high)),
            f"{_number(float(limits[f, 0]))} to {_number(float(limits[f, 1]))}",
            f"{missing:,} ({_share(missing, dataset.readings)})" if missing else "-",
            f"{dataset.quality.in_a_row[name]:,}" if missing else "-",
            f"{outliers:,}" if outliers else "-",
            *([f"{dataset.quality.filled[name]:,}"] if fills else []),
        ])  # fmt: skip
    return [*head, "filled"] if fills else head, body


def _columns(dataset: Dataset, config: Config) -> list[str]:
    """Where each column is a series of one feature: the range of each."""
    if not config.each_column:
        return []
    ranges = list(dataset.quality.of_series.items())
    body = [[name, *(_number(value) for value in (r.low, r.median, r.high))] for name, r in ranges[:COLUMNS]]
    more = [f"and {len(ranges) - COLUMNS:,} more", "", "", ""]
    return ["", *_table(["series", "lowest", "median", "highest"], [*body, more] if len(ranges) > COLUMNS else body)]


def _findings(dataset: Dataset, config: Config) -> tuple[list[list[str]], list[str]]:
    """(rows of what, how many, what was done; what there is none of)."""
    of, max_gap = dataset.quality, config.data.max_gap
    missing, outliers = sum(dataset.missing.values()), sum(dataset.outliers.values())
    masked = "masked: the graph takes its own forecast of a target, and a covariate's last value"
    if config.data.missing == "fill":
        masked = (
            f"in training rows the last value was carried forward, at most {max_gap} steps "
            f"({sum(of.filled.values()):,} values, those of silent steps among them); the rest and later rows {masked}"
        )
    longest, long = "", False
    if of.longest is not None:
        longest = f", the longest {of.longest.steps:,} after {_place(of.longest.series, of.longest.after, of)}"
        long = of.longest.steps > max_gap
    constant = [_constant(name, of) for name, found in of.ranges.items() if found.constant]
    never = [name for name, found in of.ranges.items() if np.isnan(found.low)]
    treated = {"keep": "left as they were", "clip": "clipped to what the filter allows", "mask": "made missing"}
    gaps = [
        (f"gaps of at most {max_gap} steps", of.gaps,
         f"{of.gaps:,}, {dataset.silent_steps:,} steps in all{'' if long else longest}",
         "silent steps, with every value missing"),
        (f"gaps of more than {max_gap} steps", dataset.restarts,
         f"{dataset.restarts:,}{longest if long else ''}", "the series starts again, cold"),
        ("readings off their step", of.irregular, f"{of.irregular:,} by more than a tenth of it",
         "each taken as the next step, at its own time"),
    ]  # fmt: skip
    if not config.step_ms:
        gaps = [("time between readings", 1, _apart(dataset), "each step is as long as it is")]
    rows = [
        ("missing values", missing, f"{missing:,} of {dataset.readings * len(config.features):,}", masked),
        *gaps,
        ("second readings for one time", dataset.duplicates,
         f"{dataset.duplicates:,} ({of.contradictions:,} with other values)", "the first in the file was kept"),
        ("rows out of order", of.unsorted, f"{of.unsorted:,}", "sorted by time; a stream would drop them as late"),
        ("constant in training rows", len(constant), "; ".join(constant), "kept, though they teach nothing"),
        ("no value in training rows", len(never), ", ".join(never), "kept, though they teach nothing"),
        ("outliers in training rows", outliers, f"{outliers:,}", treated[config.data.outliers]),
    ]  # fmt: skip
    return [[what, text, done] for what, many, text, done in rows if many], [
        what for what, many, *_ in rows if not many
    ]


def _apart(dataset: Dataset) -> str:
    apart = np.concatenate([np.diff(s.ts) for s in dataset.stretches]) / 1000
    if not len(apart):
        return "one reading of each series"
    shortest, median, longest = np.percentile(apart, [0, 50, 100]).tolist()
    return f"{_number(shortest)} to {_number(longest)} s, median {_number(median)} s"


def _constant(name: str, of: DataQuality) -> str:
    series = of.ranges[name].constant
    if len(series) == of.series:
        return name
    return f"{name} of {', '.join(series[:SHOWN])}" + (
        f" and {len(series) - SHOWN:,} more" if len(series) > SHOWN else ""
    )


def _outliers(dataset: Dataset, config: Config) -> list[str]:
    of = dataset.quality
    body = [
        [feature, _place(o.series, o.ts, of), _number(o.value),
         "missing" if np.isnan(o.became) else "the same" if o.became == o.value else _number(o.became)]
        for feature in config.features
        for o in of.outliers.get(feature, [])
    ]  # fmt: skip
    if not body:
        return []
    first = f"the first {SHOWN} of each feature" if sum(dataset.outliers.values()) > len(body) else "all of them"
    return [
        "",
        f"Outliers, {first}: readings further than {config.data.outlier_threshold:g} robust deviations from the median "
        f"of their {WINDOW} steps (Hampel).",
        "",
        *_table(["feature", "where", "was", "trained on as"], body),
    ]


def _place(series: str, ts: int, of: DataQuality) -> str:
    return format_time(ts) + (f" of {series}" if of.series > 1 else "")


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in body]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def _number(value: float) -> str:
    """Four digits that count."""
    return "-" if np.isnan(value) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _share(part: int, whole: int) -> str:
    per_cent = 100 * part / max(whole, 1)
    return "< 0.1 %" if per_cent < 0.05 else f"{per_cent:.1f} %"
