"""Create the topics that the worker needs, and check that they fit each other."""

from __future__ import annotations

import logging
import shlex

import msgspec

from tidecast.service.broker.port import Broker, TopicInfo
from tidecast.service.config.settings import Settings, default, flag
from tidecast.service.errors import BrokerError, Rejected

log = logging.getLogger("tidecast.broker")

_CLEANUP = "cleanup.policy"
# Only the last state of a series counts. Kafka compacts closed segments only, and by default a segment stays open for
# a week or until 1 GiB, so a restore would read all of it. Small segments mean less to read; at 4 MB a million series
# take a few hundred.
CHANGELOG_CONFIG = {
    _CLEANUP: "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": "600000",
    "segment.bytes": str(4 << 20),
}
DEFAULT_PARTITIONS = 4
_KAFKAS_DEFAULT = 1_048_588
MAX_PRODUCED_BYTES = 8 << 20  # the clients hand over no larger record
MAX_RECORD_BYTES = "max.message.bytes"
# A dead letter is the reading with headers. A reading can have the default limit of a topic (1 MiB).
DEAD_LETTER_CONFIG = {MAX_RECORD_BYTES: str(2 << 20)}
# Who answered when, and why: one order for all, and kept for ever. A few records a year.
DECISIONS_CONFIG = {_CLEANUP: "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_ROLES = ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic")


def create_topics(
    broker: Broker, settings: Settings, *, partitions: int | None = None, replication_factor: int | None = None
) -> dict[str, bool]:
    """Create missing ones of input, output, dead-letter topic, changelog and decisions: `topic -> created now`.

    `partitions` None = the number that the existing ones have, else that of the source topic, if one is named. The
    decisions are in one partition.

    Raises:
        BrokerError: the existing ones do not fit, or there is no source topic, and nothing was created; or Kafka cannot
            be reached.
    """
    routed = _source_partitions(broker, settings) if settings.source_topic else DEFAULT_PARTITIONS
    roles = ("input_topic", "output_topic", "changelog_topic")
    there = {role: n for role in roles if (n := broker.partitions(getattr(settings, role))) is not None}
    first = next(iter(there), roles[0])
    for role, count in there.items():
        if count != there[first]:
            topic = getattr(settings, role)
            raise BrokerError(
                f"the topic {getattr(settings, first)} has {there[first]} partitions and {topic} has {count}; "
                "they must have the same number",
                do=f"Name another: tidecast topics create {flag(role)} {topic}-{there[first]}",
            )
    wanted = partitions or there.get(first, routed)
    if there and there[first] != wanted:
        raise BrokerError(
            f"the topic {getattr(settings, first)} has {there[first]} partitions already; input, output and changelog "
            "must have the same number",
            got=wanted,
            do=f"Use that number: tidecast topics create --partitions {there[first]}",
        )
    if "changelog_topic" in there:
        check_compacted(broker, settings)
    extra = {} if replication_factor is None else {"replication.factor": str(replication_factor)}
    own = {settings.dead_letter_topic: DEAD_LETTER_CONFIG, settings.changelog_topic: CHANGELOG_CONFIG}
    made = {
        topic: broker.create_topic(topic, wanted, config={**own.get(topic, {}), **extra})
        for topic in (settings.input_topic, settings.output_topic, *own)
    }
    decisions = settings.decisions_topic
    return made | {decisions: broker.create_topic(decisions, 1, config=DECISIONS_CONFIG | extra)}


def _source_partitions(broker: Broker, settings: Settings) -> int:
    found = broker.partitions(settings.source_topic)
    if found is None:
        raise BrokerError(
            f"there is no topic {settings.source_topic}",
            do=f"It is the one that you have: {flag('source_topic')} with its name. `tidecast topics` lists all.",
        )
    return found


def _check_routed(broker: Broker, settings: Settings) -> dict[str, TopicInfo]:
    """As `check_topics`, for a worker that routes. The source and its output may differ in their partitions."""
    written = msgspec.structs.replace(settings, input_topic=settings.output_topic, output_topic=default("output_topic"))
    count = _source_partitions(broker, written)
    names = (settings.input_topic, settings.output_topic, settings.dead_letter_topic)
    topics = {name: info for name in names if (info := broker.describe(name)) is not None}
    if missing := [name for name in names if name not in topics]:
        raise BrokerError(
            f"there is no topic {' and no topic '.join(missing)}",
            do=f"Make what is missing: {create_command(written, broker.partitions(settings.output_topic) or count)}",
        )
    return topics


