"""`tidecast topics`: what topics there are, and making those that the worker needs."""

from __future__ import annotations

import argparse

from service import configuration, settings
from service.broker.base import Broker
from service.broker.connect import connect_as_set
from service.errors import BrokerError, UsageError
from service.settings import Settings
from service.topics import CHANGELOG_CONFIG, check_compacted

HELP = """\
List the topics and their partitions (list, the default), or make those that the worker needs (create).

Input, output and changelog must have the same number of partitions: a forecast and a state go to the number of
their reading's. The changelog, which holds the states, is compacted."""
EXAMPLE = """\
tidecast topics create --partitions 4
tidecast topics --bootstrap-servers kafka:9092"""

DEFAULT_PARTITIONS = 4
# A dead letter is its reading and some headers. A reading may be as large as a topic's default lets it be (1 MiB).
DEAD_LETTER_CONFIG = {"max.message.bytes": str(2 << 20)}


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
    configuration.add_flags(
        parser,
        *settings.CONNECTION,
        "input_topic",
        "output_topic",
        "dead_letter_topic",
        "changelog_topic",
    )


def run(args: argparse.Namespace) -> int:
    """List or create; what there is goes to stdout."""
    config = configuration.from_args(args)
    for name in ("partitions", "replication_factor"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1", got=value)
    broker = connect_as_set(config)
    try:
        if args.action == "create":
            made = create(broker, config, partitions=args.partitions, replication_factor=args.replication_factor)
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


def create(
    broker: Broker, config: Settings, *, partitions: int | None = None, replication_factor: int | None = None
) -> dict[str, bool]:
    """Make input, output, dead-letter topic and changelog where they are missing: `topic -> whether it was made now`.

    `partitions` None takes the number of those that are there.

    Raises:
        BrokerError: those that are there do not fit, and nothing was made; or Kafka cannot be reached.
    """
    roles = ("input_topic", "output_topic", "changelog_topic")
    there = {role: n for role in roles if (n := broker.partitions(getattr(config, role))) is not None}
    first = next(iter(there), roles[0])
    for role, count in there.items():
        if count != there[first]:
            topic = getattr(config, role)
            raise BrokerError(
                f"the topic {getattr(config, first)} has {there[first]} partitions and {topic} has {count}; "
                "they must have the same number",
                do=f"Name another: tidecast topics create {settings.flag(role)} {topic}-{there[first]}",
            )
    wanted = partitions or there.get(first, DEFAULT_PARTITIONS)
    if there and there[first] != wanted:
        raise BrokerError(
            f"the topic {getattr(config, first)} has {there[first]} partitions already; input, output and changelog "
            "must have the same number",
            got=wanted,
            do=f"Use that number: tidecast topics create --partitions {there[first]}",
        )
    if "changelog_topic" in there:
        check_compacted(broker, config)
    extra = {} if replication_factor is None else {"replication.factor": str(replication_factor)}
    own = {config.dead_letter_topic: DEAD_LETTER_CONFIG, config.changelog_topic: CHANGELOG_CONFIG}
    return {
        topic: broker.create_topic(topic, wanted, config={**own.get(topic, {}), **extra})
        for topic in (config.input_topic, config.output_topic, *own)
    }


def _print(rows: list[tuple[str, int | None, str]]) -> None:
    width = max((len(topic) for topic, _, _ in rows), default=0)
    for topic, count, note in rows:
        print(f"{topic:<{width}}  {count:>4} partitions  {note}".rstrip())
