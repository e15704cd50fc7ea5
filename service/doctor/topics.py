"""Checks of the topics and their settings."""

from __future__ import annotations

from tidecast.service.broker.topics import MAX_RECORD_BYTES, check_topics, config_command, largest_record
from tidecast.service.doctor.patient import NotChecked, Patient, Said, State
from tidecast.service.errors import Rejected
from tidecast.service.wording import about, counted

_CLEANUP, _RETENTION, _IN_SYNC = "cleanup.policy", "retention.ms", "min.insync.replicas"
_SHORT_MS = 3_600_000
_RECORD_BYTES = 200  # of a batch with one record


def topics(patient: Patient) -> Said:
    """All exist and fit each other, as a start checks it."""
    s = patient.settings
    _require_rights(patient)
    if "DESCRIBE_CONFIGS" in patient.missing_rights("changelog_topic"):
        raise NotChecked(f"no right to ask for the settings of {s.changelog_topic}")
    found = check_topics(patient.broker, s)
    count, dead = counted(found[s.input_topic].partitions, "partition"), found[s.dead_letter_topic].partitions
    same = f"{s.input_topic}, {s.output_topic} and {s.changelog_topic} have {count} each"
    yield State.OK, f"{same}, {s.dead_letter_topic} has {dead}; {s.changelog_topic} is compacted"
    if s.decides:
        yield from _decisions(patient)


def _decisions(patient: Patient) -> Said:
    """Decisions are in one order, and kept: else workers would disagree, or forget which model answers."""
    topic = patient.settings.decisions_topic
    config, count = _config(patient, topic), patient.broker.partitions(topic)
    wrong = [f"has {count} partitions, not one, so decisions have no order"] * (count != 1)
    lost = config and ("delete" not in config.get(_CLEANUP, "delete") or int(config.get(_RETENTION, -1)) >= 0)
    wrong += ["does not keep decisions for ever"] * bool(lost)
    if wrong:
        do = "Delete it and make it with `tidecast topics create`"
        yield State.WRONG, f"{topic} {' and '.join(wrong)}. {do}: the model of --model then answers"
    else:
        yield State.OK, f"{topic} keeps decisions in one order"


def copies(patient: Patient) -> Said:
    """Each partition has a leader, and copies enough to be written."""
    s, brokers, fine = patient.settings, patient.cluster.brokers, True
    _require_rights(patient)
    there = {getattr(s, role): (role, facts) for role, facts in patient.topics.items() if facts.there}
    if not there:
        raise NotChecked("there are no topics")
    for topic, (role, facts) in there.items():
        needed = int(_config(patient, topic).get(_IN_SYNC, 1))
        if facts.without_leader:
            fine, which = False, ", ".join(map(str, facts.without_leader))
            yield State.WRONG, f"{topic} has no leader for partition {which}. Start the brokers that have its copies"
        elif "WRITE" in patient.topic_rights[role] and facts.in_sync < needed:
            fine = False
            text = (
                f"Kafka refuses what is written to {topic}: it has {counted(facts.in_sync, 'copy', 'copies')} in sync "
            )
            text += f"and {_IN_SYNC}={needed}. Start the brokers that are missing, or ask for fewer: "
            yield State.WRONG, text + config_command(s, topic, f"{_IN_SYNC}={max(1, facts.in_sync)}")
    single = [topic for topic, (_, facts) in there.items() if facts.replicas == 1]
    if fine and single and brokers > 1:
        text = (
            f"there is one copy of {', '.join(single)}: while its broker is away, nothing can be read or written. Make "
        )
        yield State.NOTE, text + f"topics with `tidecast topics create --replication-factor {min(3, brokers)}`"
    elif fine:
        fewest = min(facts.replicas for _, facts in there.values())
        yield State.OK, f"each partition has a leader, and at least {counted(fewest, 'copy', 'copies')}"


def retention(patient: Patient) -> Said:
    """The input keeps readings until they are answered."""
    s, topic = patient.settings, patient.settings.input_topic
    patient.require_input()
    config = _config(patient, topic)
    if not config:
        raise NotChecked(f"no right to ask for the settings of {topic}, which `tidecast serve` does not need")
    kept = int(config.get(_RETENTION, -1))
    if "compact" in config.get(_CLEANUP, "delete"):
        text = (
            f"{topic} is compacted: of the readings that wait, Kafka keeps only the newest of each series. Change it: "
        )
        yield State.WRONG, text + config_command(s, topic, f"{_CLEANUP}=delete")
    elif 0 <= kept < _SHORT_MS:
        text = (
            f"{topic} keeps readings for {about(kept)}: if no worker runs for longer, readings are lost. For a week: "
        )
        yield State.NOTE, text + config_command(s, topic, f"{_RETENTION}=604800000")
    else:
        yield State.OK, f"{topic} keeps readings for {'ever' if kept < 0 else about(kept)}"


def record_size(patient: Patient) -> Said:
    """The largest forecast fits the output topic."""
    s, topic, forecasts = patient.settings, patient.settings.output_topic, patient.answers.forecasts
    if not len(forecasts):
        raise NotChecked("none of the newest readings would be answered")
    if not patient.topics["output_topic"].there:
        raise NotChecked(f"there is no topic {topic}")
    pairs = zip(forecasts.keys, forecasts.values, strict=True)
    largest = max(len(key or b"") + len(value or b"") for key, value in pairs) + _RECORD_BYTES
    limit = largest_record(patient.broker, topic)
    if largest > limit:
        text = f"a forecast of this model has {largest:,} bytes, and {topic} takes {limit:,}. Raise the limit: "
        yield State.WRONG, text + config_command(s, topic, f"{MAX_RECORD_BYTES}={2 * largest}")
    else:
        yield State.OK, f"forecasts have up to {largest:,} bytes, and {topic} takes {limit:,}"


def _require_rights(patient: Patient) -> None:
    hidden = [getattr(patient.settings, role) for role, facts in patient.topics.items() if not facts.described]
    if hidden:
        raise NotChecked(f"no right to look at {', '.join(hidden)}")


def _config(patient: Patient, topic: str) -> dict[str, str]:
    """The topic's settings; none where the right to ask is missing."""
    try:
        return patient.broker.topic_config(topic)
    except Rejected:
        return {}
