"""`python -m tests.chaos.storm`: several storms, one after the other, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

from tests.chaos.joined import JoinStorm
from tests.chaos.promoted import PromoteStorm
from tests.chaos.routed import RouteStorm
from tests.chaos.scenario import HEADER, LONG, SCENARIOS, Scenario
from tests.chaos.storm import Storm
from tests.support.models import counting_models

GROUP = 3  # models that run side by side, where they are promoted


def main(args: list[str] | None = None) -> int:
    """0 where nothing at all was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__)
    for f in dataclasses.fields(Scenario):
        default = getattr(LONG, f.name)
        if isinstance(default, (int, float, str)):
            told = ", ".join(f"{name}: {getattr(each, f.name)}" for name, each in SCENARIOS.items())
            parser.add_argument(f"--{f.name}", type=type(default), help=f"[{told}]")
    parser.add_argument("--pause", type=float, nargs=2, help="s between two misfortunes")
    parser.add_argument("--scenario", choices=SCENARIOS, default="long", help="[%(default)s]")
    parser.add_argument("--storms", type=int, default=1, help="how many, with the seeds that follow each other")
    models = "model directories: what is served, and what each swap publishes [models that count their steps]"
    parser.add_argument("--model", dest="models", metavar="MODEL", type=Path, nargs="+", help=models)
    parser.add_argument("--folder", type=Path, help="keep topics and logs here, a folder for each seed")
    given = {name: value for name, value in vars(parser.parse_args(args)).items() if value is not None}
    scenario = SCENARIOS[given.pop("scenario")]
    storms, models, base = given.pop("storms"), given.pop("models", None), given.pop("folder", None)
    first = dataclasses.replace(scenario, **given)
    swaps = len(models) - 1 if models else first.swaps
    first = dataclasses.replace(first, pause=tuple(first.pause), swaps=swaps)
    print(HEADER, flush=True)
    bad = 0
    for seed in range(first.seed, first.seed + storms):
        folder = _fresh_folder(base, seed)
        outcome = None
        try:
            served = models or counting_models(folder / "models", GROUP if first.promotes else swaps + 1)
            storm = JoinStorm if first.joins else RouteStorm if first.routers else Storm
            storm = PromoteStorm if first.promotes else storm
            outcome = storm(dataclasses.replace(first, seed=seed), folder, served).run()
            print(outcome.row(), flush=True)
        except (Exception, KeyboardInterrupt) as error:
            print(f"{seed:>6} failed: {error!r:.2000}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                return 130
        if outcome is None or not outcome.ok:
            bad += 1
            if outcome is not None:
                print(outcome.report, *outcome.ended, sep="\n", flush=True)
            print(f"its logs are in {folder}", flush=True)
        elif base is None:
            shutil.rmtree(folder)
    print(f"{storms - bad} of {storms} storms left nothing amiss", flush=True)
    return 1 if bad else 0


def _fresh_folder(base: Path | None, seed: int) -> Path:
    """An empty folder for one storm."""
    folder = Path(tempfile.mkdtemp(prefix="storm-")) if base is None else base / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
