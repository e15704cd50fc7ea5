"""`tidecast inspect`: what is in a data file, and a config to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from tidecast.service.errors import UsageError
from tidecast.service.input.config import read_input
from tidecast.training.commands import folder

HELP = """\
look at a data file: what is in it, what is wrong with it, and a training config to start from

Finds the time column, the key of the series, the step, gaps, missing values, duplicates, outliers, level shifts and
seasons of a CSV (also .gz) or Parquet file, and proposes a config that trains. Where each row holds one value and the
name of its feature, the config has an [input] table that joins them into readings."""
EXAMPLE = """\
tidecast inspect readings.csv
tidecast inspect readings.csv --targets load,heat --write-config load.toml --plots plots"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="CSV (also .gz) or Parquet")
    parser.add_argument("--targets", metavar="A,B", help="the columns to forecast [the first complete one]")
    parser.add_argument("--time", metavar="COLUMN", help="the column of times [found]")
    parser.add_argument(
        "--series", metavar="COLUMN",
        help="the key column; none = one series; columns = each target column is a series of one shared model [found]",
    )  # fmt: skip
    parser.add_argument(
        "--input", metavar="FILE", help="TOML file whose [input] table says how rows become readings [found where each "
        "row holds one value of one feature: the long form]",
    )  # fmt: skip
    parser.add_argument(
        "--write-config", metavar="FILE", help="write the proposed config here; never over another file"
    )
    parser.add_argument("--plots", metavar="DIR", help="draw the series, its seasons and its gaps into this directory")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the findings on stdout; write the config and plots if requested."""
    from tidecast.training.inspection.inspect import InspectOptions, inspect
    from tidecast.training.inspection.report import show

    target = Path(args.write_config) if args.write_config else None
    if target is not None and target.exists():
        raise UsageError("--write-config would overwrite a file", got=str(target), do="Name another, or remove it.")
    targets = [name.strip() for name in args.targets.split(",") if name.strip()] if args.targets else None
    table = read_input(args.input) if args.input else None
    options = InspectOptions(time=args.time, series=args.series, targets=targets, table=table)
    found = inspect(args.file, options, relative_to=target.parent if target is not None else None)
    if target is not None:
        folder(target.parent)
        target.write_text(found.proposal.text, encoding="utf-8")
    plots: list[str] = []
    if args.plots:
        from tidecast.training.inspection.plots import save_plots  # matplotlib takes a second to import

        plots = [str(path) for path in save_plots(found, folder(args.plots))]
    if args.json:
        report = {**found.report(), "config_text": found.proposal.text, "plots": plots}
        print(msgspec.json.encode(report).decode())
        return 0
    show(found, config_written=str(target) if target is not None else None, plots=plots)
    return 0
