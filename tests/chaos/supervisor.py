"""Starts a worker again whenever it ends, with growing waits, as Kubernetes and Docker do."""

from __future__ import annotations

import http.client
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.worker_process import WorkerProcess

LOOK_SECONDS = 0.5
OLD_SECONDS = 1.5  # a page of metrics may be a second old


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long an orchestrator waits before it starts a worker again, in s; doubled each time."""

    first: float
    longest: float
    forgiven: float  # after so long a run, the next wait is the first one again


ORCHESTRATORS = {
    "kubernetes": BackOff(10.0, 300.0, 600.0),
    "docker": BackOff(0.1, 60.0, 10.0),
}


class Supervisor(threading.Thread):
    """One worker, started again and again until `finish`.

    Attributes:
        codes: exit codes of those that ended by themselves.
        lines: of all their logs.
        counted: name of a metric -> its sum over all of them, as each said it last. What a worker commits in its last
            two seconds may be in no answer.
    """

    def __init__(
        self, flags: Sequence[object], port: int, folder: Path, back_off: BackOff, metrics: Sequence[str]
    ) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._flags, self._port, self._folder, self._back_off = [*flags, f"--http-port={port}"], port, folder, back_off
        self._metrics = metrics
        self._done = threading.Event()
        self.codes: list[int] = []
        self.logs: list[str] = []
        self.counted: Counter[str] = Counter()

    @property
    def lines(self) -> int:
        return sum(len(log.splitlines()) for log in self.logs)

    def run(self) -> None:
        wait = self._back_off.first
        while not self._done.is_set():
            began = time.monotonic()
            worker = WorkerProcess(*self._flags, log_file=self._folder / f"worker-{len(self.logs)}.log")
            self._watch(worker)
            if time.monotonic() - began >= self._back_off.forgiven:
                wait = self._back_off.first
            self._done.wait(wait)
            wait = min(2 * wait, self._back_off.longest)

    def _watch(self, worker: WorkerProcess) -> None:
        said: dict[str, int] = {}
        while worker.process.poll() is None and not self._done.wait(LOOK_SECONDS):
            said = self._ask() or said
        if worker.process.poll() is None:
            time.sleep(OLD_SECONDS)
            said = self._ask() or said
            code, _ = worker.end(signal.SIGTERM)
        else:
            code = worker.process.wait()
            self.codes.append(code)
        self.counted.update(said)
        self.logs.append(worker.log)

    def ready(self) -> bool:
        """Whether the worker that runs now answers readings."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _ask(self) -> dict[str, int]:
        """What the metrics are now; nothing where it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()
        return {
            name: int(sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
            for name in self._metrics
        }

    def finish(self) -> None:
        """SIGTERM, and no other is started."""
        self._done.set()
        self.join(120)
