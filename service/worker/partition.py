"""All that the worker knows of one assigned partition, in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidecast.service.errors import ChangelogError
from tidecast.service.state.codec import Codec
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.served_model import ServedModel


@dataclass(slots=True)
class RestoreProgress:
    """How far a partition's changelog is read."""

    served: ServedModel
    codec: Codec  # reads the states
    position: int
    end: int
    committed: Committed | None
    rebuild: bool  # the states there have another layout: the model makes its own from recent input
    series: int = 0
    records: int = 0  # that were read; one series may have several
    useless: set[bytes] = field(default_factory=set)  # series whose state has another layout
    started: float = 0.0
    input_end: int | None = None  # the offset after the last reading, when the restore began
    # series -> (offset in the changelog, what is wrong), of intact states that this worker cannot use
    strange: dict[bytes, tuple[int, ChangelogError]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Partition:
    """One partition, from its assignment to its revocation, when the record is deleted.

    Only `PartitionAssignment` adds and deletes records. Each group of fields is set by one object, and read by all.
    """

    # PartitionAssignment
    read_from: int = 0  # where reading began
    next_offset: int | None = None  # the next reading has this offset or a later one; None = nothing was read yet
    # Restore
    restoring: bool = True  # its states are not back yet, and none of its readings is read
    restore: RestoreProgress | None = None  # None = Kafka was not asked yet, or the changelog is read
    # ServedModels
    model: ServedModel | None = None  # answers it; None = not chosen yet
    champion: int = 0  # which member of its group
    origin: str | None = None  # see `Committed.origin`
    decision: int = -1  # number of the one that made it the champion
    changelog_written: bool = False  # the changelog has states of it
    # ModelSwap
    swap_offset: int | None = None  # the next model has replayed it up to here; None = it does not replay it
    # Committer
    pending: int | None = None  # the next offset, to be committed
    in_flight: int | None = None  # likewise; Kafka was asked to commit it, and has not answered
    committed: int | None = None  # what is read before it is a replay
    replaying: bool = False  # has not reached its committed offset yet

    @property
    def answered(self) -> int | None:
        """The offset up to which all is answered; None = nothing ever was."""
        return next((at for at in (self.pending, self.in_flight, self.committed) if at is not None), None)


Partitions = Mapping[int, Partition]  # by number
