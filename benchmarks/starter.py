"""Forecasts without training, with it, and from the peers, on the same readings; what each costs.

    python benchmarks/starter.py                        # the sets that are here: errors, seconds, bytes
    python benchmarks/starter.py --data DIR --set etth2 --set ettm1 --set taxi-full --set exchange
    python benchmarks/starter.py --engine | --shifts | --stability
    python benchmarks/starter.py --markdown > FILE      # for a page

Sets and protocols: benchmarks/starter_sets.py. Our models answer by `tidecast replay`, from the first row on: the
starter without any training, the trained ones with one seed. The peers (benchmarks/starter_peers.py) are too slow for
all rows: they answer at origins in blocks of 24, spread evenly over the scored rows, each block by a model fitted anew;
the second table has all columns at just those origins. What was computed is kept below build/starter: the peers'
forecasts by the job and their versions, models by their config, replays by the model's hash. `--again NAME` forgets
what is kept of a set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import starter_models
import starter_streams
from numpy.typing import NDArray
from starter_peers import PEERS
from starter_sets import HELD, SETS, Floats, Series

from tidecast.service.model.session import Model
from tidecast.training.report.tables import grid, stdout_console

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
KEPT = HERE.parent / "build" / "starter"
REQUIREMENTS = HERE / "starter_peers.txt"
# Blocks of 24 origins: how many forecasts of AutoARIMA fit into a few minutes. m4 has a single origin.
BLOCKS = {"etth1": 12, "etth1-24": 8, "taxi": 10, "machine": 10, "walk": 16}
BLOCKS |= {"etth2": 12, "ettm1": 12, "taxi-full": 10, "exchange": 16}
EVERY = 24
DAYS, LEAST, MOST, LONG = 28, 365, 2_016, 4_000  # of the windows that the peers are fitted on


# Columns of the tables, in order.
COLUMNS = ("persistence", "seasonal naive", "starter", "trained, frozen", "trained, online", *PEERS)


@dataclass
class Column:
    """One way to forecast, on one set."""

    name: str
    scores: dict[str, float] = field(default_factory=dict)  # over all origins of the protocol
    thinned: dict[str, float] = field(default_factory=dict)  # at the peers' origins
    seconds: float = np.nan  # for a million readings
    bytes: float = np.nan  # of a series


def peers_origins(s: Series) -> tuple[NDArray[np.int64], int]:
    """(the first origin of each block [blocks], origins of a block)."""
    if len(s.origins) < EVERY:
        return s.origins, 1
    most = len(s.origins) // EVERY
    offsets = np.linspace(0, len(s.origins) - EVERY, min(most, BLOCKS[s.name])).astype(np.int64)
    return s.origins[offsets], EVERY


def all_of(starts: NDArray[np.int64], every: int) -> NDArray[np.int64]:
    return (starts[:, None] + np.arange(every)).ravel()


def peers_python() -> Path:
    """The peers' environment, made when it is not there or the requirements have changed."""
    folder, mark = HERE.parent / "build" / "peers-venv", HERE.parent / "build" / "peers-venv" / "made-from.txt"
    if not mark.exists() or mark.read_text() != REQUIREMENTS.read_text():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
        mark.write_text(REQUIREMENTS.read_text())
    return folder / "bin/python"


