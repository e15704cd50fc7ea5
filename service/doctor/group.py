"""Checks of the consumer group and what it has committed."""

from __future__ import annotations

import time

from tidecast.service.broker.port import Broker
from tidecast.service.doctor.patient import GROUP_RIGHTS, NotChecked, Patient, Said, State
from tidecast.service.errors import TidecastError
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.wording import counted
from tidecast.service.worker.group_watch import unowned
from tidecast.service.worker.restore_checks import check_end, check_retained, check_written, needs_rebuild

_GIVE_UP_S = 5.0  # a member may need that long to give up a partition that moves


def members(patient: Patient) -> Said:
    """Whether workers run."""
    _require_group(patient)
    count = patient.group.members
    group = f"the group {patient.settings.group!r}"
    if left := _left_out(patient) if count else ():
        yield (
            State.WRONG,
            f"{counted(len(left), 'partition')} of {patient.settings.input_topic} ({', '.join(map(str, left))}) "
            f"{'has' if len(left) == 1 else 'have'} no owner although {group} has {counted(count, 'member')}: "
            "a worker makes the group assign all partitions again within 30 s; if none does, restart one",
        )
        return
    yield State.OK, f"{group} has {counted(count, 'member')}" if count else f"{group} has no members: no worker runs"


def _left_out(patient: Patient) -> tuple[int, ...]:
    """The partitions that no member has, now and after a while."""
    s = patient.settings
    before = unowned(patient.broker, s.group, s.input_topic)
    if before is None:
        return ()
    time.sleep(_GIVE_UP_S)
    return before.partitions if unowned(patient.broker, s.group, s.input_topic) == before else ()


def offsets(patient: Patient) -> Said:
    """What is committed fits the input and the changelog, and how many readings wait."""
    s = patient.settings
    _require_group(patient)
    patient.require_input()
    count = patient.broker.partitions(s.input_topic) or 0
    consumer = patient.broker.consumer(group=s.group)  # which joins no group: it subscribes to nothing
    try:
        consumer.assign(s.input_topic, dict.fromkeys(range(count), 0))
        found = consumer.committed(range(count))
        first, ends = consumer.beginning_offsets(range(count)), consumer.end_offsets(range(count))
    finally:
        consumer.close()
    committed = {p: Committed.parse(*entry) for p, entry in found.items() if entry is not None}
    states = _ends(patient.broker, s.changelog_topic) if "READ" not in patient.missing_rights("changelog_topic") else {}
    wrong = False
    for partition, each in committed.items():
        try:
            check_end(s, partition, each.offset, ends[partition])
            check_retained(s, partition, first[partition], each.offset, each.offset)
            if partition in states:
                check_written(s, partition, each, states[partition])
            if patient.load_model is not None:
                needs_rebuild(s, partition, each, patient.model)
        except TidecastError as error:
            wrong = True
            yield State.WRONG, str(error)
    if wrong:
        return
    waiting = sum(ends[p] - (committed[p].offset if p in committed else first[p]) for p in ends)
    if not committed:
        kept = sum(ends[p] - first[p] for p in ends)
        begins = f"would answer all {kept:,} that are there" if s.start == "earliest" else "would wait for new ones"
        yield State.OK, f"the group {s.group!r} has committed nothing yet: a worker {begins} (--start {s.start})"
    else:
        yield (
            State.OK,
            f"committed in {len(committed)} of {counted(count, 'partition')}, {waiting:,} readings wait (lag)",
        )


def _require_group(patient: Patient) -> None:
    allowed = patient.group.operations
    if allowed is not None and not allowed.issuperset(GROUP_RIGHTS):
        raise NotChecked(f"no right to read the group {patient.settings.group}")


def _ends(broker: Broker, topic: str) -> dict[int, int]:
    """The end offsets of the changelog, also of what is not committed yet; none where there is no such topic."""
    partitions = range(broker.partitions(topic) or 0)
    if not partitions:
        return {}
    consumer = broker.consumer(isolation="read_uncommitted")
    try:
        consumer.assign(topic, dict.fromkeys(partitions, 0))
        return consumer.end_offsets(partitions)
    finally:
        consumer.close()
