"""What `tidecast serve` and `tidecast route` share: a worker that runs until SIGTERM, with its pages."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from tidecast import __version__
from tidecast.service.config.settings import Settings
from tidecast.service.errors import TidecastError
from tidecast.service.observability import logs, stacks

if TYPE_CHECKING:
    from tidecast.service.observability.metrics import Metrics
    from tidecast.service.observability.tracing import Tracing
    from tidecast.service.worker.gc_pacer import GcPacer
    from tidecast.service.worker.worker import Worker

log = logging.getLogger("tidecast.serve")


def begin(config: Settings) -> None:
    """Set up logs and signals."""
    logs.setup(config.log_level, config.log_format)
    faulthandler.enable()
    stacks.dump_on_signal()
    # Until there is something to finish, a signal ends the process at once. Set explicitly: process 1 of a container
    # has no default action for SIGTERM.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker runs, its model is the newest
    log.info("starting", extra={"version": __version__, "pid": os.getpid()})


def run_worker(
    config: Settings,
    worker: Worker,
    metrics: Metrics,
    gc_pacer: GcPacer,
    began: float,
    before_joining: Callable[[], None] = lambda: None,
) -> int:
    """Serve the pages and run the worker to its end; the exit code. `began`: s, monotonic, when the process did."""
    from tidecast.service.observability.http import HttpServer
    from tidecast.service.observability.watchdog import Watchdog

    with HttpServer(config.http_host, config.http_port, metrics.registry, worker) as http:
        log.info("listening", extra={"url": http.url})
        log.info("looking for Kafka", extra={"bootstrap_servers": config.bootstrap_servers})
        worker.prepare()
        _stop_on_signals(worker, config.shutdown_timeout_seconds)
        before_joining()
        log.info(
            "joining the group",
            extra={"group": config.group, "topic": config.input_topic, "seconds": time.monotonic() - began},
        )
        gc_pacer.begin()
        with Watchdog(worker.not_live, on_stall=metrics.stalls.inc):
            return worker.run()


def _end(signum: int, frame: FrameType | None) -> None:
    # No clean-up: there is nothing to lose yet, and closing a client that is still connecting waits for the broker.
    sys.stderr.flush()
    os._exit(130 if signum == signal.SIGINT else 0)


def _stop_on_signals(worker: Worker, limit_seconds: float) -> None:
    """SIGTERM and SIGINT ask the loop to end; after the limit the process prints its stacks and ends.

    A handler has to wait while the main thread is inside of a library. So a thread reads the signals from a pipe that
    the interpreter writes to as soon as one comes.
    """
    come, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def give_up() -> None:
        log.critical("not stopped within the limit, giving up", extra={"seconds": limit_seconds})
        stacks.dump()
        os._exit(1)

    def ask(signum: int) -> None:
        if worker.stopping:
            if signum == signal.SIGINT:
                os._exit(130)
            return
        worker.stop()
        timer = threading.Timer(limit_seconds, give_up)
        timer.daemon = True
        timer.start()

    def listen() -> None:
        while True:
            for signum in os.read(come, 64):
                if signum in asking:
                    ask(signum)

    asking = (signal.SIGTERM, signal.SIGINT)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    for signum in asking:
        signal.signal(signum, lambda signum, frame: None)


def open_tracing(config: Settings) -> Tracing:
    """The tracing that the settings ask for.

    Raises:
        TidecastError: it needs packages that are not installed.
    """
    from tidecast.service.observability.tracing import Tracing

    if not config.traces:
        return Tracing()
    try:
        from tidecast.service.observability.otel import Spans
    except ModuleNotFoundError as missing:
        raise TidecastError(f"--traces needs {missing.name}", do="Run: pip install 'tidecast[otel]'") from None
    return Spans(config)
