"""The worker's HTTP pages: /metrics, /livez, /readyz and /series/<key>.

They are answered by their own threads, which wait for the loop only to copy the state of one series.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from socketserver import TCPServer
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tidecast.service.config import settings
from tidecast.service.errors import TidecastError, UsageError
from tidecast.service.observability.scrapes import Scrapes

log = logging.getLogger("tidecast.http")

PAGES = {
    "/metrics": "for Prometheus",
    "/livez": "200 while the loop is running",
    "/readyz": "200 once readings are answered",
    "/series/<key>": "the state of one series",
}
MAX_REQUEST_LINE = 8 << 10  # a key is at most 1 KiB, 3 KiB once percent-encoded
MAX_CONNECTIONS = 32
MAX_REQUEST_BYTES = 32 << 10  # with headers; a body is never read
REQUEST_TIMEOUT_SECONDS = 5.0  # to wait for the next byte
_DROP_SECONDS = 0.5  # within which a connection that is dropped makes room for another
TOTAL_SECONDS = 15.0  # for the whole request and its answer, so that slow clients cannot keep connections


def listen_error(error: OSError, host: str, port: int, flags: str) -> TidecastError:
    """The error for an address that cannot be listened on; `flags` is the prefix of its settings, such as --http."""
    if error.errno == errno.EADDRINUSE:
        return TidecastError(
            f"port {port} of {host} is taken",
            do=f"Stop the process that uses it, or choose another with {flags}-port N (0 = any free one).",
        )
    if error.errno == errno.EACCES:
        return TidecastError(
            f"port {port} requires privileges that this user does not have",
            do=f"Choose a port from 1024 up: {flags}-port {settings.default(f'{flags[2:]}_port')}",
        )
    return UsageError(
        f"cannot listen on {host} port {port}: {error.strerror or error}",
        do=f"Give an address of this machine: {flags}-host 127.0.0.1, or 0.0.0.0 for all its addresses.",
    )


def url_of(address: tuple[Any, ...]) -> str:
    """`http://host:port` of a socket address."""
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"


class Status(Protocol):
    """What the pages need from the worker. Called from the server's threads."""

    def not_live(self) -> str | None:
        """Why the process should be restarted; None if it is healthy."""

    def not_ready(self) -> dict[str, str]:
        """What is missing before readings are answered: `what -> why`; empty = ready."""

    def series(self, key: str) -> dict[str, Any] | None:
        """The state of one series; None if this worker has no series of that name."""


class HttpServer:
    """Serves the pages on `host`:`port` (0 = any free one) inside a `with`, or from `start` until `close`.

    Raises:
        TidecastError: the port is in use, or needs privileges.
        UsageError: the host is not an address of this machine.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, status: Status) -> None:
        try:
            self._server = _PagesServer(host, port, registry, status)
        except OSError as error:
            raise listen_error(error, host, port, "--http") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    @property
    def url(self) -> str:
        """`http://host:port`, with the actual port."""
        return url_of(self._server.server_address)

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server thread; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop the server and release the port. Waits up to 0.1 s."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _PagesServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, registry: CollectorRegistry, status: Status) -> None:
        self.scrapes, self.status = Scrapes(registry), status
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: dict[socket.socket, float] = {}  # connection -> its start; each change is atomic
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _PagesHandler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for this machine's full name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self._drop_oldest()
            if not self._free.acquire(timeout=_DROP_SECONDS):
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def _drop_oldest(self) -> None:
        """Make room: a request takes milliseconds, so the oldest connection is that of a client that is slow."""
        if slow := min(list(self._open.items()), key=lambda item: item[1], default=None):
            _shut(slow[0])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open[request] = time.monotonic()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.pop(request, None)
            self._free.release()

    def service_actions(self) -> None:
        # Called by the accepting thread about ten times a second.
        oldest = time.monotonic() - TOTAL_SECONDS
        for request, began in list(self._open.items()):
            if began < oldest:
                _shut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that disconnects is normal; no error of a request may end the worker.
        log.debug("a request failed", exc_info=True)


def _shut(request: socket.socket) -> None:
    """The thread of this connection wakes up and ends."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _LimitedRequest:
    """A request of limited size."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file, self._left = file, MAX_REQUEST_BYTES

    def readline(self, limit: int) -> bytes:
        """The next line. Raises HTTPException if the request is too long, which the library answers with 431."""
        line = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"more than {MAX_REQUEST_BYTES} bytes")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _PagesHandler(BaseHTTPRequestHandler):
    server_version = "tidecast"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(REQUEST_TIMEOUT_SECONDS)
        self.rfile = cast(BufferedIOBase, _LimitedRequest(self.rfile))

    def do_GET(self) -> None:
        if len(self.requestline) > MAX_REQUEST_LINE:
            return self._text(
                HTTPStatus.REQUEST_URI_TOO_LONG, f"the request line is longer than {MAX_REQUEST_LINE} bytes"
            )
        server = cast(_PagesServer, self.server)
        path = urlsplit("//host" + self.path if self.path.startswith("/") else self.path).path
        if path == "/metrics":
            return self._metrics(server.scrapes)
        if path == "/livez":
            reason = server.status.not_live()
            return self._json(
                HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, {"live": not reason, "reason": reason}
            )
        if path == "/readyz":
            missing = server.status.not_ready()
            return self._json(
                HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK, {"ready": not missing, "missing": missing}
            )
        if path.startswith("/series/") and len(path) > len("/series/"):
            return self._series(server.status, path.removeprefix("/series/"))
        pages = "\n".join(f"  {page:<15} {what}" for page, what in PAGES.items())
        self._text(HTTPStatus.OK if path == "/" else HTTPStatus.NOT_FOUND, f"tidecast's pages:\n{pages}")

    do_HEAD = do_GET  # noqa: N815

    def _not_allowed(self) -> None:
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "these pages are read-only (GET)")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed  # noqa: N815

    def _metrics(self, scrapes: Scrapes) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._send(HTTPStatus.OK, scrapes.text(content_type, encode), content_type)

    def _series(self, status: Status, quoted: str) -> None:
        try:
            key = unquote(quoted, errors="strict")
        except UnicodeDecodeError:
            return self._text(HTTPStatus.BAD_REQUEST, "a series' name is UTF-8, percent-encoded")
        found = status.series(key)
        if found is None:
            return self._text(
                HTTPStatus.NOT_FOUND,
                f"no series {key!r} here: it sent nothing since the start, or another worker has its partition",
            )
        self._json(HTTPStatus.OK, found)

    def _text(self, code: HTTPStatus, text: str) -> None:
        self._send(code, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _json(self, code: HTTPStatus, value: object) -> None:
        self._send(code, f"{_readable(value)}\n".encode(), "application/json")

    def _send(self, code: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged at debug level only."""
        log.debug(format, *args)


def _readable(value: object, indent: str = "") -> str:
    """JSON with a line for each name; a list takes one line, since a state has hundreds of numbers."""
    if not isinstance(value, dict) or not value:
        return msgspec.json.encode(value).decode()
    inner = f"{indent}  "
    lines = (f"{inner}{msgspec.json.encode(name).decode()}: {_readable(each, inner)}" for name, each in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
