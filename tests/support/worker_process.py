"""One `tidecast` command as a process of its own: for the tests, the storms and the benchmarks."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.preloaded import Preloaded
from tidecast.service.broker.embedded.child_process import EXEC_TIED_TO_PARENT

PATIENCE = 60.0  # seconds, for what must happen; nothing is asserted about how fast it does

T = TypeVar("T")


class WorkerProcess:
    """`tidecast serve` with these flags.

    Attributes:
        program: what Python runs; in its place a test puts a program of its own.
        log_file: where the log goes; without one it is kept in a file without a name.
    """

    program: tuple[str, ...] = ("-m", "tidecast", "serve")
    patience = PATIENCE

    def __init__(self, *flags: object, log_file: Path | None = None, preloaded: bool | None = None) -> None:
        """With `preloaded` it is forked from a process that has imported everything, where the program allows it."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIDECAST_")}
        words, self.log_file = [str(flag) for flag in flags], log_file
        with (
            tempfile.TemporaryFile() if log_file is None else log_file.open("w+b") as log,
            tempfile.TemporaryFile() as out,
        ):
            self._log, self._out = os.dup(log.fileno()), os.dup(out.fileno())
            tidecast = self.program[:2] == ("-m", "tidecast") and sys.platform == "linux"
            if tidecast if preloaded is None else preloaded and tidecast:
                self.process = Preloaded([*self.program[2:], *words], stdout=out, stderr=log, env=env)
                return
            # Linux kills it with this process, so that a test that is cut short leaves no worker behind.
            tied = [sys.executable, "-I", "-S", "-c", EXEC_TIED_TO_PARENT, str(os.getpid())]
            command = [*tied, sys.executable, *self.program, *words]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=env)

    def __del__(self) -> None:
        os.close(self._log)
        os.close(self._out)

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return _text(self._log)

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return _text(self._out)

    def wait_for(self, what: str, test: Callable[[], T]) -> T:
        """What `test` returns, once that is true.

        Raises:
            AssertionError: the process ended first, or it took too long.
        """
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            if found := test():
                return found
            assert self.process.poll() is None, f"it ended while waiting for {what}:\n{self.log}"
            time.sleep(0.02)
        raise AssertionError(f"never came: {what}\n{self.log}")

    @property
    def address(self) -> str:
        """host:port of its pages, once it listens."""
        return self.wait_for("its address", lambda: re.search(r"url=http://(\S+)", self.log))[1]

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of one of its pages."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    def ready(self) -> WorkerProcess:
        """Wait until it is."""
        self.wait_for("ready", lambda: self.get("/readyz")[0] == 200)
        return self

    def metric(self, name: str) -> float:
        """The sum over all labels of one metric."""
        pattern = rf"^{name}(?:{{.*}})? (\S+)$"
        return sum(float(v) for v in re.findall(pattern, self.get("/metrics")[1], re.MULTILINE))

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def show_stacks(self) -> None:
        """Let it write into its log what every thread does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)

    def show(self) -> None:
        """Print the log, with the stacks if it still runs: for a failure that another worker may have caused."""
        self.show_stacks()
        print(f"log of worker {self.process.pid}, exit code {self.process.poll()}:\n{self.log}")

    def end(self, signum: int | None = signal.SIGTERM) -> tuple[int, str]:
        """The exit code and the whole log, after this signal; None waits for it to end by itself.

        Raises:
            AssertionError: it did not end in time.
        """
        if self.process.poll() is None and signum:
            self.process.send_signal(signum)
        try:
            return self.process.wait(self.patience), self.log
        except subprocess.TimeoutExpired:
            self.show_stacks()
            self.kill()
            raise AssertionError(f"it did not end:\n{self.log}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it has ended."""
        self.process.kill()
        self.process.wait()


class Command(WorkerProcess):
    """Any other `tidecast` command with these words."""

    program = ("-m", "tidecast")


def tidecast(*words: object) -> tuple[int, str, str]:
    """Run a command to its end: the exit code, what it printed, and its log."""
    command = Command(*words)
    code, log = command.end(signum=None)
    return code, command.out, log


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
