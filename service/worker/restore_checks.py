"""What a restore refuses, each with the command that helps: committed offsets, changelog and input must fit."""

from __future__ import annotations

import logging

from tidecast.service.broker.topics import made_again_advice, reset_command
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.served_model import ServedModel

log = logging.getLogger("tidecast.restore")


def check_written(settings: Settings, partition: int, committed: Committed | None, end: int) -> None:
    """See that states which were written are not lost. `end`: the changelog partition's end offset.

    Raises:
        BrokerError: the changelog is empty.
    """
    s = settings
    if committed is None or not committed.flushed or end > 0 or s.accept_gap:
        return
    raise BrokerError(
        f"the group {s.group!r} has committed offset {committed.offset} of {s.input_topic}-{partition} and written "
        f"states there, but the changelog {s.changelog_topic} is empty: its states are lost",
        do="Name the changelog with --changelog-topic. To continue with cold series: --accept-gap",
    )


def needs_rebuild(settings: Settings, partition: int, committed: Committed | None, served: ServedModel) -> bool:
    """True where the states are of another layout than the model's, which must make its own from recent input.

    Not where the states of other models that are served are among them: those are kept, and this one begins cold.

    Raises:
        ChangelogError: a model with another name made them.
    """
    made = served.made(committed)
    layout = served.codec.members[served.group.asked if made is None else made].layout
    if committed is None or committed.layout is None or committed.layout == layout:
        return False
    if {member.hash for member in served.codec.members}.intersection(committed.members):
        log.warning(
            "the model begins at its initial state: there are only states of other models, which are kept",
            extra={"partition": partition, "model": served.spec.id, "made_by": committed.model},
        )
        return False
    name = (committed.model or "").rpartition("@")[0]
    if name != served.spec.name:
        raise ChangelogError(
            f"the states of {settings.input_topic}-{partition} were made by the model {committed.model}, whose state "
            f"has another layout than that of {served.spec.id}",
            do="Serve a model of that name, give this one a --group and a --changelog-topic of its own, or begin "
            f"anew: {reset_command(settings)}",
        )
    return True


def check_fits(settings: Settings, partition: int, committed: Committed | None, series: int, newest: int) -> None:
    """See that the changelog and the committed offset belong together.

    Args:
        settings: what is in force.
        partition: which.
        committed: the group's offset there.
        series: how many the changelog has.
        newest: the last offset that a state of it holds, -1 = none does.

    Raises:
        BrokerError: they do not.
    """
    s, where = settings, f"{settings.input_topic}-{partition}"
    if committed is None and newest >= 0:
        raise BrokerError(
            f"the changelog has {series} states for {where}, but the group {s.group!r} has no offset there",
            do=f"Its offsets are lost, or the states belong to another group. To begin anew: {reset_command(s)}",
        )
    if committed is not None and newest >= committed.offset and s.delivery == "exactly-once":
        raise BrokerError(
            f"the changelog is ahead of the group {s.group!r}: a state holds offset {newest} of {where}, but the group "
            f"has committed {committed.offset}",
            do="Its offsets were set back, or it ran with at-least-once. To answer all from there again, cold: "
            f"{reset_command(s)}",
        )


def check_retained(settings: Settings, partition: int, first: int, start: int, committed: int) -> None:
    """See that retention has not deleted readings that are to be read. `first`: the first offset that is left.

    Raises:
        BrokerError: it has.
    """
    if first <= start or settings.accept_gap:
        return
    where = f"{settings.input_topic}-{partition}"
    if start < committed:
        raise BrokerError(
            f"{where} begins at offset {first}, but its states need a replay of {start} to {committed}: retention has "
            "deleted that range",
            do="Raise the topic's retention. To continue with the states as they are: --accept-gap",
        )
    raise BrokerError(
        f"{where} begins at offset {first}, but the readings from {start} on were not answered yet: retention has "
        f"deleted {first - start} of them",
        do="Raise the topic's retention. To continue without them: --accept-gap",
    )


def check_end(settings: Settings, partition: int, position: int, end: int) -> None:
    """See that the input has not become shorter. `position`: up to where it was read; `end`: its end offset.

    Raises:
        BrokerError: it has.
    """
    if end < position:
        raise BrokerError(
            f"{settings.input_topic}-{partition} ends at offset {end}, but was read up to {position}: the topic was "
            "made again, or its records were lost",
            do=made_again_advice(settings),
        )
