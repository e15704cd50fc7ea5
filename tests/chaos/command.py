"""`python -m tests.chaos.storm`: several storms, one after the other, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from tests.chaos.storm import HEADER, Scenario, Storm, fresh_folder
from tests.models import counting_model


def main(args: list[str] | None = None) -> int:
    """0 where nothing at all was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__)
    for f in dataclasses.fields(Scenario):
        if isinstance(f.default, (int, float, str)):
            parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f"[{f.default}]")
    low, high = next(f.default for f in dataclasses.fields(Scenario) if f.name == "pause")
    parser.add_argument("--pause", type=float, nargs=2, default=(low, high), help="s between two misfortunes")
    parser.add_argument("--storms", type=int, default=1, help="how many, with the seeds that follow each other")
    parser.add_argument("--model", type=Path, help="a model directory [one that counts its steps]")
    parser.add_argument("--folder", type=Path, help="keep topics and logs here, a folder for each seed")
    given = vars(parser.parse_args(args))
    storms, model, base = given.pop("storms"), given.pop("model"), given.pop("folder")
    first = Scenario(**given | {"pause": tuple(given["pause"])})
    print(HEADER, flush=True)
    bad = 0
    for seed in range(first.seed, first.seed + storms):
        folder = fresh_folder(base, seed)
        outcome = None
        try:
            outcome = Storm(dataclasses.replace(first, seed=seed), folder, model or counting_model(folder / "m")).run()
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
