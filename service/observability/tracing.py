"""Spans for OpenTelemetry: what the worker's loop tells, and nothing done with it unless `--traces` asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from tidecast.service.broker.port import Batch
from tidecast.service.pipeline.batch import BatchResult

_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Does nothing; see `service.observability.otel`. A reading's own trace goes on to its forecast either way."""

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """Around what is made of the readings of one poll."""
        return _NOTHING

    def answered(self, result: BatchResult) -> None:
        """Before forecasts and dead letters are emitted; may change their headers."""

    def commit(self, partitions: int) -> AbstractContextManager[None]:
        """Around a commit of so many partitions' offsets."""
        return _NOTHING

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at the most."""
