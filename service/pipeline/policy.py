"""How late, duplicate, missing and expired readings are handled, and what the outcome of a record can be."""

from __future__ import annotations

from dataclasses import dataclass

from tidecast.service.config.settings import Settings
from tidecast.service.state.capacity import most_series


class Outcome:
    """The outcome of a record: exactly one of these. Not an Enum: in Python 3.11 each access to a member takes 1 µs."""

    FORECAST, DUPLICATE, LATE, TOMBSTONE, DEAD = range(5)
    APPLIED = 5  # a state restored from the changelog includes it already
    KINDS = 6


@dataclass(frozen=True, slots=True)
class Policy:
    """How readings are handled that are late, doubled, after a gap, far in the future, or of too many series."""

    max_gap_steps: int = 24
    max_series: int = 1_000_000
    series_ttl_ms: int = 0  # 0 = never
    max_future_ms: int = 86_400_000  # 0 = no limit
    late_recovery_readings: int = 5  # 0 = a series whose clock was ahead stays silent until then
    records_are_dated: bool = True  # False: a file, whose records have no time but that of their reading
    dead_letter_late: bool = False
    dead_letter_duplicate: bool = False
    group: str = "tidecast"

    @classmethod
    def from_settings(cls, settings: Settings, state_size: int) -> Policy:
        """The policy that the settings describe, for states of so many numbers."""
        return cls(
            max_gap_steps=settings.max_gap_steps,
            max_series=most_series(settings.max_series, state_size),
            series_ttl_ms=round(settings.series_ttl_seconds * 1_000),
            max_future_ms=round(settings.max_future_seconds * 1_000),
            late_recovery_readings=settings.late_recovery_readings,
            dead_letter_late=settings.dead_letter_late,
            dead_letter_duplicate=settings.dead_letter_duplicate,
            group=settings.group,
        )
