"""A batch in progress, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.input.canonical import DecodedReadings
from tidecast.service.input.mapping import MappedBatch
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.encode import RecordPositions
from tidecast.service.pipeline.policy import Outcome

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NO_DEAD_LETTERS = dict.fromkeys(DeadLetterReason, 0)
_NO_RESETS = dict.fromkeys(("non_finite", "gap", "clock", "tombstone", "evicted", "expired"), 0)
_NO_PARTS = dict.fromkeys(("taken", "repeated", "late", "dropped"), 0)


@dataclass(slots=True)
class BatchCounts:
    """What happened in one batch. readings = forecasts + duplicates + late + dead letters for any other reason.

    Where readings are routed, readings = routed + dead letters.
    """

    readings: int = 0  # all records except tombstones and replayed ones
    replayed: int = 0  # records read again after a restore, to bring states up to date; they were answered before
    forecasts: int = 0
    routed: int = 0
    duplicates: int = 0
    late: int = 0
    tombstones: int = 0
    dead_letters: dict[DeadLetterReason, int] = field(default_factory=_NO_DEAD_LETTERS.copy)
    gaps: dict[str, int] = field(default_factory=lambda: {"filled": 0, "restarted": 0})
    imputed_steps: int = 0
    skipped: int = 0  # records that the [input] table leaves out, or that hold no reading
    unused_values: int = 0  # of the long form, under names that are no feature
    unused_names: list[str] = field(default_factory=list)
    # of readings that come in several records: taken, repeated, late; dropped with their series, or by another model
    parts: dict[str, int] = field(default_factory=_NO_PARTS.copy)
    incomplete: int = 0  # joined readings that were answered without all features of the model
    missing: dict[str, int] = field(default_factory=dict)  # feature -> values missing in readings that were answered
    resets: dict[str, int] = field(default_factory=_NO_RESETS.copy)
    shadow_resets: dict[str, int] = field(default_factory=dict)  # model -> its states, as a shadow's, not finite
    clock_recoveries: int = 0  # series that started again because their clock was ahead
    recovered: list[bytes] = field(default_factory=list)  # their keys
    waves: list[int] = field(default_factory=list)  # the size of each
    stage_seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "step": 0.0, "encode": 0.0})

    def count_input(self, mapped: MappedBatch, new: Mask | None = None) -> None:
        """Count what holds no reading, and values that no feature has, of the records [records] that are `new`."""
        if new is None:
            self.skipped, self.unused_values = mapped.skipped, mapped.unused.total()
        else:
            without = new.copy()
            without[slice(None) if mapped.records is None else mapped.records] = False
            self.skipped = int(np.count_nonzero(without))
            self.unused_values = int(np.count_nonzero(new[mapped.unused_records]))
        self.unused_names = list(mapped.unused)


@dataclass(slots=True)
class MemberScores:
    """How the earlier forecasts of one model of a group fared."""

    spec: ModelSpec
    scores: NDArray[np.float32]  # [forecasts, diagnostics] NaN = nothing to score
    warm: Mask  # [forecasts] the model has had its warm-up steps of the series


@dataclass(slots=True)
class ScoredBatch:
    """How the models of a group fared in one batch, which one champion answered."""

    keys: list[bytes]  # [forecasts] the series, in the order of the log
    partitions: NDArray[np.int32]  # [forecasts]
    ts: Int64  # [forecasts] ms, event time
    members: list[MemberScores]  # the champion first


@dataclass(slots=True)
class BatchResult:
    """The answers to one batch. Forecasts and dead letters are in the order of their records."""

    forecasts: OutgoingBatch  # or the readings that are routed
    dead_letters: OutgoingBatch
    counts: BatchCounts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    event_times: Int64  # [forecasts] ms
    positions: RecordPositions  # of the readings that are answered
    spec: ModelSpec | None  # of the model that made the forecasts; None = readings are routed
    partitions: NDArray[np.int32]  # [records] of the batch, whatever their outcome
    timestamps: Int64  # [records] ms, the records' own
    members: list[MemberScores] = field(default_factory=list)  # the champion first; none where there are no shadows

    @property
    def scored(self) -> ScoredBatch | None:
        """How the models fared; None where there are no shadows, or nothing was answered."""
        if not self.members or not len(self.forecasts):
            return None
        keys = [key for key in self.forecasts.keys if key is not None]
        return ScoredBatch(keys, self.positions.partitions, self.event_times, self.members)


@dataclass(slots=True)
class BatchWork:
    """A batch in progress: columns with a row for each record."""

    mapped: MappedBatch
    readings: DecodedReadings
    partitions: NDArray[np.int32]  # [records]
    offsets: Int64  # [records]
    timestamps: Int64  # [records] ms, the records' own
    slots: Int64  # [records] of each record's series at the start of the batch; -1 = the series is new
    arrived: Int64  # [records] ms, the record's timestamp, or the reading's where it has none
    arrived_at: Int64  # [records] ms, the same, but the wall clock's where it has none
    furthest_ahead: int  # ms, the most that any reading is after its record
    outcome: NDArray[np.int8]  # [records] see `Outcome`
    warm: Mask  # [records]
    y: NDArray[np.float32]  # [records, horizon, targets, quantiles], or [records, classes]
    score: NDArray[np.float32]  # [records, diagnostics]
    replayed: Mask  # [records] answered before the last commit: they only update states
    counts: BatchCounts = field(default_factory=BatchCounts)
    rejected: dict[int, RecordRejected] = field(default_factory=dict)  # record -> why it is a dead letter

    @property
    def batch(self) -> Batch:
        """The readings' records; one that holds several readings is there several times."""
        return self.mapped.batch

    def reject(self, record: int, rejection: RecordRejected) -> None:
        """Make the record a dead letter."""
        self.outcome[record] = Outcome.DEAD
        self.rejected[record] = rejection

    def moved(self, record: int, theirs: int) -> RecordRejected:
        """Why a reading is refused whose series' state belongs to another partition."""
        return RecordRejected(
            DeadLetterReason.OTHER_PARTITION,
            f"the readings of this series lie in several partitions: in {theirs} and, this one, in "
            f"{self.partitions[record]}. Let `tidecast route` bring them together",
        )


