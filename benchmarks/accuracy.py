"""How good the trainer is on each set, compared with published figures and cheap baselines: one frozen model a seed.

    python benchmarks/accuracy.py --set taxi|taxi-full|ett1|ett24|ett96|m4|machine|all [--seeds 3] [--minutes 5]
    python benchmarks/accuracy.py --set all --markdown     # the table of docs/accuracy.md
    python benchmarks/accuracy.py --set ett24 --set-option fit.members=3 --set-option model.hidden=32

Scalers and weights use training rows only, early stopping and calibration also validation rows. Each forecast is made
by the exported graph before the actual value is known. Data: the folder of `--data-dir`.

What is scored:
- taxi: the first 10,000 rows; train to row 8,000, validate to 9,000; forecasts with a target in the rest.
  Original units. Cheap baseline: a ridge autoregression with a slot for each half hour of the week.
- taxi-full: the whole file (`--data`), after Cui, Ahmad and Hawkins 2016: five steps ahead, targets after row 10,000.
- ett*: rows 0-8,639 / 8,640-11,519 / 11,520-14,399 of ETTh1, all seven channels in one reading, each z-scored by its
  own training rows; every window, stride 1, with all targets in the test rows; mean over windows, leads and channels.
- m4: the last 48 values of each series, forecast once from the value before them; MASE by season 24 on all before them.
- machine: train to 60 % of the rows, validate to 70 %, where an autoregression over 48 values comes to the table's
  .0700; one step ahead, z-scored by training rows.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from tidecast.service.errors import UsageError
from tidecast.service.timestamps import format_time
from tidecast.training.adapt import settle_adapt
from tidecast.training.config import Config, check
from tidecast.training.data.dataset import Dataset, load_dataset
from tidecast.training.evaluation.baselines import ErrorQuantiles, LinearAutoregression
from tidecast.training.evaluation.evaluate import LINEAR, MODEL, MethodScores, Track, evaluate, measure, tracks
from tidecast.training.evaluation.metrics import mean
from tidecast.training.export.export import build_graph
from tidecast.training.export.parity import check_parity, onnx_step
from tidecast.training.fit.loop import fit
from tidecast.training.fit.resolve_config import resolve_config
from tidecast.training.progress import Progress
from tidecast.training.report.tables import grid, stdout_console

DATA = Path(__file__).parents[2] / "shared" / "data"
SLOTS = "weekly slot + autoregression"
M4_START, HOUR = 1_700_006_400_000, 3_600_000
HELD_OUT = 48
MOST_SECONDS = 300  # of training, for each seed


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table: smaller is better."""

    name: str
    of: Callable[[MethodScores], float]
    reach: float | None = None
    baseline: str = ""  # as the table that set the reach has it
    published: str = ""
    share: float | None = None  # or: at most this share of `against`
    against: str = LINEAR


@dataclass(frozen=True, slots=True)
class Task:
    """A set and its protocol."""

    make: Callable[
        [Path, Path | None, Path], tuple[str, Path]
    ]  # (data dir, --data, temp folder) -> (config, data file)
    measures: tuple[Measure, ...]
    scaled: bool = False
    origins: str = "all"  # all | whole (only windows inside of the test rows) | once (only the first of them)
    season: int | None = None


def average(name: str) -> Callable[[MethodScores], float]:
    return lambda scores: float(mean(getattr(scores, name)))


def last(name: str) -> Callable[[MethodScores], float]:
    return lambda scores: getattr(scores, name)[-1]


def mse(scores: MethodScores) -> float:
    return float(np.mean(np.square(scores.rmse)))


def covered(scores: MethodScores) -> float:
    return float(mean(next(i for i in scores.intervals if abs(i.level - 0.9) < 1e-6).coverage))


CRPS = Measure("CRPS", average("crps"), share=1.0)


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, rows


def moment(row: list[str]) -> str:
    return row[0].replace(" ", "T") + "Z"


def toml(name: str, data: str, rows: list[list[str]], until: tuple[int, int], model: str) -> str:
    times = f'train_until = "{moment(rows[until[0]])}"\nvalidate_until = "{moment(rows[until[1]])}"'
    return f'name = "{name}"\n[data]\n{data}\n{times}\n[model]\n{model}\n'


def taxi(full: bool) -> Callable[[Path, Path | None, Path], tuple[str, Path]]:
    def make(folder: Path, given: Path | None, _: Path) -> tuple[str, Path]:
        path = given or folder / "nyc_taxi" / "nyc_taxi_dev.csv"
        _, rows = read_rows(path)
        until = (9_000, 10_000) if full else (8_000, 9_000)
        if len(rows) <= until[1]:
            raise UsageError(f"{path} ends before the test rows begin", got=f"{len(rows)} rows", do="Give --data FILE.")
        data = 'time = "timestamp"\nstep = "30min"\ntargets = ["passenger_count"]'
        return toml("taxi", data, rows, until, 'horizon = 5\nlags = ["1d", "7d"]\ncalendar = ["day", "week"]'), path

    return make


