"""The sets of `benchmarks/starter.py`: values, scored origins, measures. Each is found by its usual file name.

- etth1, etth2, ettm1: one step ahead, targets in rows 3,600-14,399, z-scored by rows 0-2,879 (training), validation
  2,880-3,599: the protocol of the streaming methods (FSNet, OneNet, LSTD).
- etth1-24: 24 steps ahead, rows 0-8,639 / 8,640-11,519 / 11,520-14,399, every window inside of the last.
- taxi: five steps ahead, training to row 8,000, validation to 9,000, targets in rows 9,000-9,999.
- taxi-full: the same, 9,000 / 10,000, targets from row 10,000 on (Cui, Ahmad and Hawkins 2016).
- machine: one step ahead, training to 60 % of the rows, validation to 70 %, z-scored by training rows.
- m4: 48 steps ahead, once, from the value before each series' last 48; MASE by season 24.
- walk: eight synthetic random walks of daily steps (Student's t, 5 degrees of freedom, 0.6 % a day), 7,588 rows as in
  exchange: one step ahead, training to 70 %, validation to 80 %, MAE over persistence's.
- exchange: the same for the file exchange_rate.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidecast.service.timestamps import format_time, parse_time

Floats = NDArray[np.float64]
Origins = NDArray[np.int64]
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_700_006_400_000  # of sets without times: the start of a day in UTC


@dataclass(frozen=True, eq=False)
class Series:
    """One set, on a grid of steps."""

    name: str
    step: str
    step_ms: int
    start_ms: int  # of the first column of `values`
    names: list[str]  # [series]
    values: Floats  # [series, steps], NaN before a series begins
    wide: bool  # all series are columns of one file, or a key column tells them apart
    horizon: int
    seasons: list[int]  # steps, the naive's first; the others are for MSTL
    origins: Origins  # [origins], the last known column of each scored forecast
    until: tuple[int, int]  # columns where training and validation end
    measures: dict[str, Callable[[Series, Origins, Floats], float]]  # of origins, forecast
    model: str = ""  # lines of a training config's [model]
    fit: str = ""

    @property
    def scale(self) -> Floats:
        """[series, 1, 1], the standard deviation over the training rows."""
        return np.nanstd(self.values[:, : self.until[0]], axis=1)[:, None, None]

    def truth(self, origins: Origins) -> Floats:
        """[series, origins, horizon]."""
        return self.values[:, origins[:, None] + np.arange(1, self.horizon + 1)]

    def persistence(self, origins: Origins) -> Floats:
        """[series, origins, horizon]: the last value."""
        return np.repeat(self.values[:, origins][..., None], self.horizon, axis=2)

    def seasonal_naive(self, origins: Origins) -> Floats:
        """[series, origins, horizon]: the value of the latest same moment of the season that is known."""
        ahead = np.arange(1, self.horizon + 1)
        season = self.seasons[0]
        return self.values[:, origins[:, None] + ahead - season * -(-ahead // season)]

    def scores(self, forecast: Floats, origins: Origins) -> dict[str, float]:
        """Measure -> value. A forecast that is not there is an error, so that no row is left out silently."""
        if not np.isfinite(forecast).all():
            raise SystemExit(f"{self.name}: {np.isnan(forecast).sum():,} of {forecast.size:,} forecasts are missing")
        return {name: measure(self, origins, forecast) for name, measure in self.measures.items()}


def errors(s: Series, origins: Origins, forecast: Floats) -> Floats:
    """[series, origins, horizon], in standard deviations of the training rows."""
    return np.abs(s.truth(origins) - forecast) / s.scale


def mse(s: Series, origins: Origins, forecast: Floats) -> float:
    return float(np.mean(np.square(errors(s, origins, forecast))))


def mae(s: Series, origins: Origins, forecast: Floats) -> float:
    return float(np.mean(errors(s, origins, forecast)))


def over_persistence(s: Series, origins: Origins, forecast: Floats) -> float:
    return mae(s, origins, forecast) / mae(s, origins, s.persistence(origins))


def nrmse(s: Series, origins: Origins, forecast: Floats) -> float:
    """Of the last lead."""
    truth, found = s.truth(origins)[..., -1], forecast[..., -1]
    return float(np.sqrt(np.mean(np.square(truth - found))) / truth.std())


def mape(s: Series, origins: Origins, forecast: Floats) -> float:
    """Of the last lead: sum of the absolute errors over the sum of the truths."""
    truth, found = s.truth(origins)[..., -1], forecast[..., -1]
    return float(np.abs(truth - found).sum() / np.abs(truth).sum())


def mase(s: Series, origins: Origins, forecast: Floats) -> float:
    known, season = s.values[:, : -s.horizon], s.seasons[0]
    scale = np.nanmean(np.abs(known[:, season:] - known[:, :-season]), axis=1)
    return float(np.mean(np.abs(s.truth(origins) - forecast).mean(axis=(1, 2)) / scale))


def smape(s: Series, origins: Origins, forecast: Floats) -> float:
    truth = s.truth(origins)
    return float(200 * np.mean(np.abs(truth - forecast) / (np.abs(truth) + np.abs(forecast))))


def find(name: str, folders: list[Path]) -> Path:
    """The file of that name below one of the folders."""
    for folder in folders:
        for path in sorted(folder.rglob(name)):
            return path
    raise FileNotFoundError(f"{name} is not below {', '.join(map(str, folders))}: give --data DIR.")


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, rows


def table(path: Path, columns: list[int] | None = None) -> tuple[int, list[str], Floats]:
    """(ms of the first row, names, values [series, rows]) of a file with the time in its first column."""
    head, rows = read(path)
    columns = columns or list(range(1, len(head)))
    start = parse_time(rows[0][0].replace("/", "-").replace(" ", "T"))
    return start, [head[c] for c in columns], np.array([[float(row[c]) for row in rows] for c in columns])


CALENDAR = 'lags = ["1d", "7d"]\ncalendar = ["day", "week"]'


def ett(file: str, step: str, step_ms: int, horizon: int) -> Callable[[list[Path]], Series]:
    def make(folders: list[Path]) -> Series:
        start, names, values = table(find(f"{file}.csv", folders))
        day = DAY_MS // step_ms
        until = (8_640, 11_520) if horizon > 1 else (2_880, 3_600)
        origins = np.arange(until[1] - 1, 14_400 - horizon)
        name = file.lower() + (f"-{horizon}" if horizon > 1 else "")
        wide_cell = "\nhidden = 128" if horizon == 1 else ""  # as benchmarks/accuracy.py has it
        return Series(name, step, step_ms, start, names, values[:, :14_400], True, horizon, [day, 7 * day], origins,
                      until, {"MSE": mse, "MAE": mae}, CALENDAR + wide_cell)  # fmt: skip

    return make


def taxi(full: bool) -> Callable[[list[Path]], Series]:
    def make(folders: list[Path]) -> Series:
        start, names, values = table(find("nyc_taxi.csv" if full else "nyc_taxi_dev.csv", folders), [1])
        until = (9_000, 10_000) if full else (8_000, 9_000)
        last = values.shape[1] if full else 10_000
        if last <= until[1]:
            raise FileNotFoundError(f"nyc_taxi.csv ends before the test rows begin: {last:,} rows")
        origins = np.arange(until[1] - 5, last - 5)  # those of which the fifth step is a test row
        return Series("taxi-full" if full else "taxi", "30min", 1_800_000, start, names, values[:, :last], True, 5,
                      [336, 48], origins, until, {"NRMSE": nrmse, "MAPE": mape}, CALENDAR)  # fmt: skip

    return make


def machine(folders: list[Path]) -> Series:
    """The file repeats an hour (12 rows): as the worker does, only rows later than all before are taken."""
    _, rows = read(find("machine_temperature_system_failure.csv", folders))
    ts = np.array([parse_time(row[0].replace(" ", "T")) for row in rows])
    later = np.diff(np.maximum.accumulate(ts), prepend=ts[0] - 1) > 0
    grid = ts[later]
    if (np.diff(grid) != 300_000).any():
        raise SystemExit("machine: the rows are not 5 minutes apart; got another file? Give --data DIR.")
    values = np.array([[float(row[1]) for row in rows]])[:, later]
    until = (int(np.searchsorted(grid, ts[int(0.6 * len(ts))])), int(np.searchsorted(grid, ts[int(0.7 * len(ts))])))
    origins = np.arange(until[1] - 1, len(grid) - 1)
    return Series("machine", "5min", 300_000, int(grid[0]), ["value"], values, True, 1, [288, 2016], origins, until,
                  {"MAE": mae}, "history = 48")  # fmt: skip


def m4(folders: list[Path]) -> Series:
    """Made-up hours, so that all series end together."""
    _, rows = read(find("hourly_train_first207.csv", folders))
    lines = [[float(value) for value in row[1:] if value] for row in rows]
    longest = max(map(len, lines))
    values = np.array([[np.nan] * (longest - len(line)) + line for line in lines])
    origins = np.array([longest - 48 - 1])
    return Series("m4", "1h", HOUR_MS, START_MS, [row[0] for row in rows], values, False, 48, [24, 168], origins,
                  (longest - 96, longest - 48), {"MASE": mase, "sMAPE, %": smape},
                  'lags = ["1d", "7d"]\ntransform = "sqrt"', "epochs = 20")  # fmt: skip


def rates(real: bool) -> Callable[[list[Path]], Series]:
    def make(folders: list[Path]) -> Series:
        if real:
            start, names, values = table(find("exchange_rate.csv", folders))
        else:
            steps = 0.006 * np.random.default_rng(0).standard_t(5, (8, 7_588)) / np.sqrt(5 / 3)
            start, names, values = START_MS, [f"rate{k}" for k in range(8)], np.exp(np.cumsum(steps, axis=1))
        rows = values.shape[1]
        until = (int(0.7 * rows), int(0.8 * rows))
        return Series("exchange" if real else "walk", "1d", DAY_MS, start, names, values, True, 1, [7],
                      np.arange(until[1] - 1, rows - 1), until,
                      {"MAE / persistence's": over_persistence, "MAE": mae})  # fmt: skip

    return make


SETS: dict[str, Callable[[list[Path]], Series]] = {
    "etth1": ett("ETTh1", "1h", HOUR_MS, 1),
    "etth1-24": ett("ETTh1", "1h", HOUR_MS, 24),
    "taxi": taxi(full=False),
    "machine": machine,
    "m4": m4,
    "walk": rates(real=False),
    "etth2": ett("ETTh2", "1h", HOUR_MS, 1),
    "ettm1": ett("ETTm1", "15min", 900_000, 1),
    "taxi-full": taxi(full=True),
    "exchange": rates(real=True),
}
HELD = ("etth1", "etth1-24", "taxi", "machine", "m4", "walk")  # the others need --data


def write_csv(s: Series, path: Path) -> None:
    """The readings as a file for `tidecast train` and `tidecast replay`, at the times of the grid."""
    times = [format_time(s.start_ms + i * s.step_ms) for i in range(s.values.shape[1])]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if s.wide:
            writer.writerow(["time", *s.names])
            writer.writerows([time, *row] for time, row in zip(times, s.values.T.tolist(), strict=True))
        else:
            writer.writerow(["time", "series", "value"])
            for i, time in enumerate(times):
                known = np.flatnonzero(np.isfinite(s.values[:, i]))
                writer.writerows([time, s.names[k], s.values[k, i].item()] for k in known)


def training_config(s: Series, more: str) -> str:
    """A training config for that file."""
    times = [format_time(s.start_ms + s.step_ms * i) for i in s.until]
    targets = ", ".join(f'"{name}"' for name in s.names) if s.wide else '"value"'
    return (
        f'name = "{s.name}"\n[data]\ntime = "time"\nstep = "{s.step}"\ntargets = [{targets}]\n'
        + ("" if s.wide else 'series = "series"\n')
        + f'train_until = "{times[0]}"\nvalidate_until = "{times[1]}"\n'
        f"[model]\nhorizon = {s.horizon}\n{s.model}\n{more}\n[fit]\n{s.fit}\n"
    )
