"""`tidecast evaluate`: score a trained model on test rows next to the baselines, or several models side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from tidecast.service.errors import UsageError
from tidecast.training.commands import folder

HELP = "score a trained model on test rows, compared with persistence, seasonal naive and a linear autoregression"
EXAMPLE = "tidecast evaluate --model build/weather"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", metavar="DIR", help="a model directory")
    parser.add_argument(
        "--data", metavar="FILE", help="another file with the same columns, instead of the training data"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="these model directories side by side (and --model, if given, first)",
    )
    parser.add_argument("--scaled", action="store_true", help="in standard deviations of each series' training rows")
    parser.add_argument("--leads", metavar="N,N", help="the steps ahead to print, such as 1,6,24")
    parser.add_argument("--plots", metavar="DIR", help="write error_by_lead.png and coverage_by_lead.png into DIR")
    parser.add_argument("--json", action="store_true", help="print everything, by lead, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the tables (or JSON) on stdout."""
    directories = [Path(d) for d in [*([args.model] if args.model else []), *(args.compare or [])]]
    if not directories:
        raise UsageError("there is nothing to evaluate", do="Give --model DIR, or --compare DIR DIR.")
    if args.compare and len(directories) < 2:
        raise UsageError("--compare needs at least two models", got=str(directories[0]), do="Name another directory.")
    data = Path(args.data) if args.data is not None else None

    from tidecast.training.release import compare
    from tidecast.training.report import plots
    from tidecast.training.report import tables as report

    if args.compare:
        models = compare.side_by_side(directories, data, scaled=args.scaled)
    else:
        models = [compare.measured(directories[0], data, scaled=args.scaled)]
    first = models[0]
    leads = _leads(args.leads, first.config.model.horizon)
    if args.plots is not None:
        units = {t: report.unit_of(first.evaluation, first.config, t) for t in first.config.targets}
        for path in plots.save_measures(folder(args.plots), first.config, compare.methods_of(models), units):
            print(f"wrote {path}", file=sys.stderr)
    if args.json:
        print((compare.as_json(models) if args.compare else msgspec.json.encode(first.evaluation)).decode())
    elif args.compare:
        compare.print_comparison(models, leads)
    else:
        report.print_tables(first.evaluation, first.config, leads=leads, intervals=True)
    return 0


def _leads(given: str | None, horizon: int) -> list[int] | None:
    if given is None:
        return None
    try:
        leads = sorted({int(part) for part in given.split(",")})
    except ValueError:
        leads = []
    if not leads or not 1 <= leads[0] <= leads[-1] <= horizon:
        raise UsageError("--leads must be steps ahead", got=given, do=f"Give numbers from 1 to {horizon}, such as 1.")
    return leads
