"""A process that has imported the worker already, and forks one in a few milliseconds; a new Python takes a CPU second.

`Preloaded` starts a command there, and looks like `subprocess.Popen`. Only for Linux. A worker whose memory or start is
measured, or whose code a test changes, is started as its users start it.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

ROOT = __file__.rsplit(os.sep, 3)[0]
IMPORTS = (
    "confluent_kafka.admin",
    "kafka",
    "kafka.admin",
    "tidecast.service.broker.connect",
    "tidecast.service.commands.route",
    "tidecast.service.commands.serve",
    "tidecast.service.observability.http",
    "tidecast.service.observability.watchdog",
    "tidecast.service.worker.model_watcher",
    "tidecast.service.worker.worker",
)


class Preloaded:
    """One forked process: the parts of `subprocess.Popen` that tests use."""

    def __init__(self, args: Sequence[str], *, stdout: IO[Any], stderr: IO[Any], env: Mapping[str, str]) -> None:
        self._status, theirs = socket.socketpair()
        request = json.dumps([list(args), dict(env)]).encode()
        connection, lock = _server()
        with lock:
            fds = [stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(connection, [len(request).to_bytes(4)], fds)
            connection.sendall(request)
        theirs.close()
        self.pid = int.from_bytes(self._status.recv(4))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: it did not end in time.
        """
        if (code := self._look(timeout)) is None:
            raise subprocess.TimeoutExpired(["tidecast"], timeout or 0.0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            told = self._status.recv(4)
            self.returncode = int.from_bytes(told, signed=True) if told else -signal.SIGKILL
            self._status.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Nothing happens once it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> tuple[socket.socket, threading.Lock]:
    """The connection to this process's own server, started when it is first needed; it ends with the connection."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.support.preloaded", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, threading.Lock()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class ImportedWhenUsed(types.ModuleType):
    """Stands for a module that the forked process imports, not this one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _serve(connection: socket.socket) -> list[str]:
    """Fork at each request. Returns in each child, with what it has to run; in the server it never returns."""
    running: dict[int, tuple[int, socket.socket]] = {}  # descriptor of the process -> id, where its end is reported
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not connection:
                selector.unregister(key.fileobj)
                pid, status = running.pop(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                status.send(code.to_bytes(4, signed=True))
                status.close()
                continue
            head, fds, _, _ = socket.recv_fds(connection, 4, 3)
            if not head:  # whoever asks has ended: so does this process, and with it all that it has forked
                os._exit(0)
            left, body = int.from_bytes(head), b""
            while len(body) < left:
                body += connection.recv(left - len(body))
            args, env = json.loads(body)
            status = socket.socket(fileno=fds[2])
            if pid := os.fork():
                os.close(fds[0])
                os.close(fds[1])
                process = os.pidfd_open(pid)
                running[process] = pid, status
                selector.register(process, selectors.EVENT_READ)
                status.send(pid.to_bytes(4))
                continue
            _die_with_parent()
            selector.close()
            for descriptor, (_, other) in running.items():
                os.close(descriptor)
                other.close()
            for end in (connection, status):
                end.close()
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            os.close(fds[0])
            os.close(fds[1])
            os.environ.clear()
            os.environ.update(env)
            return args


if __name__ == "__main__":
    _die_with_parent()
    sys.modules["onnxruntime"] = ImportedWhenUsed(
        "onnxruntime"
    )  # it starts a thread, which a fork does not have, and waits for it at the end
    for each in IMPORTS:
        importlib.import_module(each)
    from tidecast.service.model.candidate import Candidate

    # The tests' own models need no check in another process, which takes a CPU second at each start.
    Candidate.run = lambda candidate: None  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["tidecast", *words]
    from tidecast.service.cli import main

    sys.exit(main())
