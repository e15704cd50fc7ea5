"""Spans for OpenTelemetry: what the worker's loop tells, and nothing done with it unless `--traces` asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from service.broker.base import Batch
from service.errors import TidecastError
from service.policy import Result
from service.settings import Settings

_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Does nothing; `service.spans` has what does. A reading's own trace goes on to its forecast either way."""

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """Around what is made of the readings of one poll."""
        return _NOTHING

    def answered(self, result: Result) -> None:
        """Before forecasts and dead letters are emitted; may change their headers."""

    def commit(self, partitions: int) -> AbstractContextManager[None]:
        """Around a commit of so many partitions' offsets."""
        return _NOTHING

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at the most."""


def open_tracing(settings: Settings) -> Tracing:
    """What the settings ask for.

    Raises:
        TidecastError: it needs packages that are not there.
    """
    if not settings.traces:
        return Tracing()
    try:
        from service.spans import Spans
    except ModuleNotFoundError as missing:
        raise TidecastError(f"--traces needs {missing.name}", do="Run: pip install 'tidecast[otel]'") from None
    return Spans(settings)
