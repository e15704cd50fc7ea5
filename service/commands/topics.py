"""`tidecast topics`: what topics there are, and making those that the worker needs."""

from __future__ import annotations

import argparse

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.topics import DEFAULT_PARTITIONS, create_topics
from tidecast.service.config import loader, settings
from tidecast.service.errors import UsageError

HELP = """\
List the topics and their partitions (list, the default), or make those that the worker needs (create).

Input, output and changelog must have the same number of partitions: a forecast and a state go to the number of
their reading's. The changelog, which holds the states, is compacted."""
EXAMPLE = """\
tidecast topics create --partitions 4
tidecast topics --bootstrap-servers kafka:9092"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The action, how to make topics, and where."""
    parser.add_argument("action", nargs="?", choices=("list", "create"), default="list", help="what to do [list]")
    parser.add_argument(
        "--partitions",
        type=int,
        metavar="N",
        help=f"partitions of each topic that is made [those of a topic that is there, else {DEFAULT_PARTITIONS}]",
    )
    parser.add_argument(
        "--replication-factor", type=int, metavar="N", help="copies of each partition [the cluster's default]"
    )
    loader.add_flags(
        parser,
        *settings.CONNECTION,
        "input_topic",
        "output_topic",
        "dead_letter_topic",
        "changelog_topic",
    )


def run(args: argparse.Namespace) -> int:
    """List or create; what there is goes to stdout."""
    config = loader.from_args(args)
    for name in ("partitions", "replication_factor"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1", got=value)
    broker = connect_from_settings(config)
    try:
        if args.action == "create":
            made = create_topics(broker, config, partitions=args.partitions, replication_factor=args.replication_factor)
            _print([(topic, broker.partitions(topic), "made" if new else "was there") for topic, new in made.items()])
        else:
            roles = {
                config.input_topic: "input",
                config.output_topic: "output",
                config.dead_letter_topic: "dead letters",
                config.changelog_topic: "changelog",
            }
            _print([(topic, count, roles.get(topic, "")) for topic, count in sorted(broker.topics().items())])
    finally:
        broker.close()
    return 0


def _print(rows: list[tuple[str, int | None, str]]) -> None:
    width = max((len(topic) for topic, _, _ in rows), default=0)
    for topic, count, note in rows:
        print(f"{topic:<{width}}  {count:>4} partitions  {note}".rstrip())
