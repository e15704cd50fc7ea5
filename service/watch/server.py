"""The page as a process: a thread that serves it, a thread that reads Kafka, and a clean end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from types import FrameType

import uvicorn
from msgspec.structs import replace

from tidecast import __version__
from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.config.rules import is_loopback
from tidecast.service.config.settings import Settings
from tidecast.service.input.config import read_input
from tidecast.service.input.mapping import InputMapper
from tidecast.service.observability.http import listen_error, url_of
from tidecast.service.stop_flag import StopFlag
from tidecast.service.watch.app import Page
from tidecast.service.watch.reader import Reader
from tidecast.service.watch.request_timeout import TimeoutProtocol
from tidecast.service.watch.store import Store

log = logging.getLogger("tidecast.watch")

MAX_CONNECTIONS = 128
MAX_REQUEST_BYTES = 16 << 10  # request line and headers
METADATA_TIMEOUT_S = 10.0  # of a metadata request; an unavailable broker is tried again anyway
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(config: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code.

    Raises:
        TidecastError: the port is taken, or may not be used; or Kafka rejects the connection.
        UsageError: the host is not an address of this machine, or the list of servers or --input is not valid.
    """
    stopped, code = StopFlag(), 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal code
        code = 130 if signum == signal.SIGINT else 0
        stopped.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)

    store = Store(max_series=config.watch_series, points=config.watch_points, max_bytes=config.watch_memory_bytes)
    page_config = replace(config, broker_timeout_seconds=min(config.broker_timeout_seconds, METADATA_TIMEOUT_S))
    connect_from_settings(page_config).close()  # a wrong setting fails at once
    reader = Reader(
        lambda: connect_from_settings(page_config),
        config.input_topic,
        config.output_topic,
        store,
        newest=config.watch_start_records,
        mapper=InputMapper(read_input(config.input), None) if config.input else None,
    )
    page = Page(
        store,
        reader.status,
        {
            "version": __version__,
            "input_topic": config.input_topic,
            "output_topic": config.output_topic,
            "bootstrap_servers": config.bootstrap_servers,
        },
        password=config.watch_password.reveal(),
        hosts=allowed_hosts(config),
    )
    with listen(config.watch_host, config.watch_port) as listener:
        server = server_of(page)
        thread = threading.Thread(target=server.run, args=([listener],), name="watch-http", daemon=True)
        thread.start()
        reader.start()
        log.info("listening", extra={"url": url_of(listener.getsockname())})
        if not is_loopback(config.watch_host) and not config.watch_password:
            log.warning("anyone who can reach this address can read the page: --watch-password-file is not set")
        while reader.failure is None and not stopped.wait(0.5):
            if not thread.is_alive():
                log.critical("the HTTP server stopped unexpectedly")
                code = 1
                break
        page.closing.set()
        server.should_exit = True
        thread.join(5.0)
        reader.stop()
        log.info("stopped")
    if reader.failure is not None:
        raise reader.failure
    return code


def server_of(page: Page) -> uvicorn.Server:
    """The page's server with its limits, not yet running. Requests are not logged: they name series."""
    return uvicorn.Server(
        uvicorn.Config(
            page.app,
            access_log=False,
            h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
            http=TimeoutProtocol,
            limit_concurrency=MAX_CONNECTIONS,
            log_config=None,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=10,
            ws="none",
        )
    )


def allowed_hosts(config: Settings) -> list[str] | None:
    """The host names that the page accepts; None = any, where it is not bound to loopback."""
    more = [name.strip() for name in config.watch_allowed_hosts.split(",") if name.strip()]
    if not is_loopback(config.watch_host):
        return more or None
    return [*_LOOPBACK, config.watch_host, *more]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        TidecastError: the port is taken, or may not be used.
        UsageError: the host is not an address of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        raise listen_error(error, host, port, "--watch") from None