def ett(horizon: int) -> Callable[[Path, Path | None, Path], tuple[str, Path]]:
    def make(folder: Path, given: Path | None, temp: Path) -> tuple[str, Path]:
        head, rows = read_rows(given or folder / "ett" / "ETTh1.csv")
        path = temp / "ett.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows[:14_400]])
        columns = ", ".join(f'"{name}"' for name in head[1:])
        data = f'time = "date"\nstep = "1h"\ntargets = [{columns}]'
        model = f'horizon = {horizon}\nlags = ["1d", "7d"]\ncalendar = ["day", "week"]'
        model += "\nhidden = 128" if horizon == 1 else ""
        model += "\nhistory = 721" if horizon > 48 else ""
        return toml(f"etth1-{horizon}", data, rows, (8_640, 11_520), model), path

    return make


def m4(folder: Path, given: Path | None, temp: Path) -> tuple[str, Path]:
    """The file has no times: made-up hours, so that all series end together and one moment cuts the test rows off."""
    _, rows = read_rows(given or folder / "m4" / "hourly_train_first207.csv")
    series = [(row[0], [value for value in row[1:] if value]) for row in rows]
    longest = max(len(values) for _, values in series)
    path = temp / "m4.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "series", "value"])
        for name, values in series:
            first = longest - len(values)
            writer.writerows([M4_START + (first + i) * HOUR, name, v] for i, v in enumerate(values))
    times = [format_time(M4_START + (longest - back * HELD_OUT) * HOUR) for back in (2, 1)]
    return (
        'name = "m4-hourly"\n[data]\ntime = "time"\nstep = "1h"\nseries = "series"\ntargets = ["value"]\n'
        f'train_until = "{times[0]}"\nvalidate_until = "{times[1]}"\n'
        f'[model]\nhorizon = {HELD_OUT}\nlags = ["1d", "7d"]\ntransform = "sqrt"\n[fit]\nepochs = 20\n',
        path,
    )


def machine(folder: Path, given: Path | None, _: Path) -> tuple[str, Path]:
    path = given or folder / "nab" / "machine_temperature_system_failure.csv"
    _, rows = read_rows(path)
    data = 'time = "timestamp"\nstep = "5min"\ntargets = ["value"]'
    until = (int(0.6 * len(rows)), int(0.7 * len(rows)))
    return toml("machine", data, rows, until, "horizon = 1\nhistory = 48"), path


TASKS = {
    "taxi": Task(
        taxi(full=False),
        (
            Measure("MAE, leads 1-5", average("mae"), share=0.9, against=SLOTS),
            Measure("RMSE, leads 1-5", average("rmse"), share=0.9, against=SLOTS),
            Measure("MAE, lead 5", last("mae"), share=0.9, against=SLOTS),
            Measure("RMSE, lead 5", last("rmse"), share=0.9, against=SLOTS),
            Measure("NRMSE, lead 5", last("nrmse")),
            Measure("MAPE, lead 5", last("mape")),
            CRPS,
        ),
    ),
    "taxi-full": Task(
        taxi(full=True),
        (
            Measure("NRMSE, lead 5", last("nrmse"), 0.19, ".198", ".257"),
            Measure("MAPE, lead 5", last("mape"), 0.054, ".057", ".071"),
            CRPS,
        ),
    ),
    "ett1": Task(
        ett(1),
        (Measure("MSE", mse, 0.086, ".0986"), Measure("MAE", average("mae"), 0.186, ".2023"), CRPS),
        scaled=True,
        origins="whole",
    ),
    "ett24": Task(
        ett(24),
        (Measure("MSE", mse, 0.295, ".303", ".321"), Measure("MAE", average("mae"), 0.342, ".348"), CRPS),
        scaled=True,
        origins="whole",
    ),
    "ett96": Task(
        ett(96),
        (Measure("MSE", mse, 0.351, ".382", ".351"), Measure("MAE", average("mae"), 0.390, ".392", ".392"), CRPS),
        scaled=True,
        origins="whole",
    ),
    "m4": Task(
        m4,
        (Measure("sMAPE, %", average("smape"), 9.3, "10.4", "9.33"), Measure("MASE", average("mase"), 0.83), CRPS),
        scaled=True,  # sMAPE and MASE are taken in original units all the same: see `scores_of`
        origins="once",
        season=24,
    ),
    "machine": Task(machine, (Measure("MAE", average("mae"), 0.066, ".0700"), CRPS), scaled=True),
}


