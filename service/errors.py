"""Errors that a person reads: what is wrong, what was got, what to do.

The command line prints `str(error)` alone on stderr and exits with `error.exit_code`; a traceback
means a bug of ours, never a mistake of the user's.
"""

from __future__ import annotations


class TidecastError(Exception):
    """One clear sentence or two: `what`, optionally what was `got`, and what to `do` about it."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, do: str | None = None) -> None:
        self.what = what
        self.got = got
        self.do = do
        text = what if got is None else f"{what}, got {got!r}"
        super().__init__(f"{text}. {do}" if do else text)


class UsageError(TidecastError):
    """A command, setting or training config that cannot be used as written."""

    exit_code = 2


class ModelError(TidecastError):
    """A model file or directory that breaks the contract and is refused."""


class DataError(TidecastError):
    """A data file that cannot be read as it is described."""


class InputUnavailable(TidecastError):
    """A schema registry, which the records cannot be read without, does not answer now; a later try may succeed."""


class BrokerError(TidecastError):
    """Kafka, or the embedded broker, cannot do what was asked."""


class BrokerUnavailable(BrokerError):
    """Kafka does not answer at the moment; a later try may succeed."""


class NoCoordinator(BrokerUnavailable):
    """Kafka answers, but cannot begin a transaction, for nothing coordinates them."""

    def __init__(self, servers: str) -> None:
        super().__init__(
            f"Kafka at {servers} answers, but has no transaction coordinator",
            do="A cluster with fewer than three brokers needs transaction.state.log.replication.factor=1 and "
            "transaction.state.log.min.isr=1. Or use --delivery at-least-once, which needs no transactions.",
        )


class ConnectionRejected(BrokerError):
    """Kafka refuses the connection, or we do not trust it. Trying again does not help."""


class ConnectionClosed(BrokerError):
    """What listens there closes each connection."""


class Rejected(BrokerError):
    """Kafka answers, and refuses: the topic is gone, a right is missing, a record is too large. No retry helps."""


class Fenced(BrokerError):
    """Another process has taken over: the transactional id, or our partitions of the consumer group.

    No reader sees the open transaction, unless only the answer to its commit was lost. The producer must be replaced;
    `Consumer.committed` then says what was committed.
    """


class MemberEvicted(Fenced):
    """The group has evicted this member: it was silent for too long, and others have its partitions."""

    WHAT = "the consumer group has moved on without this member"
    DO = "Poll on: this member joins again, and what was not committed is read again."

    def __init__(self, doing: str) -> None:
        super().__init__(f"{doing}: {self.WHAT}", do=self.DO)


class InstanceFenced(Fenced):
    """A process that joined later has our instance id, and our place in the group: it continues, and we end."""

    def __init__(self, doing: str, name: str | None) -> None:
        super().__init__(
            f"{doing}: another process has {'this name' if name is None else f'the name {name!r}'}",
            do="Nothing is lost: it joined later and continues. Give every worker a name of its own (--instance).",
        )


class ChangelogError(TidecastError):
    """A record of the changelog that cannot be used.

    Attributes:
        layout: the 8 bytes of its own, where another model wrote it.
        intact: somebody wrote it as it is: another model, another version, or for another input topic.
        offset: of the reading that it includes, where the input topic has no such reading.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        do: str | None = None,
        layout: bytes | None = None,
        intact: bool = False,
        offset: int | None = None,
    ) -> None:
        super().__init__(what, got=got, do=do)
        self.layout, self.intact, self.offset = layout, intact, offset


class DeadLetterFlood(TidecastError):
    """So many dead letters that continuing would hide a fault upstream; the worker stops."""
