"""`tidecast train`: from a config to a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from tidecast.service.errors import UsageError
from tidecast.service.input.config import read_input
from tidecast.training.commands import folder
from tidecast.training.config import Config, check, read_config

HELP = "fit a forecaster on a file of readings and export it as one ONNX graph"
EXAMPLE = "tidecast train training/samples/weather.toml --out build/weather"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the training config, a TOML file")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument("--data", metavar="FILE", help="CSV or Parquet, instead of the config's data.path")
    parser.add_argument("--input", metavar="FILE", help="TOML file whose [input] table says how the data file is read, "
                        "instead of the config's [input], data.time and data.series")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="instead of fit.seed")
    parser.add_argument("--threads", type=int, metavar="N", help="instead of fit.threads (0 = one for each core)")
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of fit.epochs")
    parser.add_argument("--train-until", metavar="TIME", help="instead of data.train_until")
    parser.add_argument("--validate-until", metavar="TIME", help="instead of data.validate_until")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")


def run(args: argparse.Namespace) -> int:
    """Train, check, write, and print the table of the test rows."""
    config_path = Path(args.config)
    config = read_config(config_path, instead=read_input(args.input) if args.input else None)
    overrides = {name: getattr(args, name) for name in ("seed", "threads", "epochs") if getattr(args, name) is not None}
    dates = {name: getattr(args, name) for name in ("train_until", "validate_until") if getattr(args, name) is not None}
    config = msgspec.structs.replace(
        config,
        fit=msgspec.structs.replace(config.fit, **overrides),
        data=msgspec.structs.replace(config.data, **dates),
    )
    check(config)
    data = _data_path(args.data, config, config_path)
    out = folder(args.out)

    from tidecast.training.train import (
        train,  # torch takes seconds to import: not before the config is known to be good
    )

    train(config, data, out, quiet=args.quiet)
    return 0


def _data_path(given: str | None, config: Config, config_path: Path) -> Path:
    if given is not None:
        return Path(given)
    if config.data.path is None:
        raise UsageError("the config has no data.path", do="Give the file with --data FILE.")
    return config_path.parent / config.data.path
