"""How readings are dealt with that are not simply the next; a batch on its way, and what it led to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.broker.base import Batch, Outgoing
from service.decoding import Readings
from service.encoding import Sources
from service.messages import DeadLetterReason, Refused
from service.spec import ModelSpec

if TYPE_CHECKING:
    from service.settings import Settings

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Fate:
    """What becomes of a record: exactly one of these. No Enum: Python 3.11 takes 1 µs to find a member of one."""

    FORECAST, DUPLICATE, LATE, TOMBSTONE, DEAD = range(5)
    APPLIED = 5  # a state from the changelog holds it already
    KINDS = 6


@dataclass(frozen=True, slots=True)
class Policy:
    """How readings that are not simply the next are dealt with; design.md, "what happens"."""

    max_gap_steps: int = 24
    max_series: int = 1_000_000
    series_ttl_ms: int = 0  # 0 = never
    max_future_ms: int = 86_400_000  # 0 = no limit
    dead_letter_late: bool = False
    dead_letter_duplicate: bool = False
    group: str = "tidecast"

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """The policy that the settings ask for."""
        return cls(
            max_gap_steps=settings.max_gap_steps,
            max_series=settings.max_series,
            series_ttl_ms=round(settings.series_ttl_seconds * 1_000),
            max_future_ms=round(settings.max_future_seconds * 1_000),
            dead_letter_late=settings.dead_letter_late,
            dead_letter_duplicate=settings.dead_letter_duplicate,
            group=settings.group,
        )


_NO_DEAD_LETTERS = dict.fromkeys(DeadLetterReason, 0)
_NO_RESETS = dict.fromkeys(("non_finite", "gap", "tombstone", "evicted", "expired"), 0)


@dataclass(slots=True)
class Counts:
    """What happened in one batch. readings = forecasts + duplicates + late + dead letters that are neither."""

    readings: int = 0  # every record but the tombstones and those replayed
    replayed: int = 0  # records read again after a restore, to bring states up to date; answered before
    forecasts: int = 0
    duplicates: int = 0
    late: int = 0
    tombstones: int = 0
    dead_letters: dict[DeadLetterReason, int] = field(default_factory=_NO_DEAD_LETTERS.copy)
    gaps: dict[str, int] = field(default_factory=lambda: {"filled": 0, "restarted": 0})
    silent_steps: int = 0
    resets: dict[str, int] = field(default_factory=_NO_RESETS.copy)
    waves: list[int] = field(default_factory=list)  # the size of each
    stage_seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "step": 0.0, "encode": 0.0})


@dataclass(slots=True)
class Result:
    """What one batch led to. Forecasts and dead letters are in the order of their records."""

    forecasts: Outgoing
    dead_letters: Outgoing
    counts: Counts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    event_times: NDArray[np.int64]  # [forecasts] ms
    sources: Sources  # the readings that are answered
    spec: ModelSpec  # of the model that made them
    partitions: NDArray[np.int32]  # [records] of the batch, whatever became of them
    timestamps: Int64  # [records] ms, their own


@dataclass(slots=True)
class Work:
    """One batch on its way: columns with a row for each record."""

    batch: Batch
    readings: Readings
    partitions: NDArray[np.int32]  # [records]
    offsets: Int64  # [records]
    timestamps: Int64  # [records] ms, of the records themselves
    slots: Int64  # [records] of its series, as the batch begins; -1 = it is new
    arrived: Int64  # [records] ms, the record's own time, or the reading's where it has none
    fate: NDArray[np.int8]  # [records]
    warm: Mask  # [records]
    y: NDArray[np.float32]  # [records, horizon, targets, quantiles], or [records, classes]
    score: NDArray[np.float32]  # [records, diagnostics]
    counts: Counts
    letters: dict[int, Refused]  # record -> why it is a dead letter
    silent: Mask  # [records] answered before the last commit: only the states move on

    def refuse(self, record: int, refusal: Refused) -> None:
        """It becomes a dead letter."""
        self.fate[record] = Fate.DEAD
        self.letters[record] = refusal
