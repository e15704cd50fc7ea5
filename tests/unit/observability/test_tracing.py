"""A reading's trace is passed to its forecast or dead letter; spans are made only if requested."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.models import START_MS, STEP_MS, counting_model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.commands.worker_run import open_tracing
from tidecast.service.config.settings import Settings
from tidecast.service.errors import TidecastError
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.session import Model
from tidecast.service.observability.metrics import Metrics
from tidecast.service.observability.tracing import Tracing
from tidecast.service.worker.worker import Worker

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01".encode()
UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-00".encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def bench(model):
    return Bench(model)


class Bench:
    """A worker over a memory broker, which ends when nothing more arrives."""

    def __init__(self, model):
        self.model, self.broker = model, MemoryBroker()
        for topic in ("readings", "forecasts", "dead-letters"):
            self.broker.create_topic(topic, 1)
        self.broker.create_topic("tidecast-state", 1, CHANGELOG_CONFIG)

    def send(self, step, *headers, value=None):
        out = OutgoingBatch("readings")
        reading = json.dumps({"ts": START_MS + step * STEP_MS, "value": 1.0, "wind": 2.0}).encode()
        out.append(b"a", value or reading, partition=0, headers=headers)
        producer = self.broker.producer()
        producer.produce(out)
        producer.flush(1)

    def run(self, tracing=None):
        metrics = Metrics(self.model.spec, DeadLetterReason)
        turns = iter(range(5))
        worker = Worker(Settings(), self.model, self.broker, metrics, tracing=tracing,
                        between_batches=lambda: next(turns, None) is None and worker.stop())  # fmt: skip
        assert worker.run() == 0

    def headers(self, topic):
        consumer = self.broker.consumer(isolation="read_committed")
        consumer.assign(topic, {0: -2})
        return [dict(each) for each in consumer.poll(0, 1_000).headers]


def test_a_forecast_and_a_dead_letter_carry_their_reading_s_trace_and_no_other_header_is_copied(bench):
    bench.send(0, ("traceparent", SAMPLED), ("tracestate", b"vendor=1"), ("other", b"x"))
    bench.send(1)
    bench.send(2, ("traceparent", UNSAMPLED), value=b"?")
    bench.run()
    assert bench.headers("forecasts") == [{"traceparent": SAMPLED, "tracestate": b"vendor=1"}, {}]
    assert bench.headers("dead-letters")[0]["traceparent"] == UNSAMPLED


def test_without_traces_nothing_of_opentelemetry_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "tidecast.service.observability.otel", None)  # an import of it would fail
    assert type(open_tracing(Settings())) is Tracing


def test_traces_without_the_extra_are_refused_with_the_command_that_fixes_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tidecast.service.observability.otel", None)
    with pytest.raises(TidecastError, match=r"pip install 'tidecast\[otel\]'"):
        open_tracing(Settings(traces=True))


# With the SDK ----------------------------------------------------------------------------------------------------


@pytest.fixture
def spans():
    """Tracing whose spans stay in memory, and a call that gives them by name."""
    pytest.importorskip("opentelemetry.sdk", reason="needs tidecast[otel]")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tidecast.service.observability.otel import Spans

    memory = InMemorySpanExporter()
    tracing = Spans(Settings(traces=True, instance="w-1"), SimpleSpanProcessor(memory))
    yield tracing, lambda name: [span for span in memory.get_finished_spans() if span.name == name]
    tracing.close()


def test_a_sampled_reading_s_trace_goes_through_the_worker_to_its_forecast(bench, spans):
    tracing, named = spans
    bench.send(0, ("traceparent", SAMPLED), ("tracestate", b"vendor=1"))
    bench.run(tracing)
    (forecast,), (batch,) = named("forecast"), named("process readings")
    assert f"{forecast.context.trace_id:032x}" == TRACE
    assert f"{forecast.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert [link.context.span_id for link in forecast.links] == [batch.context.span_id]
    assert forecast.attributes["messaging.kafka.offset"] == 0
    (headers,) = bench.headers("forecasts")
    assert headers == {
        "traceparent": f"00-{TRACE}-{forecast.context.span_id:016x}-01".encode(),
        "tracestate": b"vendor=1",
    }


def test_a_reading_that_is_not_sampled_keeps_its_trace_and_gets_no_span(bench, spans):
    tracing, named = spans
    bench.send(0, ("traceparent", UNSAMPLED))
    bench.send(1, ("traceparent", b"rubbish"))
    bench.send(2)
    bench.run(tracing)
    assert named("forecast") == []
    assert bench.headers("forecasts") == [{"traceparent": UNSAMPLED}, {"traceparent": b"rubbish"}, {}]


def test_a_traced_dead_letter_s_span_says_why(bench, spans):
    tracing, named = spans
    bench.send(0, ("traceparent", SAMPLED), value=b"?")
    bench.run(tracing)
    (letter,) = named("dead letter")
    assert letter.status.description == "not_json" and not letter.status.is_ok
    (headers,) = bench.headers("dead-letters")
    assert headers["traceparent"] == f"00-{TRACE}-{letter.context.span_id:016x}-01".encode()
    assert headers["tidecast.reason"] == b"not_json"


def test_every_batch_and_every_commit_has_one_span_that_says_how_much(bench, spans):
    tracing, named = spans
    for step in range(5):
        bench.send(step)
    bench.run(tracing)
    (batch,), commits = named("process readings"), named("commit")
    assert batch.attributes["messaging.batch.message_count"] == 5
    assert batch.attributes["messaging.destination.name"] == "readings"
    assert batch.resource.attributes["service.name"] == "tidecast"
    assert batch.resource.attributes["service.instance.id"] == "w-1"
    assert commits and all(span.attributes["tidecast.partitions"] == 1 for span in commits)


def test_a_batch_that_breaks_the_worker_leaves_a_span_with_the_error(bench, spans, monkeypatch):
    tracing, named = spans
    monkeypatch.setattr("tidecast.service.worker.served_models.ServedModels.process", lambda *_: 1 / 0)
    bench.send(0)
    with pytest.raises(TidecastError, match="division by zero"):
        bench.run(tracing)
    (batch,) = named("process readings")
    assert not batch.status.is_ok and batch.events[0].name == "exception"


def test_the_service_name_of_the_environment_is_kept(request, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "forecasts-of-the-north")
    tracing, named = request.getfixturevalue("spans")
    with tracing.commit(1):
        pass
    (span,) = named("commit")
    assert span.resource.attributes["service.name"] == "forecasts-of-the-north"


def test_spans_are_sent_by_otlp_to_where_the_environment_says(bench, spans, monkeypatch):
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    tracing = open_tracing(Settings(traces=True))
    bench.send(0, ("traceparent", SAMPLED))
    bench.run(tracing)
    tracing.close()
    server.shutdown()
    server.server_close()
    assert [path for path, _ in got] == ["/v1/traces"]
    assert all(name in got[0][1] for name in (b"process readings", b"forecast", b"commit", bytes.fromhex(TRACE)))
