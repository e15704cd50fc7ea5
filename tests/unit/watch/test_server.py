"""The live page's server: what it says, and to whom."""

import base64
import concurrent.futures
import socket
import time
from urllib.parse import quote

import pytest

from tests.support.watching import Served, fill
from tidecast.service.config.loader import load
from tidecast.service.config.rules import is_loopback
from tidecast.service.errors import TidecastError, UsageError
from tidecast.service.watch import app, assets, request_timeout
from tidecast.service.watch.server import allowed_hosts, listen

NASTY = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    '"; drop',
    "line\nend\r\n\r\ndata: x",
    "\u202eevil",
]
LOOPBACK = ["127.0.0.1", "localhost", "::1"]


@pytest.fixture
def served():
    one = Served(hosts=LOOPBACK)
    fill(one.store, "a", range(5))
    yield one
    one.stop()


@pytest.fixture
def locked():
    one = Served(password="pässword", hosts=LOOPBACK)
    yield one
    one.stop()


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_the_page_and_all_that_it_needs_are_served_from_here(served):
    code, headers, page = served.get("/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "http://" not in page
    assert "https://" not in page
    for name in assets.load():
        code, headers, _ = served.get(f"/static/{name}")
        assert code == 200
        assert headers["Content-Type"].split(";")[0] in assets.TYPES.values()


def test_no_file_but_the_page_s_own_can_be_asked_for(served):
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/app.py",
        "/static/",
        "/etc/passwd",
        "/static/%2e%2e/app.py",
    ):
        assert served.get(path)[0] == 404


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/series", "/api/history?series=a", "/nothing"])
def test_the_policy_allows_a_browser_only_the_page_s_own_scripts(served, path):
    headers = served.get(path)[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_and_head_are_allowed(served, method):
    code, headers, _ = served.get("/api/series", method)
    assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_head_answers_without_a_body(served):
    for path in ("/", "/api/series", "/api/stream"):
        assert served.get(path, "HEAD")[::2] == (200, "")


def test_a_request_with_a_body_or_too_long_a_line_is_refused(served):
    assert served.get("/", body="x" * 100)[0] == 413
    assert served.get("/api/series?q=" + "x" * 2_000)[0] == 400
    assert served.get("/" + "x" * 10_000)[0] == 414
    with socket.create_connection(("127.0.0.1", served.port)) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert endless.recv(100).startswith(b"HTTP/1.1 400")
    assert served.get("/")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9109", "127.0.0.1.evil.example", "", "[::1", "169.254.1.1"]
)
def test_a_foreign_host_name_that_resolves_to_loopback_is_refused(served, host):
    assert served.get("/api/series", headers={"Host": host})[0] == 421


@pytest.mark.parametrize("host", ["localhost:9109", "127.0.0.1", "[::1]:9109", "LOCALHOST"])
def test_this_machine_s_own_names_are_accepted(served, host):
    assert served.get("/api/series", headers={"Host": host})[0] == 200


def test_another_site_s_page_is_not_served_but_a_link_from_it_works(served):
    assert served.get("/api/stream", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"})[0] == 403
    assert served.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200


def test_without_the_password_no_data_is_sent(locked):
    for path in ("/", "/static/main.js", "/api/series", "/api/stream", "/api/history?series=a", "/nothing"):
        code, headers, _ = locked.get(path)
        assert (code, headers["WWW-Authenticate"][:5]) == (401, "Basic")
    for wrong in (
        basic("u", "wrong"),
        basic("pässword", ""),
        {"Authorization": "Basic ???"},
        {"Authorization": "Bearer x"},
    ):
        assert locked.get("/api/series", headers=wrong)[0] == 401


def test_the_password_opens_the_page_whatever_the_user_is_called(locked):
    assert locked.get("/api/series", headers=basic("anybody", "pässword"))[0] == 200
    assert locked.get("/", headers=basic("", "pässword"))[0] == 200
    bearer = "Bearer " + "pässword".encode().decode("latin-1")
    assert locked.get("/api/series", headers={"Authorization": bearer})[0] == 200


def test_a_health_check_needs_no_password_and_gets_no_data(locked):
    assert locked.get("/livez")[::2] == (200, "ok\n")


def test_the_search_answers_from_the_server(served):
    fill(served.store, "b/<b>", range(1))
    assert served.json("/api/series?q=B") == {"count": 1, "known": 2, "names": ["b/<b>"]}


def test_the_history_of_a_series(served):
    shown = served.json("/api/history?series=a&ahead=2")
    assert (shown["series"], shown["ahead"], len(shown["readings"][0])) == ("a", 2, 5)
    assert served.get("/api/history?series=unknown")[0] == 404
    assert served.get("/api/history")[0] == 404
    for nonsense in ("-1", "x", "99999999999999999999", "1e3", "²"):
        assert served.json(f"/api/history?series=a&ahead={quote(nonsense)}")["ahead"] == 1


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_name_comes_back_as_it_is_and_breaks_no_event(served, name):
    fill(served.store, name, range(2))
    assert served.json(f"/api/history?series={quote(name)}")["series"] == name
    (kind, shown), (second, status) = served.events(f"/api/stream?series={quote(name)}", 2)
    assert (kind, shown["series"], second, status["kafka"]) == ("all", name, "status", "live")


def test_the_stream_brings_all_then_what_is_new(served):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        coming = pool.submit(served.events, "/api/stream?series=a", 3)
        while not served.page.streams:
            time.sleep(0.01)
        fill(served.store, "a", range(5, 7))
        kinds = [kind for kind, _ in coming.result()]
    assert kinds[0] == "all"
    assert "status" in kinds


def test_one_viewer_too_many_gets_503_and_the_page_still_answers(served, monkeypatch):
    monkeypatch.setattr(app, "MAX_STREAMS", 0)
    assert served.get("/api/stream")[0] == 503
    assert served.get("/api/series")[0] == 200


def streams(served, count):
    """Viewers that ask for the stream and read only its beginning."""
    viewers = []
    for _ in range(count):
        viewers.append(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        viewers[-1].sendall(b"GET /api/stream?series=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewers[-1].recv(10)
        while served.page.streams < len(viewers):
            time.sleep(0.01)
    return viewers


def test_viewers_that_do_not_read_keep_nobody_else_out(served, monkeypatch):
    monkeypatch.setattr(app, "MAX_STREAMS", 2)
    monkeypatch.setattr(app, "FULL_TURN_S", 0.0)
    idle = streams(served, 2)
    assert served.events("/api/stream?series=a", 1)[0][0] == "all"
    while not idle[0].recv(65536).endswith(b"0\r\n\r\n"):  # the stream of the oldest ends
        pass
    assert served.page.streams <= 2
    for each in idle:
        each.close()


def test_a_head_takes_no_viewers_place(served, monkeypatch):
    monkeypatch.setattr(app, "MAX_STREAMS", 1)
    monkeypatch.setattr(app, "FULL_TURN_S", 0.0)
    (viewer,) = streams(served, 1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as other:
        other.sendall(b"HEAD /api/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while other.recv(4096):
            pass
    assert served.page.streams == 1
    viewer.close()


def test_a_viewer_who_does_not_read_is_dropped_once_the_buffers_are_full(served, monkeypatch):
    monkeypatch.setattr(request_timeout, "UNREAD_S", 0.2)
    monkeypatch.setattr(app, "POLL_S", 0.0)
    monkeypatch.setattr(app, "STATUS_S", 0.0)
    (idle,) = streams(served, 1)
    deadline = time.monotonic() + 30
    while served.page.streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not served.page.streams
    idle.close()


def test_the_server_stops_although_a_viewer_is_connected():
    served = Served()
    with socket.create_connection(("127.0.0.1", served.port)) as viewer:
        viewer.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewer.recv(10)
        served.stop()
        assert not served.thread.is_alive()


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTT", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nG"],
    ids=["nothing", "half", "one and a half"],
)
def test_an_idle_connection_is_closed_and_does_not_block_others(served, monkeypatch, said):
    monkeypatch.setattr(request_timeout, "REQUEST_S", 0.3)
    monkeypatch.setattr(served.server.config, "limit_concurrency", 4)
    silent = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(6)]
    for each in silent:
        each.sendall(said)
    for each in silent:
        while each.recv(4096):  # an answer, or why there is none; and then the end
            pass
        each.close()
    assert served.get("/api/series")[0] == 200


def test_a_stream_is_not_closed_while_it_is_read(served, monkeypatch):
    monkeypatch.setattr(request_timeout, "REQUEST_S", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as viewer:
        viewer.sendall(b"GET /api/stream?series=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewer.recv(10)
        time.sleep(0.6)
        fill(served.store, "a", range(5, 6))
        viewer.settimeout(5)
        deadline = time.monotonic() + 5
        while (data := viewer.recv(65536)) != b"" and time.monotonic() < deadline:
            if b'"readings"' in data:
                return
    raise AssertionError("the stream was cut")


def test_another_chart_library_than_the_known_one_is_not_served(monkeypatch):
    monkeypatch.setitem(assets.CHART, "uplot.js", ("uplot.iife.min.js", "0" * 64))
    with pytest.raises(TidecastError, match="youplot"):
        assets.load()


def test_an_error_about_a_taken_port_names_the_page_s_own_flag():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(TidecastError, match="--watch-port"):
        listen("127.0.0.1", other.getsockname()[1])
    with pytest.raises(UsageError, match="--watch-host"):
        listen("192.0.2.1", 0)


def test_what_counts_as_loopback():
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


def test_names_of_a_proxy_are_added_to_loopback_s_own():
    def hosts(**flags):
        return allowed_hosts(load(flags, {}))

    assert "watch.example" in hosts(watch_allowed_hosts="watch.example, b")
    assert "localhost" in hosts()
    assert hosts(watch_host="0.0.0.0") is None
    assert hosts(watch_host="0.0.0.0", watch_allowed_hosts="a") == ["a"]
