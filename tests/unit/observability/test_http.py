"""The pages: what Prometheus, Kubernetes and a curious person get."""

import contextlib
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, Counter

from tidecast.service.errors import TidecastError, UsageError
from tidecast.service.observability import http as pages
from tidecast.service.observability.http import HttpServer
from tidecast.service.observability.scrapes import SCRAPE_SECONDS


class FakeStatus:
    def __init__(self):
        self.reason = None
        self.missing = {}
        self.known = {"häfen/1": {"series": "häfen/1", "state": {"h": [1.0, float("nan")]}}}

    def not_live(self):
        return self.reason

    def not_ready(self):
        return self.missing

    def series(self, key):
        return self.known.get(key)


@pytest.fixture
def status():
    return FakeStatus()


@pytest.fixture
def server(status):
    registry = CollectorRegistry()
    Counter("tidecast_readings", "help", registry=registry).inc(7)
    server = HttpServer("127.0.0.1", 0, registry, status)
    server.start()
    yield server
    server.close()


def get(server, path, method="GET", headers=None):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def test_metrics_are_served_as_prometheus_reads_them(server):
    response, body = get(server, "/metrics?x=1")
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain; version=")
    assert "tidecast_readings_total 7.0" in body


def test_openmetrics_are_served_on_request(server):
    response, body = get(server, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_a_loop_that_hangs_is_reported_with_its_reason(server, status):
    assert get(server, "/livez")[0].status == 200
    status.reason = "the loop has not turned for 31 s"
    response, body = get(server, "/livez")
    assert response.status == 503
    assert json.loads(body) == {"live": False, "reason": status.reason}


def test_a_worker_that_is_not_ready_says_what_is_missing(server, status):
    assert json.loads(get(server, "/readyz")[1]) == {"ready": True, "missing": {}}
    status.missing = {"partitions": "none assigned yet"}
    response, body = get(server, "/readyz")
    assert response.status == 503
    assert json.loads(body)["missing"] == status.missing


def test_a_series_is_found_by_its_percent_encoded_name(server):
    response, body = get(server, "/series/h%C3%A4fen%2F1")
    assert response.status == 200 and response.headers["Content-Type"] == "application/json"
    assert json.loads(body)["state"]["h"] == [1.0, None], "JSON has no NaN"
    assert '    "h": [1.0,null]' in body.splitlines(), "a line for each part of a state, however long"


@pytest.mark.parametrize(("path", "code"), [("/series/unknown", 404), ("/series/%FF", 400), ("/series/", 404)])
def test_a_series_that_is_not_there_is_answered_with_a_sentence(server, path, code):
    response, body = get(server, path)
    assert response.status == code and len(body.split()) > 4


@pytest.mark.parametrize("path", ["/nothing", "//evil.example/x", "/metrics/", "/livez/x"])
def test_any_other_path_lists_the_pages(server, path):
    response, body = get(server, path)
    assert response.status == 404
    for page in pages.PAGES:
        assert page in body


def test_head_has_the_headers_of_get_and_no_body(server):
    response, body = get(server, "/livez", method="HEAD")
    assert response.status == 200 and body == ""
    assert int(response.headers["Content-Length"]) > 0


def test_nothing_can_be_written(server):
    response, _ = get(server, "/metrics", method="POST")
    assert response.status == 405 and response.headers["Allow"] == "GET, HEAD"


def test_an_endless_request_line_is_refused(server):
    assert get(server, "/series/" + "a" * pages.MAX_REQUEST_LINE)[0].status == 414


def sent(server, request):
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(request)
    return connection


def test_endless_headers_are_refused(server):
    with sent(server, b"GET /livez HTTP/1.0\r\n" + b"X-A: %b\r\n" % (b"a" * 4_000) * 9) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.0 431 ")


def test_a_body_is_not_waited_for(server):
    with sent(server, b"GET /livez HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.0 200 ")


def test_a_client_that_sends_a_byte_now_and_then_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(pages, "TOTAL_SECONDS", 0.3)
    with sent(server, b"GET /livez HTTP/1.0\r\nX-Slow: ") as connection:
        connection.settimeout(0.02)
        for _ in range(500):  # within the time for each byte
            try:
                connection.sendall(b"a")
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("it was never closed")


def test_a_client_that_stops_sending_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(pages, "REQUEST_TIMEOUT_SECONDS", 0.2)
    with sent(server, b"GET /li") as connection:
        assert connection.recv(1) == b""


def test_probes_are_answered_while_five_hundred_clients_keep_their_connections_open(server):
    """More than are served: the oldest connection makes room for a new one."""
    host, port = server.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=5) for _ in range(500)]
    for one in slow[::7]:  # some of them trickle
        with contextlib.suppress(OSError):
            one.send(b"GET /li")
    assert [get(server, "/livez")[0].status for _ in range(25)] == [200] * 25
    assert slow[0].recv(1) == b"", "the oldest is dropped"
    for one in slow:
        one.close()


def test_metrics_are_built_at_most_once_a_second_however_many_ask(status):
    registry, built = CollectorRegistry(), []

    class Collector:
        def collect(self):
            built.append(1)
            return ()

    registry.register(Collector())
    built.clear()
    with HttpServer("127.0.0.1", 0, registry, status) as server:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda _: get(server, "/metrics")[0].status, range(40)))
        took = time.monotonic() - began
    assert codes == [200] * 40
    assert len(built) <= 1 + took / SCRAPE_SECONDS


def test_a_port_that_is_taken_is_named_with_the_flag_that_fixes_it(server, status):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(TidecastError, match=rf"port {port} of 127.0.0.1 is taken.*--http-port"):
        HttpServer("127.0.0.1", port, CollectorRegistry(), status)


def test_a_host_that_is_not_ours_is_a_usage_error(status):
    with pytest.raises(UsageError, match="--http-host"):
        HttpServer("192.0.2.1", 0, CollectorRegistry(), status)


def test_the_port_is_free_again_after_close(status):
    first = HttpServer("127.0.0.1", 0, CollectorRegistry(), status)
    first.start()
    first.close()
    port = int(first.url.rpartition(":")[2])
    HttpServer("127.0.0.1", port, CollectorRegistry(), status).close()
