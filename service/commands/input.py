"""`tidecast input check`: what the records of a topic are, and what an [input] table makes of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tidecast.service.config import loader, settings
from tidecast.service.config.settings import Settings
from tidecast.service.errors import TidecastError

if TYPE_CHECKING:
    from tidecast.service.broker.sample import Sample
    from tidecast.service.input.config import InputConfig
    from tidecast.service.input_check.proposal import Proposal

HELP = """\
Look at the newest records of a topic: as they are, and as the readings that an [input] table makes of them.

Without --input it finds a table that fits, and prints it; with --propose, that table alone: save it, and give it to
`tidecast serve` as --input. With both, it completes the table, such as one that has only the URL of a schema registry.
It reads the newest 1,000 records, joins no group and writes nothing to Kafka.
Exit codes: 0 = each record is read, or skipped as the table says; 1 = some are refused, none can be read, or a feature
of the model is in no field; 2 = wrong usage, such as a table that cannot be used."""
EXAMPLE = """\
tidecast input check --topic sensors
tidecast input check --topic sensors --propose > input.toml
tidecast input check --topic sensors --input input.toml --model model"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The one action, and where Kafka is."""
    actions = parser.add_subparsers()
    check = actions.add_parser("check", help="show the newest records of a topic, and what becomes of them")
    check.add_argument("--topic", "--input-topic", dest="input_topic", metavar="TEXT", help="the topic [readings]")
    check.add_argument("--propose", action="store_true", help="print only a table that fits, as TOML")
    check.add_argument("--model", metavar="DIR", help="check for this model's features [all numbers are features]")
    loader.add_flags(check, *settings.CONNECTION, "input")


def run(args: argparse.Namespace) -> int:
    """Print what there is; the exit code."""
    config = loader.from_args(args)

    from tidecast.service.input.config import read_input

    table = read_input(config.input) if config.input else None
    features = _features(config) if args.model is not None else None
    sample = _sample(config)
    return (_propose if args.propose else _check)(sample, table, features)


def _sample(config: Settings) -> Sample:
    from tidecast.service.broker.connect import connect_from_settings
    from tidecast.service.broker.sample import newest

    topic, broker = config.input_topic, connect_from_settings(config)
    try:
        if not broker.partitions(topic):
            raise TidecastError(f"there is no topic {topic}", do="`tidecast topics` lists those that there are.")
        sample = newest(broker, topic, config.broker_timeout_seconds)
    finally:
        broker.close()
    if not len(sample.batch):
        raise TidecastError(f"{topic} holds no record", do="Send some, then check again.")
    return sample


def _features(config: Settings) -> Sequence[str]:
    from tidecast.service.model.session import Model

    return Model.load(config.model, max_bytes=config.model_max_bytes).spec.features


def _propose(sample: Sample, table: InputConfig | None, features: Sequence[str] | None) -> int:
    """The table alone on stdout; what becomes of the records on stderr."""
    from tidecast.service.input_check import report
    from tidecast.service.input_check.proposal import mapped_by, propose
    from tidecast.service.input_check.toml_text import toml_text

    found = propose(sample.batch, features, table)
    print(toml_text(found.table, found.say), end="")
    if not found.complete:
        print("This table must be completed before it can be used: its comments say how.", file=sys.stderr)
        return 1
    mapped = mapped_by(found.config, sample.batch, _those_found(features, found))
    print("\n".join(report.summary(sample, mapped, found.config, found.absent)), file=sys.stderr)
    return 1 if report.refused(mapped) or found.absent else 0


def _check(sample: Sample, table: InputConfig | None, features: Sequence[str] | None) -> int:
    """Records, readings, the proposal if there is no table, and what is to be said of all."""
    from tidecast.service.input_check import report
    from tidecast.service.input_check.proposal import mapped_by, propose

    batch = sample.batch
    shown = min(report.SHOWN, len(batch))
    print(f"The newest {shown} of {len(batch):,} records read from {batch.topic}, the newest last:\n")
    proposal = propose(batch, features) if table is None else None
    absent: list[str] = []
    if proposal is not None and proposal.complete:
        table, features, absent = proposal.config, _those_found(features, proposal), proposal.absent
    mapped = None if table is None else mapped_by(table, batch, features)
    print("\n".join(report.records(batch, mapped)))
    if proposal is not None:
        _print_proposal(proposal, batch.topic)
    if mapped is None or table is None:
        return 1
    print("\n".join(report.summary(sample, mapped, table, absent)))
    return 1 if report.refused(mapped) or absent else 0


def _those_found(features: Sequence[str] | None, proposal: Proposal) -> Sequence[str] | None:
    """The model's features without those of which the table does not say where they are."""
    return [name for name in features or () if name not in proposal.absent] or None


def _print_proposal(proposal: Proposal, topic: str) -> None:
    from tidecast.service.input_check.toml_text import toml_text

    fits = "This table fits" if proposal.complete else "This is as much of a table as the records say"
    print(f"There is no --input. {fits}:\n")
    print("\n".join(f"    {line}".rstrip() for line in toml_text(proposal.table, proposal.say).splitlines()) + "\n")
    print(f"To save it: tidecast input check --topic {topic} --propose > input.toml\n")
