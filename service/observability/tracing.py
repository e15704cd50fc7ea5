"""The interface for tracing the worker's loop. It does nothing without `--traces`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from tidecast.service.broker.port import Batch
from tidecast.service.pipeline.batch import BatchResult

_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Does nothing; see `service.observability.otel`. The trace headers of readings are copied to forecasts anyway."""

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """A context manager around the processing of one batch."""
        return _NOTHING

    def answered(self, result: BatchResult) -> None:
        """Called before forecasts and dead letters are emitted; may change their headers."""

    def commit(self, partitions: int) -> AbstractContextManager[None]:
        """A context manager around a commit of the offsets of this many partitions."""
        return _NOTHING

    def close(self) -> None:
        """Send the remaining spans; blocks for a few seconds at most."""
