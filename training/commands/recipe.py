"""`tidecast recipe`: published experiments through this trainer, this export and this worker."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import sys
import time
from pathlib import Path

from tidecast.service.errors import DataError, UsageError
from tidecast.training.commands import folder
from tidecast.training.recipes import RECIPES, SUMMARIES

HELP = "run a published experiment again: train, compare, plot, export, and serve it (no name = list them)"
EXAMPLE = "tidecast recipe running-sum --out build/recipes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="which one, or `all`; without it they are listed")
    parser.add_argument("--out", metavar="DIR", default="build/recipes", help="where DIR/NAME/ is written")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of weights and data (0)")
    parser.add_argument(
        "--data", metavar="FILE", help="the digits (.npz) for mnist-rows, the folder of NAB's data for nab"
    )
    parser.add_argument("--quick", action="store_true", help="a reduced form, in seconds; its figures mean nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the tables")


def run(args: argparse.Namespace) -> int:
    """List the recipes, or run one or all; returns 1 if a figure is missed or data is missing."""
    if args.name is None:
        width = max(map(len, RECIPES))
        for name in RECIPES:
            print(f"{name:<{width}}  {SUMMARIES[name]}")
        return 0
    if args.name not in (*RECIPES, "all"):
        near = difflib.get_close_matches(args.name, [*RECIPES, "all"], n=1)
        do = f"Did you mean {near[0]}?" if near else f"There are {', '.join(RECIPES)}, and all."
        raise UsageError("unknown recipe", got=args.name, do=do)
    names = list(RECIPES) if args.name == "all" else [args.name]
    missed: list[str] = []
    for name in names:
        try:
            if not run_recipe(name, args):
                missed.append(name)
        except DataError as error:
            if len(names) == 1:
                raise
            print(f"tidecast: {error}", file=sys.stderr)  # the others need no data
            missed.append(name)
    if missed:
        print(f"tidecast: not reached: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def run_recipe(name: str, args: argparse.Namespace) -> bool:
    """Run one recipe and print its table; False if a figure is missed (never with --quick)."""
    import torch  # takes seconds to import: not for the list

    from tidecast.training.progress import Progress
    from tidecast.training.recipes.parts.show import Kit, print_outcome, styled

    torch.set_num_threads(1)  # two are slower on models this small
    recipe = importlib.import_module(RECIPES[name])
    out = Path(args.out) / name
    folder(out)
    began = time.perf_counter()
    with Progress(quiet=args.quiet) as progress, styled():
        data = None if args.data is None else Path(args.data)
        outcome = recipe.run(Kit(out, progress, seed=args.seed, quick=args.quick, data=data))
    (out / "figures.json").write_text(json.dumps(outcome.figures(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    print_outcome(outcome, time.perf_counter() - began, out, seed=args.seed, quick=args.quick)
    return args.quick or not outcome.missed