def at_origins(found: list[Track], config: Config, which: str) -> list[Track]:
    """The forecasts that the protocol scores."""
    if which == "all":
        return found
    out = []
    for t in found:
        first = int(np.searchsorted(t.stretch.ts, config.validate_until_ms)) - 1
        end = first + 1 if which == "once" else len(t.stretch.ts) - config.model.horizon
        keep = (t.origins >= first) & (t.origins < end)
        out.append(dataclasses.replace(t, ts=t.ts[keep], truth=t.truth[keep], y=t.y[keep], origins=t.origins[keep]))
    return [t for t in out if len(t.ts)]


def with_options(config: Config, options: list[str]) -> Config:
    """The config with `section.name=value` set, the value as TOML."""
    table = msgspec.to_builtins(config)
    for option in options:
        name, _, value = option.partition("=")
        section, _, field = name.partition(".")
        if section not in ("data", "model", "fit") or not field or not value:
            raise UsageError("--set-option takes SECTION.NAME=VALUE", got=option, do="Such as fit.members=3.")
        table[section][field] = tomllib.loads(f"value = {value}")["value"]
    try:
        changed = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise UsageError(f"--set-option: {error}", do="The names are in docs/training.md.") from None
    check(changed)
    return changed


def over_targets(by_target: dict[str, dict[str, MethodScores]]) -> dict[str, MethodScores]:
    """method -> means over the targets, lead by lead; of squares where a measure is a root."""
    out = {}
    for method in next(iter(by_target.values())):
        all_of = [methods[method] for methods in by_target.values()]
        means = {}
        for name in ("mae", "rmse", "mase", "smape", "mape", "nrmse", "pinball", "crps"):
            values = np.array([getattr(scores, name) for scores in all_of])  # [targets, leads]
            root = name in ("rmse", "nrmse")
            means[name] = (np.sqrt(np.square(values).mean(axis=0)) if root else values.mean(axis=0)).tolist()
        intervals = []
        for k, interval in enumerate(all_of[0].intervals):
            held, width = (
                np.mean([getattr(scores.intervals[k], name) for scores in all_of], axis=0).tolist()
                for name in ("coverage", "width")
            )
            intervals.append(msgspec.structs.replace(interval, coverage=held, width=width))
        out[method] = MethodScores(**means, intervals=intervals)
    return out


def scores_of(task: Task, found: list[Track], config: Config, dataset: Dataset, first: bool) -> dict[str, MethodScores]:
    """method -> scores; the baselines only with the first seed, as they are the same for all."""
    by_target = evaluate(found, config, dataset, scaled=task.scaled, season=task.season, baselines=first).scores
    out = over_targets(by_target)
    if task.scaled and any(m.name.startswith("sMAPE") for m in task.measures):  # a share of the truth: original units
        raw = over_targets(evaluate(found, config, dataset, season=task.season, baselines=first).scores)
        out = {name: msgspec.structs.replace(s, smape=raw[name].smape) for name, s in out.items()}
    if first and any(m.against == SLOTS for m in task.measures):
        slots = LinearAutoregression(config, dataset, slots=("week",))
        levels = config.model.quantiles
        errors = ErrorQuantiles(slots.forecast, config, dataset, levels=levels, gaussian=True, skip=config.history)
        points = [slots.forecast(t.stretch)[t.origins] for t in found]
        y = np.concatenate([errors.quantiles(p, t.series) for p, t in zip(points, found, strict=True)])
        truth, point = np.concatenate([t.truth for t in found]), np.concatenate(points)
        out[SLOTS] = measure(truth[..., 0], point[..., 0], y[..., 0, :], levels, np.full(len(truth), np.nan))
    return out


