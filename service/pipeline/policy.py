"""How readings that are not simply the next are handled, and what can become of a record."""

from __future__ import annotations

from dataclasses import dataclass

from tidecast.service.config.settings import Settings


class Outcome:
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
