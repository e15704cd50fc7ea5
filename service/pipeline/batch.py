"""A batch in progress, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.dead_letters import DeadLetterReason, RecordRejected
from tidecast.service.pipeline.decode import DecodedReadings
from tidecast.service.pipeline.encode import RecordPositions
from tidecast.service.pipeline.policy import Outcome

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NO_DEAD_LETTERS = dict.fromkeys(DeadLetterReason, 0)
_NO_RESETS = dict.fromkeys(("non_finite", "gap", "tombstone", "evicted", "expired"), 0)


@dataclass(slots=True)
class BatchCounts:
    """What happened in one batch. readings = forecasts + duplicates + late + dead letters for any other reason."""

    readings: int = 0  # all records except tombstones and replayed ones
    replayed: int = 0  # records read again after a restore, to bring states up to date; they were answered before
    forecasts: int = 0
    duplicates: int = 0
    late: int = 0
    tombstones: int = 0
    dead_letters: dict[DeadLetterReason, int] = field(default_factory=_NO_DEAD_LETTERS.copy)
    gaps: dict[str, int] = field(default_factory=lambda: {"filled": 0, "restarted": 0})
    imputed_steps: int = 0
    missing: dict[str, int] = field(default_factory=dict)  # feature -> values missing in readings that were answered
    resets: dict[str, int] = field(default_factory=_NO_RESETS.copy)
    waves: list[int] = field(default_factory=list)  # the size of each
    stage_seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "step": 0.0, "encode": 0.0})


@dataclass(slots=True)
class BatchResult:
    """The answers to one batch. Forecasts and dead letters are in the order of their records."""

    forecasts: OutgoingBatch
    dead_letters: OutgoingBatch
    counts: BatchCounts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    event_times: Int64  # [forecasts] ms
    positions: RecordPositions  # of the readings that are answered
    spec: ModelSpec  # of the model that made the forecasts
    partitions: NDArray[np.int32]  # [records] of the batch, whatever their outcome
    timestamps: Int64  # [records] ms, the records' own


@dataclass(slots=True)
class BatchWork:
    """A batch in progress: columns with a row for each record."""

    batch: Batch
    readings: DecodedReadings
    partitions: NDArray[np.int32]  # [records]
    offsets: Int64  # [records]
    timestamps: Int64  # [records] ms, the records' own
    slots: Int64  # [records] of each record's series at the start of the batch; -1 = the series is new
    arrived: Int64  # [records] ms, the record's timestamp, or the reading's where it has none
    outcome: NDArray[np.int8]  # [records] see `Outcome`
    warm: Mask  # [records]
    y: NDArray[np.float32]  # [records, horizon, targets, quantiles], or [records, classes]
    score: NDArray[np.float32]  # [records, diagnostics]
    replayed: Mask  # [records] answered before the last commit: they only update states
    counts: BatchCounts = field(default_factory=BatchCounts)
    rejected: dict[int, RecordRejected] = field(default_factory=dict)  # record -> why it is a dead letter

    def reject(self, record: int, rejection: RecordRejected) -> None:
        """Make the record a dead letter."""
        self.outcome[record] = Outcome.DEAD
        self.rejected[record] = rejection
