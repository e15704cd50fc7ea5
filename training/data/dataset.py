"""From a file to what the trainer folds over: stretches of readings, one step apart, missing ones as NaN.

The rules are the worker's own (`service.pipeline.pipeline`): a short gap becomes silent steps, a long one starts the
series again, a second reading for the same time is dropped. So the model is trained on what it will be served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.table import Table, file_sha256
from tidecast.service.errors import DataError
from tidecast.service.input.files import DataFile
from tidecast.service.timestamps import format_time, missing_steps
from tidecast.training.config import Config
from tidecast.training.data.outliers import treat
from tidecast.training.data.quality import DataQuality
from tidecast.training.data.stretch import Stretch


@dataclass(frozen=True, slots=True)
class Dataset:
    """All stretches of a file, and where it came from."""

    stretches: list[Stretch]
    sha256: str
    readings: int
    duplicates: int
    silent_steps: int
    restarts: int
    missing: dict[str, int]  # feature -> missing values
    outliers: dict[str, int]  # feature -> outliers in training rows
    quality: DataQuality  # what else was found, and where
    rows: list[str] = field(default_factory=list)  # with a table [input]: what became of rows that are not readings


def load_dataset(config: Config, path: Path) -> Dataset:
    """Read `path` as the config describes it.

    Raises:
        DataError: the file cannot be read, or it has no reading before `train_until`, or none to validate on.
    """
    file = DataFile(path, config.columns, config.input)
    table = file.table()
    series = np.asarray(table.series)
    stretches: list[Stretch] = []
    duplicates = file.counts.doubled
    quality = DataQuality(contradictions=file.counts.contradictions)
    names = list(dict.fromkeys(table.series))
    for name in names:
        mine = np.flatnonzero(series == name)
        unsorted = int((np.diff(table.ts[mine]) < 0).sum())
        mine = mine[np.argsort(table.ts[mine], kind="stable")]
        ts = table.ts[mine]
        first = np.ones(len(ts), dtype=bool)
        first[1:] = np.diff(ts) > 0
        duplicates += int((~first).sum())
        quality.count_order(ts, table.x[mine], first, unsorted)
        quality.count_gaps(name, ts[first], config.step_ms, config.data.max_gap)
        stretches += cut(name, mine[first], table, config.step_ms, config.data.max_gap)
    counts = np.isnan(table.x).sum(axis=0)
    quality.measure_missing_runs(stretches, config.features)
    outliers = _treat_outliers(stretches, config, quality)
    quality.measure_ranges(stretches, config.features, config.train_until_ms)
    quality.filled = _fill(stretches, config)
    dataset = Dataset(
        stretches=stretches,
        sha256=file_sha256(path),
        readings=len(table.ts),
        duplicates=duplicates,
        silent_steps=int(sum((s.rows < 0).sum() for s in stretches)),
        restarts=len(stretches) - len(names),
        missing=dict(zip(config.features, counts.tolist(), strict=True)),
        outliers=outliers,
        quality=quality,
        rows=file.counts.sentences(),
    )
    _need_rows(dataset, config, path)
    return dataset


def cut(series: str, rows: NDArray[np.int64], table: Table, step_ms: int, max_gap: int) -> list[Stretch]:
    """The stretches of one series from its `rows`, which are ascending in time without duplicates."""
    ts = table.ts[rows]  # [readings]
    silent = np.zeros(len(rows), dtype=np.int64)  # steps missing before each reading
    silent[1:] = missing_steps(ts[1:], ts[:-1], step_ms)
    starts = np.concatenate([[0], np.flatnonzero(silent > max_gap)])
    silent[starts] = 0
    stretches = []
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        at = np.cumsum(silent[start:end] + 1) - 1  # [readings] the step each reading lands on
        steps = int(at[-1]) + 1
        out = Stretch(
            series=series,
            ts=np.empty(steps, np.int64),
            x=np.full((steps, table.x.shape[1]), np.nan, np.float32),
            rows=np.full(steps, -1, np.int64),
        )
        out.x[at] = table.x[rows[start:end]]
        out.rows[at] = rows[start:end]
        before = np.maximum.accumulate(np.where(out.rows >= 0, np.arange(steps), 0))  # [steps] the reading at or before
        reading_ts = np.zeros(steps, np.int64)
        reading_ts[at] = ts[start:end]
        out.ts[:] = reading_ts[before] + (np.arange(steps) - before) * step_ms
        stretches.append(out)
    return stretches


def _treat_outliers(stretches: list[Stretch], config: Config, quality: DataQuality) -> dict[str, int]:
    """Keep, clip or mask outliers, in place and before `train_until` only; how many there were of each feature."""
    counts = dict.fromkeys(config.features, 0)
    for stretch in stretches:
        rows = _training_rows(stretch, config)  # the filter sees nothing later
        for f, name in enumerate(config.features):
            column = stretch.x[:rows, f].astype(np.float64)
            kept, found = treat(column, config.data.outliers, threshold=config.data.outlier_threshold)
            stretch.x[:rows, f] = kept
            counts[name] += int(found.sum())
            quality.add_outliers(stretch.series, name, stretch.ts[:rows][found], column[found], kept[found])
    return counts


def _fill(stretches: list[Stretch], config: Config) -> dict[str, int]:
    """With `missing = "fill"`: carry the last value forward, in place and before `train_until` only.

    Never from later values, which a served model does not have; never further than `max_gap` steps, so that a sensor
    that was away for a month is not taught as a straight line.

    Returns:
        feature -> steps filled, silent ones among them.
    """
    counts = dict.fromkeys(config.features, 0)
    if config.data.missing == "mask":
        return counts
    for stretch in stretches:
        rows = _training_rows(stretch, config)
        steps = np.arange(rows)
        for f, name in enumerate(config.features):
            column = stretch.x[:rows, f]
            known = np.maximum.accumulate(np.where(np.isfinite(column), steps, -1))  # the last known step, -1 = none
            fill = np.isnan(column) & (known >= 0) & (steps - known <= config.data.max_gap)
            column[fill] = column[known[fill]]
            counts[name] += int(fill.sum())
    return counts


def _training_rows(stretch: Stretch, config: Config) -> int:
    return int(np.searchsorted(stretch.ts, config.train_until_ms))


def _need_rows(dataset: Dataset, config: Config, path: Path) -> None:
    ts = np.concatenate([s.ts for s in dataset.stretches])
    x = np.concatenate([s.x for s in dataset.stretches])
    for target, column in zip(config.targets, x[ts < config.train_until_ms].T, strict=False):
        if np.isfinite(column).sum() < 2 * config.model.horizon + 8:
            raise DataError(
                f"{path} has too few readings of {target} before train_until",
                got=int(np.isfinite(column).sum()),
                do=f"{_period(ts)}; move train_until.",
            )
    if not ((ts >= config.train_until_ms) & (ts < config.validate_until_ms)).any():
        raise DataError(
            f"{path} has no reading between train_until and validate_until",
            do=f"{_period(ts)}; move them.",
        )


def _period(ts: NDArray[np.int64]) -> str:
    return f"The file runs from {format_time(int(ts.min()))} to {format_time(int(ts.max()))}"