def check_topics(broker: Broker, settings: Settings) -> dict[str, TopicInfo]:
    """Check that all topics exist and fit each other; they, by name.

    Input, output and changelog must have the same number of partitions, and the changelog must be compacted. Where the
    worker follows decisions, their topic must exist. A worker
    that routes needs its source, its output and the dead-letter topic, with any number of partitions.

    Raises:
        BrokerError: they do not fit; the message has the command that fixes it.
    """
    if settings.routes:
        return _check_routed(broker, settings)
    s = settings
    names = [getattr(s, role) for role in _ROLES] + [s.decisions_topic] * s.decides
    topics = {name: info for name in names if (info := broker.describe(name)) is not None}
    found = {name: topics[name].partitions if name in topics else None for name in names}
    wanted = found[s.input_topic] or found[s.output_topic] or found[s.changelog_topic] or DEFAULT_PARTITIONS
    missing = [name for name in names if found[name] is None]
    if missing:
        raise BrokerError(
            f"there is no topic {' and no topic '.join(missing)}",
            do=f"Make what is missing: {create_command(s, wanted)}",
        )
    if found[s.input_topic] != found[s.output_topic]:
        raise BrokerError(
            f"{s.input_topic} has {found[s.input_topic]} partitions and {s.output_topic} {found[s.output_topic]}; "
            "they must have the same number, for a forecast goes to the partition number of its reading",
            do=f"Delete {s.output_topic}, or name another with --output-topic, then: {create_command(s, wanted)}",
        )
    if found[s.input_topic] != found[s.changelog_topic]:
        raise BrokerError(
            f"{s.input_topic} has {found[s.input_topic]} partitions and {s.changelog_topic} "
            f"{found[s.changelog_topic]}; they must have the same number: a state is in the partition number of "
            "its series' readings",
            do=f"Delete {s.changelog_topic}, or name another with --changelog-topic, then: {create_command(s, wanted)}",
        )
    check_compacted(broker, s)
    return topics


def largest_record(broker: Broker, topic: str) -> int:
    """The most bytes that a record of the topic may have; Kafka's default where the right to ask is missing.

    Raises:
        BrokerError: the cluster cannot be reached.
    """
    try:
        config = broker.topic_config(topic)
    except Rejected as error:
        log.info(
            "the largest record of the topic is not known, assuming Kafka's default",
            extra={"topic": topic, "bytes": _KAFKAS_DEFAULT, "reason": error.what},
        )
        config = {}
    return min(int(config.get(MAX_RECORD_BYTES, _KAFKAS_DEFAULT)), MAX_PRODUCED_BYTES)


def check_compacted(broker: Broker, settings: Settings) -> None:
    """Check that the changelog, which must exist, is compacted and not deleted by retention.

    Raises:
        BrokerError: it is not; the message has the command that fixes it.
    """
    topic = settings.changelog_topic
    policy = broker.topic_config(topic).get(_CLEANUP, "delete")
    if policy.strip() != "compact":
        raise BrokerError(
            f"the changelog {topic} must be compacted ({_CLEANUP}=compact), or retention deletes the states of quiet "
            "series",
            got=policy,
            do="Name another with --changelog-topic and make it with `tidecast topics create`, or: "
            + config_command(settings, topic, f"{_CLEANUP}=compact"),
        )


def config_command(settings: Settings, topic: str, setting: str) -> str:
    """The command of Kafka's that gives a topic a setting, `name=value`."""
    return (
        f"kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {topic} --add-config {setting}"
    )


def create_command(settings: Settings, partitions: int) -> str:
    """The `tidecast topics create` command that creates what is missing."""
    names = ("source_topic", *_ROLES, "decisions_topic")
    return f"tidecast topics create --partitions {partitions}{_where(settings, *names)}"


def reset_command(settings: Settings) -> str:
    """The `tidecast state reset` command that deletes all states, so that the input is answered from initial states."""
    return f"tidecast state reset --all{_where(settings, 'input_topic', 'changelog_topic', 'group')}"


def made_again_advice(settings: Settings) -> str:
    """What to do where the input holds other records than those that the offsets and states are of."""
    if settings.routes:
        return (
            "The group's offsets belong to the old records. Stop all of its workers, then: kafka-consumer-groups.sh "
            f"--bootstrap-server {settings.bootstrap_servers} --group {shlex.quote(settings.group)} "
            f"--topic {settings.input_topic} --reset-offsets --to-earliest --execute"
        )
    return (
        "Its offsets and the states belong to the old records. Delete them, then start the worker again: "
        + reset_command(settings)
    )


def _where(settings: Settings, *names: str) -> str:
    """The flags that a printed command needs for the same cluster and the same names."""
    return "".join(
        f" {flag(name)} {shlex.quote(getattr(settings, name))}"
        for name in ("bootstrap_servers", *names)
        if getattr(settings, name) != default(name)
    )