def together(parts: BatchWork, pieces: Sequence[BatchWork]) -> BatchWork:
    """The pieces of a batch as one, which says what was left out of it; there is at least one piece."""
    if len(pieces) == 1:
        (whole,) = pieces
    else:
        sizes = [len(piece.outcome) for piece in pieces]
        begins = [sum(sizes[:nth]) for nth in range(len(sizes))]
        columns = {
            name: np.concatenate([getattr(piece, name) for piece in pieces])
            for name in (
                *("partitions", "offsets", "timestamps", "slots", "arrived", "arrived_at"),
                *("outcome", "warm", "y", "score", "replayed"),
            )
        }
        records = [record for piece in pieces for record in piece.mapped.records or ()]
        readings = DecodedReadings(
            np.concatenate([piece.readings.ts for piece in pieces]),
            np.concatenate([piece.readings.x for piece in pieces]),
        )
        rows = Batch(parts.batch.topic)
        for name in ("partitions", "offsets", "timestamps", "keys", "values", "headers"):
            setattr(rows, name, [value for piece in pieces for value in getattr(piece.batch, name)])
        rejected = {
            begin + row: rejection
            for begin, piece in zip(begins, pieces, strict=True)
            for row, rejection in piece.rejected.items()
        }
        mapped = MappedBatch(rows, readings, parts.mapped.features, parts.mapped.source, records)
        whole = BatchWork(
            mapped=mapped,
            readings=readings,
            furthest_ahead=parts.furthest_ahead,
            counts=parts.counts,
            rejected=rejected,
            **columns,
        )
    return whole
