"""Spans by the OpenTelemetry SDK, sent by OTLP over HTTP. The usual OTEL_* variables configure it.

Each batch and each commit gets a span, the root of a trace. A reading with a sampled `traceparent` header also gets a
span in its own trace, linked to the span of its batch; its forecast or dead letter carries this span as its parent.
Other readings get no span, so the cost scales with the number of traced readings.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from tidecast import __version__
from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.observability.tracing import Tracing
from tidecast.service.pipeline.batch import BatchResult
from tidecast.service.pipeline.dead_letters import TRACE_HEADERS

_LAST_SECONDS = 3.0  # at the end, for spans that are not sent yet
_format = TraceContextTextMapPropagator()

Attributes = dict[str, AttributeValue]
PositionOf = Callable[[int], tuple[int, int]]  # row -> partition and offset of the reading


class Spans(Tracing):
    """For the loop's thread; spans are sent by another one.

    Args:
        settings: of the worker.
        processor: receives the spans; None = sends them in batches by OTLP.
    """

    def __init__(self, settings: Settings, processor: SpanProcessor | None = None) -> None:
        own = {"service.name": "tidecast", "service.version": __version__}
        if settings.instance != "auto":
            own["service.instance.id"] = settings.instance
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence over these values.
        resource = Resource(own).merge(Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else own))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tidecast", __version__)
        self._common: Attributes = {
            "messaging.system": "kafka",
            "messaging.consumer.group.name": settings.group,
        }
        self._batch: SpanContext | None = None
        self._began = 0  # ns

    @contextmanager
    def batch(self, batch: Batch) -> Iterator[None]:
        """One span; an error that ends it is recorded."""
        self._began = time.time_ns()
        attributes: Attributes = self._common | {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": batch.topic,
            "messaging.batch.message_count": len(batch),
        }
        with self._tracer.start_as_current_span("process readings", kind=SpanKind.CONSUMER, attributes=attributes) as s:
            self._batch = s.get_span_context()
            yield
            self._batch = None

    def answered(self, result: BatchResult) -> None:
        """A span for each traced reading, passed on in the headers of its forecast or dead letter."""
        positions = result.positions
        name = "reading" if result.spec is None else "forecast"
        self._add_spans(
            result.forecasts, name, lambda row: (int(positions.partitions[row]), int(positions.offsets[row]))
        )
        self._add_spans(result.dead_letters, "dead letter")

    def _add_spans(
        self, outgoing: OutgoingBatch, name: str, position_of: Callable[[int], tuple[int, int]] | None = None
    ) -> None:
        if not any(outgoing.headers):
            return
        links = [Link(self._batch)] if self._batch is not None else []
        for row, headers in enumerate(outgoing.headers):
            if not headers:
                continue
            parent_headers = {key: value.decode("ascii", "replace") for key, value in headers if key in TRACE_HEADERS}
            context = _format.extract(parent_headers)
            parent = trace.get_current_span(context).get_span_context()
            if not (parent.is_valid and parent.trace_flags.sampled):
                continue  # the headers are passed on unchanged
            attributes: Attributes = self._common | {
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": outgoing.topic,
            }
            if position_of is not None:
                partition, offset = position_of(row)
                attributes |= {"messaging.destination.partition.id": str(partition), "messaging.kafka.offset": offset}
            span = self._tracer.start_span(
                name,
                context,
                kind=SpanKind.PRODUCER,
                attributes=attributes,
                links=links,
                start_time=self._began or None,
            )
            if position_of is None:
                reason = next((value for key, value in headers if key == "tidecast.reason"), b"")
                span.set_status(Status(StatusCode.ERROR, reason.decode("ascii", "replace")))
            carried: dict[str, str] = {}
            _format.inject(carried, trace.set_span_in_context(span))
            span.end()
            kept = [header for header in headers if header[0] not in TRACE_HEADERS]
            outgoing.headers[row] = [*kept, *((key, value.encode("ascii")) for key, value in carried.items())]

    @contextmanager
    def commit(self, partitions: int) -> Iterator[None]:
        """One span."""
        attributes: Attributes = self._common | {
            "messaging.operation.name": "commit",
            "messaging.operation.type": "settle",
            "tidecast.partitions": partitions,
        }
        with self._tracer.start_as_current_span("commit", kind=SpanKind.CLIENT, attributes=attributes):
            yield

    def close(self) -> None:
        """Send the remaining spans, for a few seconds at most, since the collector may not be reachable."""
        sending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        sending.start()
        sending.join(_LAST_SECONDS)