def run(task: Task, config: Config, path: Path, seeds: list[int]) -> tuple[dict[str, list[MethodScores]], list[float]]:
    """({method: scores by seed}, seconds of training by seed)."""
    dataset = load_dataset(config, path)
    results: dict[str, list[MethodScores]] = {}
    seconds = []
    for seed in seeds:
        mine = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, seed=seed))
        started = time.perf_counter()
        with Progress() as progress:
            progress.say(f"seed {seed}")
            model, history = fit(mine, dataset, progress)
        if history.interrupted:
            raise KeyboardInterrupt
        seconds.append(time.perf_counter() - started)
        model, mine, said = settle_adapt(model, resolve_config(mine, dataset), dataset)
        print(said, flush=True)
        graph = build_graph(model).SerializeToString()
        check_parity(model, graph, dataset)
        found = tracks(onnx_step(graph), model.initial_state().numpy(), mine, dataset)
        found = at_origins(found, mine, task.origins)
        for name, scores in scores_of(task, found, mine, dataset, first=seed == seeds[0]).items():
            results.setdefault(name, []).append(scores)
    return results, seconds


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table as it came out."""

    name: str
    seeds: list[float]
    linear: float  # the linear autoregression's, here
    reach: float | None
    holds: bool | None
    baseline: str
    published: str

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @property
    def spread(self) -> float:
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else 0.0


def lines_of(task: Task, results: dict[str, list[MethodScores]]) -> list[Line]:
    out = []
    for m in task.measures:
        values = [m.of(scores) for scores in results[MODEL]]
        linear, ours = m.of(results[LINEAR][0]), statistics.fmean(values)
        against = m.of(results[m.against][0])
        reach = m.share * against if m.share is not None else m.reach
        baseline = m.baseline or (f"{against:.4g}" if m.against != LINEAR else "")
        holds = None if reach is None else (ours <= reach if m.against == SLOTS else ours < reach)
        out.append(Line(m.name, values, linear, reach, holds, baseline, m.published))
    held = [covered(scores) for scores in results[MODEL]]
    holds = 0.87 <= statistics.fmean(held) <= 0.93
    return [*out, Line("90 % interval held", held, covered(results[LINEAR][0]), None, holds, "", "")]


HEAD = ["measure", "tidecast", "spread", "linear here", "cheap baseline", "published", "reach", "holds"]


def cells(lines: list[Line]) -> list[list[str]]:
    body = []
    for line in lines:
        reach = "0.87-0.93" if line.name.startswith("90 %") else f"{line.reach:.4g}" if line.reach is not None else ""
        holds = {True: "yes", False: "NO", None: ""}[line.holds]
        body.append([line.name, f"{line.mean:.4g}", f"{line.spread:.2g}", f"{line.linear:.4g}", line.baseline,
                     line.published, reach, holds])  # fmt: skip
    return body


def show(name: str, lines: list[Line], seconds: list[float], how: str) -> None:
    took = ", ".join(f"{s:.0f} s" for s in seconds)
    if how == "markdown":
        print("\n".join("| " + " | ".join([name, *row]) + " |" for row in cells(lines)))
        holds = "yes" if max(seconds) <= MOST_SECONDS else "no"
        print(f"| {name} | seconds of training, each seed | {took} | | | | | ≤ {MOST_SECONDS} | {holds} |", flush=True)
        return
    caption = f"Mean and standard deviation over {len(seconds)} seeds; trained in {took}."
    stdout_console().print(grid(name, HEAD, cells(lines), caption))


def measured(name: str, args: argparse.Namespace) -> None:
    """Run one set and print it."""
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as temp:
        text, path = task.make(args.data_dir, args.data, Path(temp))
        config = with_options(msgspec.convert(tomllib.loads(text), Config), args.set_option)
        limits = {"max_minutes": args.minutes} | ({"epochs": args.epochs} if args.epochs else {})
        config = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, **limits))
        results, seconds = run(task, config, path, list(range(args.seeds)))
    lines = lines_of(task, results)
    if not args.json:
        return show(name, lines, seconds, "markdown" if args.markdown else "table")
    table = [{**dataclasses.asdict(line), "mean": line.mean, "spread": line.spread} for line in lines]
    print(json.dumps({"set": name, "seconds": seconds, "table": table, "config": msgspec.to_builtins(config),
                      "scores": msgspec.to_builtins(results)}))  # fmt: skip
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, choices=[*TASKS, "all"], dest="name", help="all: but taxi-full")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on [3]")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training for each seed, at most [5]")
    parser.add_argument("--epochs", type=int, help="instead of the config's: to check quickly that all runs")
    parser.add_argument("--set-option", action="append", default=[], metavar="SECTION.NAME=VALUE", help="for ablations")
    parser.add_argument("--data-dir", type=Path, default=DATA, help="where the sets are")
    parser.add_argument("--data", type=Path, help="this file instead of the set's own")
    parser.add_argument("--json", action="store_true", help="every seed and lead as one JSON object on stdout")
    parser.add_argument("--markdown", action="store_true", help="rows of a table for a page")
    args = parser.parse_args()
    if args.markdown:
        print("| " + " | ".join(["set", *HEAD]) + " |\n" + "|---" * (len(HEAD) + 1) + "|")
    for name in [n for n in TASKS if n != "taxi-full"] if args.name == "all" else [args.name]:
        try:
            measured(name, args)
        except FileNotFoundError as missing:
            print(f"{missing.filename} is not there: give --data-dir or --data.", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