def peer(s: Series, name: str, folder: Path, run: bool) -> tuple[Floats, float, float] | None:
    """(forecast [series, thinned origins, horizon], seconds of one, bytes of a series' state).

    None = it is not kept and is not to be run.
    """
    starts, every = peers_origins(s)
    window = min(MOST, max(LEAST, DAYS * 86_400_000 // s.step_ms))
    job = {"values": s.values, "starts": starts, "every": every, "horizon": s.horizon, "seasons": s.seasons,
           "window": window, "long": LONG, "step_ms": s.step_ms, "start_ms": s.start_ms}  # fmt: skip
    told = hashlib.sha256(REQUIREMENTS.read_bytes())
    for value in job.values():
        told.update(np.ascontiguousarray(value).tobytes())
    kept = folder / f"{s.name}.{name}.{told.hexdigest()[:12]}.npz"
    if not kept.exists() and not run:
        return None
    if not kept.exists():
        print(f"{s.name}: {name}", file=sys.stderr, flush=True)
        path = folder / f"{s.name}.{name}.job.npz"
        np.savez(path, **job)
        command = [peers_python(), HERE / "starter_peers.py", path, kept, name]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: os.nice(19))
        path.unlink()
    with np.load(kept) as file:
        return file["forecast"], float(file["seconds"]), float(file["bytes"])


def columns_of(s: Series, folder: Path, args: argparse.Namespace) -> list[Column]:
    """Every column of the tables, for one set."""
    thinned = all_of(*peers_origins(s))
    out = []

    def ours(name: str, model: Path) -> None:
        found = starter_models.forecasts(s, model, folder)
        seconds, size = starter_models.cost(s, model)
        scores = [s.scores(found[:, o], o) for o in (s.origins, thinned)]
        out.append(Column(name, *scores, seconds, size))

    for name, make in zip(COLUMNS, (s.persistence, s.seasonal_naive), strict=False):
        out.append(Column(name, *(s.scores(make(o), o) for o in (s.origins, thinned))))
    if args.starter and starter_models.has_starter():
        ours(COLUMNS[2], starter_models.starter(s, folder))
    if args.trained:
        for name, line in zip(COLUMNS[3:5], starter_models.adaptations(), strict=True):
            if line is not None:
                ours(name, starter_models.trained(s, folder, line))
    for name in PEERS if args.peers else ():
        if (found := peer(s, name, folder, run=not args.kept)) is not None:
            forecast, seconds, size = found
            out.append(Column(name, {}, s.scores(forecast, thinned), seconds * 1e6, size))
    return out


def cell(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2g}"


Results = list[tuple[Series, list[Column]]]
Figures = Callable[[Column], dict[str, float]]


def rows_of(results: Results, which: Figures) -> tuple[list[str], list[list[str]]]:
    """(head, rows): a row for each set and figure, a column for each way to forecast that has any."""
    there = {c.name for _, columns in results for c in columns if which(c)}
    names = [name for name in COLUMNS if name in there]
    rows = []
    for s, columns in results:
        found = {c.name: which(c) for c in columns}
        kinds = dict.fromkeys(kind for figures in found.values() for kind in figures)
        rows += [[s.name, kind, *(cell(found.get(n, {}).get(kind)) for n in names)] for kind in kinds]
    return ["set", "", *names], rows


def costs(column: Column) -> dict[str, float]:
    found = {"s / million": column.seconds, "bytes / series": column.bytes}
    return {} if np.isnan(column.seconds) else found


def show(title: str, head: list[str], body: list[list[str]], markdown: bool) -> None:
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
        print(f"\n{title}\n\n" + "\n".join(lines), flush=True)
    else:
        stdout_console().print(grid(title, head, body))


TABLES: tuple[tuple[str, Figures], ...] = (
    ("All forecasts of the protocols", lambda column: column.scores),
    ("The same at the peers' origins only", lambda column: column.thinned),
    ("Seconds for a million readings of one value, one core; bytes of a series' state", costs),
)


def others(args: argparse.Namespace) -> int:
    """The tables that need no set."""
    if args.engine:
        rows = starter_models.engine((1, 24), args.series, args.readings)
        show(f"{args.series:,} series of hourly values, one core", starter_models.ENGINE_HEAD, rows, args.markdown)
    hourly = args.model or starter_models.make_starter(KEPT / "models" / "1h-24-starter", "1h", 24, ["value"])
    if args.shifts:
        title = f"Steps until the error is back within 10 %, horizon {Model.load(hourly).spec.horizon}"
        show(title, starter_streams.RECOVERY_HEAD, starter_streams.recovery(hourly), args.markdown)
    if args.stability:
        rows = starter_streams.stability(hourly, args.steps, args.extreme)
        show("Hostile values", starter_streams.STABILITY_HEAD, rows, args.markdown)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=list(SETS), dest="names", help=f"[{', '.join(HELD)}]")
    parser.add_argument("--data", type=Path, help="a folder with more sets, by their usual file names")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--kept", action="store_true", help="of the peers only what is kept: an empty cell, else")
    parser.add_argument("--no-trained", dest="trained", action="store_false")
    parser.add_argument("--no-starter", dest="starter", action="store_false")
    parser.add_argument("--again", action="append", default=[], metavar="SET", help="forget what is kept of it")
    parser.add_argument("--markdown", action="store_true", help="tables for a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, kept by set and column")
    parser.add_argument("--engine", action="store_true", help="readings/s and the state's size instead")
    parser.add_argument("--series", type=int, default=1_000, help="with --engine [1000]")
    parser.add_argument("--readings", type=int, default=200_000, help="with --engine [200000]")
    parser.add_argument("--shifts", action="store_true", help="recovery after changes instead")
    parser.add_argument("--stability", action="store_true", help="hostile values instead")
    parser.add_argument("--steps", type=int, default=1_000_000, help="with --stability [1000000]")
    parser.add_argument("--extreme", action="store_true", help="with --stability: also values beyond 10³⁰")
    parser.add_argument("--model", type=Path, help="with --shifts, --stability: this one, hourly, of one value")
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if args.engine or args.shifts or args.stability:
        return others(args)
    for name in args.again:
        for path in [*KEPT.glob(f"{name}.*"), *KEPT.glob(f"models/{name}-????????/model.onnx")]:
            path.unlink()
    folders = [*([args.data] if args.data else []), DATA]
    results: Results = []
    for name in args.names or HELD:
        try:
            s = SETS[name](folders)
        except FileNotFoundError as missing:
            print(missing, file=sys.stderr)
            return 2
        results.append((s, columns_of(s, KEPT, args)))
    for title, which in TABLES:
        show(title, *rows_of(results, which), args.markdown)
    if args.json:
        args.json.write_text(json.dumps({s.name: [asdict(c) for c in columns] for s, columns in results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
