"""`tidecast demo`: from a CSV to live forecasts on a real Kafka, in one command."""

from __future__ import annotations

import argparse
import logging
import math
import os
from pathlib import Path

from tidecast.service.config import loader, settings
from tidecast.service.errors import UsageError
from tidecast.service.observability import logs

HELP = """\
Start Kafka and a worker, and show live forecasts of a sample CSV: everything in one command.

A starter, which needs no training, answers from the first reading on. Meanwhile a model is trained on the earlier rows
of the shipped weather sample (only the first time, about a minute). It then runs next to the starter on the same
readings, and takes over once a test says that it is better. The last two months of the sample are shown, again and
again; the model was not trained on them. Ends --seconds after both models run, or on Ctrl-C, and leaves nothing
running. The models are kept for the next time."""
EXAMPLE = """\
tidecast demo
tidecast demo --seconds 20 --speed 86400                  # a day of weather per second
tidecast demo --bootstrap-servers 127.0.0.1:9092          # on your own Kafka, with its own topics, deleted at the end
tidecast demo --model build/mine --data mine.csv"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Duration, speed, model, data, and which Kafka."""
    parser.add_argument("--seconds", default="60", metavar="S", help="how long the live part lasts [60]")
    parser.add_argument(
        "--speed",
        metavar="X",
        help="event time per second, s [345600, 4 days; with --data 36000, 10 hours]",
    )
    parser.add_argument("--model", metavar="DIR", help="your own model directory [a starter, and a trained one]")
    parser.add_argument("--data", metavar="FILE", help="the file to replay, with --model [the weather sample]")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where model, logs and Kafka's data are kept [~/.local/share/tidecast/demo]"
    )
    parser.add_argument(
        "--bootstrap-servers",
        dest="kafka",
        metavar="HOST:PORT",
        help="use this Kafka [starts an embedded one]",
    )
    loader.add_flags(parser, *(name for name in settings.CONNECTION if name != "bootstrap_servers"))


def run(args: argparse.Namespace) -> int:
    """Check the flags, then run the demo."""
    logs.setup("critical")  # errors are printed; the worker logs to a file
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    found = loader.resolve(
        loader.flags_of(args) | ({"bootstrap_servers": args.kafka} if args.kafka else {}), os.environ
    )
    config = settings.Settings(**{name: value for name, (value, _) in found.items()})
    if args.kafka is None and config.security_protocol != settings.default("security_protocol"):
        raise UsageError(
            "the demo's own Kafka has no security",
            got=f"{found['security_protocol'][1]} {config.security_protocol}",
            do="Give --bootstrap-servers of the Kafka that needs it, or leave it out.",
        )
    from tidecast.service.demo.run import Plan
    from tidecast.service.demo.run import run as run_demo

    home = Path(settings.default("broker_data_dir")).parent
    run_demo(
        Plan(
            seconds=_positive("--seconds", args.seconds),
            speed=_positive("--speed", args.speed or ("36000" if args.data else "345600")),
            folder=Path(args.data_dir or home / "demo").expanduser().absolute(),
            # Absolute: the worker and the producer run in the folder.
            model=Path(args.model).absolute() if args.model else None,
            data=Path(args.data).absolute() if args.data else None,
            bootstrap_servers=args.kafka,
            connection=_connection(args, config),
        ),
        config,
    )
    return 0


def _connection(args: argparse.Namespace, config: settings.Settings) -> tuple[str, ...]:
    """The flags with which worker, producer and page connect, without the address. They run in another folder."""
    flags = []
    for name in settings.CONNECTION:
        value = getattr(config, name)
        if settings.is_secret(name):
            value = getattr(args, name) or os.environ.get(settings.variable(name)) or ""
        if name != "bootstrap_servers" and value != settings.default(name) and value:
            path = settings.flag(name).endswith("-file")
            flags += [settings.flag(name), str(Path(value).expanduser().absolute() if path else value)]
    return tuple(flags)


def _positive(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{flag} must be a positive number", got=text)
    return value
