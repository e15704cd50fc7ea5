"""`tidecast publish`: a new model replaces the current one, unless it is worse."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidecast.service.errors import UsageError

HELP = """\
replace the current model by a newly trained one, unless it is worse on rows that are new to both

Running workers load the new model without a restart. Where the candidate's forecasts are worse, nothing is changed, and
the exit code is 1."""
EXAMPLE = """\
tidecast publish --candidate build/newer --model model
tidecast publish --candidate build/newer --model model --data readings.csv --tolerance 0.02"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--candidate", required=True, metavar="DIR", help="the new model directory")
    parser.add_argument("--model", required=True, metavar="DIR", help="the served directory; created if missing")
    parser.add_argument("--data", metavar="FILE", help="readings to score both on [the candidate's]")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="how much worse it may be, as a share: 0.02 = 2 %% [0]",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, decide, and print in one line what was done."""
    if not 0 <= args.tolerance < 1:
        raise UsageError("--tolerance must be from 0 to below 1", got=args.tolerance)

    from tidecast.training.release.publish import publish

    data = Path(args.data) if args.data is not None else None
    print(publish(Path(args.candidate), Path(args.model), data=data, tolerance=args.tolerance))
    return 0
