"""`tidecast topics`: lists topics, and creates those that the worker needs."""

from __future__ import annotations

import argparse

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.topics import DEFAULT_PARTITIONS, create_topics
from tidecast.service.config import loader, settings
from tidecast.service.errors import UsageError

HELP = """\
List the topics and their partitions, or create those that the worker needs.

Input, output and changelog must have the same number of partitions: a forecast and a state go to the partition with
the number of their reading's. The changelog, which holds the states, is compacted."""
EXAMPLE = """\
tidecast topics create --partitions 4
tidecast topics --bootstrap-servers kafka:9092"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The two actions, and where Kafka is."""
    parser.set_defaults(action="list")
    actions = parser.add_subparsers()
    listing = actions.add_parser("list", help="list the topics and their partitions (the default)")
    creating = actions.add_parser("create", help="create the topics that the worker needs")
    creating.add_argument(
        "--partitions",
        type=int,
        metavar="N",
        help=f"partitions of each new topic [those of an existing one, or of the source, else {DEFAULT_PARTITIONS}]",
    )
    creating.add_argument(
        "--replication-factor", type=int, metavar="N", help="copies of each partition [the cluster's default]"
    )
    topics = ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic", "decisions_topic", "source_topic")
    for each in (listing, creating):
        loader.add_flags(each, *settings.CONNECTION, *topics)


def run(args: argparse.Namespace) -> int:
    """List or create; the topics go to stdout."""
    config = loader.from_args(args)
    for name in ("partitions", "replication_factor"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1", got=value)
    broker = connect_from_settings(config)
    try:
        if args.action == "create":
            made = create_topics(broker, config, partitions=args.partitions, replication_factor=args.replication_factor)
            _print([(topic, broker.partitions(topic), "created" if new else "exists") for topic, new in made.items()])
        else:
            roles = {
                config.input_topic: "input",
                config.output_topic: "output",
                config.dead_letter_topic: "dead letters",
                config.changelog_topic: "changelog",
                config.decisions_topic: "decisions",
                config.source_topic: "source",
            }
            _print([(topic, count, roles.get(topic, "")) for topic, count in sorted(broker.topics().items())])
    finally:
        broker.close()
    return 0


def _print(rows: list[tuple[str, int | None, str]]) -> None:
    width = max((len(topic) for topic, _, _ in rows), default=0)
    for topic, count, note in rows:
        shown = "?" if count is None else count  # None = another made it just now, and not all of Kafka knows it
        print(f"{topic:<{width}}  {shown:>4} partitions  {note}".rstrip())
