"""`tidecast evaluate`: a trained model on test rows, beside the baselines."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from service.errors import UsageError
from service.model import Model
from training.config import read_config

HELP = "measure a trained model on test rows, beside persistence, seasonal naive and a linear autoregression"
EXAMPLE = "tidecast evaluate --model build/weather"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a model directory")
    parser.add_argument(
        "--data", metavar="FILE", help="another file with the same columns, instead of the training data"
    )
    parser.add_argument("--json", action="store_true", help="print everything, by lead, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the table (or JSON) on stdout."""
    directory = Path(args.model)
    config = read_config(directory / "config.toml")
    model = Model.load(directory)
    if args.data is None and config.data.path is None:
        raise UsageError("the model's config has no data.path", do="Give the file with --data FILE.")
    data = Path(args.data) if args.data is not None else directory / str(config.data.path)

    from training.data import load_dataset
    from training.evaluate import evaluate, tracks
    from training.report import print_tables

    dataset = load_dataset(config, data)
    evaluation = evaluate(tracks(model.step, model.initial_state, config, dataset), config, dataset)
    if args.json:
        print(msgspec.json.encode(evaluation).decode())
        return 0
    print_tables(evaluation, config)
    return 0
