"""A real Apache Kafka on loopback (one KRaft node), without Docker and without an installed Java.

The broker belongs to this process: it never outlives it (Linux: not even a kill -9 of it), and its data survives both.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO

import psutil

from tidecast.service.broker.embedded import jars as kafka_jars
from tidecast.service.broker.embedded.child_process import start_tied
from tidecast.service.broker.embedded.server_config import cluster_id, log4j_properties, server_properties
from tidecast.service.errors import BrokerError

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
MIN_FREE_MB = 200
# C1 alone: Java starts a second sooner, and leaves the cores to the worker.
_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def _quiet(message: str) -> None:
    """The default progress: say nothing."""


class EmbeddedBroker:
    """Kafka in `data_dir`: its topics, committed offsets, port, lock, `broker.log` and `broker.out` (Java's output).

    `port` 0 takes a free one and keeps it in `data_dir` for the next start. `jars` finds Kafka's class path. `java` are
    options of Java's in the place of ours, for who measures. `properties` are settings of Kafka's that hold in the
    place of ours; {port} and {controller_port} in their values are what was chosen.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        heap_mb: int = 512,
        java: Sequence[str] = _JAVA,
        jars: Callable[[Callable[[str], None]], Sequence[Path]] = kafka_jars.classpath,
        properties: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.log_file = self.data_dir / "broker.log"
        self._asked_port = port
        self._port = port
        self._heap_mb = heap_mb
        self._java = java
        self._jars, self._properties = jars, properties
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients; with port 0 only known once started."""
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of Java; 0 while it has not been started."""
        return self._process.pid if self._process else 0

    def start(self, progress: Callable[[str], None] = _quiet) -> None:
        """Start Kafka and wait until it answers a client. The first time on a machine this fetches the jars.

        Raises:
            BrokerError: port taken, folder in use, disk full, jars not to be had, or Kafka died (with its last words).
            UsageError: the extra `broker` is not installed.
        """
        if self.alive():
            return
        self.kill()  # where Java died by itself, the lock is still held
        java = kafka_jars.java()
        classpath = os.pathsep.join(str(jar) for jar in self._jars(progress))
        self._prepare_folder()
        try:
            self._port = self._choose_port()
            command = [
                str(java),
                f"-Xmx{self._heap_mb}m",
                *self._java,
                f"-Dlog4j2.configurationFile={self._write('log4j2.properties', log4j_properties(self.log_file))}",
                "-cp",
                classpath,
            ]
            server = server_properties(HOST, self._port, free_port(), self.data_dir / "kafka", self._properties)
            config = self._write("server.properties", server)
            if not (self.data_dir / "kafka" / "meta.properties").exists():
                progress(f"making Kafka's data folder {self.data_dir}")
                self._format([*command, "kafka.tools.StorageTool", "format", "-c", str(config), "-t", cluster_id()])
            progress(f"starting Kafka {kafka_jars.KAFKA_VERSION} on {self.bootstrap_servers}")
            self._process = start_tied([*command, "kafka.Kafka", str(config)], self.data_dir, "broker.out")
            self._note(jvm=self._process.pid)
            atexit.register(self.kill)
            self._await_answer()
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 30.0) -> None:
        """Ask Kafka to stop; after `timeout_s` it is killed (its data survives that too). Nothing is left running."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` may be called again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        atexit.unregister(self.kill)

    def alive(self) -> bool:
        """Whether Java runs."""
        return self._process is not None and self._process.poll() is None

    def how_it_ended(self) -> str:
        """How Java ended, and the end of its log, for an error message."""
        code = self._process.poll() if self._process else None
        how = "" if code is None else f" with exit code {code}" if code >= 0 else f" by signal {-code}"
        return f"Kafka was ended{how}; the end of {self.log_file}:\n{self._last_words()}\n"

    def _last_words(self, lines: int = 15) -> str:
        found: list[str] = []
        for name in ("broker.log", "broker.out"):
            with contextlib.suppress(OSError):
                text = (self.data_dir / name).read_text(errors="replace").splitlines()
                found += [line for line in text if not line.startswith(("WARNING: ", "\tat "))][-lines:]
        return "\n".join(found[-lines:])

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _prepare_folder(self) -> None:
        """Make the folder, check for room, and lock it. The lock ends with this process in any case."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            free_mb = shutil.disk_usage(self.data_dir).free // 2**20
            lock = (self.data_dir / "lock").open("a+")
        except OSError as error:
            raise BrokerError(
                f"the data folder {self.data_dir} cannot be used: {error.strerror}", do="Give another with --data-dir."
            ) from error
        if free_mb < MIN_FREE_MB:
            lock.close()
            raise BrokerError(
                f"only {free_mb} MB are free where {self.data_dir} is; Kafka needs at least {MIN_FREE_MB} MB",
                do="Free some space, or give a folder on another disk with --data-dir.",
            )
        lock.seek(0)
        try:
            owner = json.loads(lock.read() or "{}")
        except ValueError:
            owner = {}
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise BrokerError(
                f"the data folder {self.data_dir} is in use by the broker of process {owner.get('pid', '?')}",
                do=f"Use that one (--bootstrap-servers {HOST}:{owner.get('port', '9092')}), stop it, "
                "or give this one a folder of its own with --data-dir.",
            ) from None
        self._lock = lock
        try:
            self._await_end(owner.get("jvm"))
        except BaseException:
            self.kill()
            raise

    def _await_end(self, pid: int | None) -> None:
        """If the last owner was killed, its Java may live a moment longer (or stay, on other systems than Linux)."""
        deadline = time.monotonic() + 10
        while pid is not None and self._is_ours(pid):
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"an earlier broker on {self.data_dir} still runs as process {pid}, without its owner",
                    do=f"Stop it: kill {pid}",
                )
            time.sleep(0.05)

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            return process.status() != psutil.STATUS_ZOMBIE and str(self.data_dir) in " ".join(process.cmdline())
        return False

    def _note(self, *, jvm: int | None = None) -> None:
        """Write into the lock file who holds it."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.write(json.dumps({"pid": os.getpid(), "jvm": jvm, "port": self._port}))
            self._lock.flush()

    def _choose_port(self) -> int:
        if self._asked_port:
            if not _is_free(self._asked_port):
                raise BrokerError(
                    f"port {self._asked_port} on {HOST} is taken by another process",
                    do=f"If that is the Kafka you want, use it: --bootstrap-servers {HOST}:{self._asked_port}. "
                    "Otherwise choose another port with --port (0 = any free one).",
                )
            return self._asked_port
        kept = self.data_dir / "port"
        with contextlib.suppress(OSError, ValueError):
            if _is_free(port := int(kept.read_text())):
                return port
        port = free_port()
        self._write("port", f"{port}\n")
        return port

    def _write(self, name: str, text: str) -> Path:
        path = self.data_dir / name
        try:
            path.write_text(text)
        except OSError as error:
            raise BrokerError(
                f"cannot write {path}: {error.strerror}", do="Give a folder with room with --data-dir."
            ) from error
        return path

    def _format(self, command: list[str]) -> None:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=START_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrokerError(
                f"making Kafka's data folder {self.data_dir} took longer than {START_TIMEOUT_S:.0f} s"
            ) from None
        if done.returncode:
            raise BrokerError(
                f"Kafka could not format {self.data_dir}:\n{(done.stdout + done.stderr).strip()[-2000:]}\n",
                do="Give an empty folder with --data-dir.",
            )

    def _await_answer(self) -> None:
        from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker

        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self.alive():
                raise BrokerError(
                    f"starting: {self.how_it_ended()}",
                    do="Fix what it complains about, or give an empty folder with --data-dir.",
                )
            with contextlib.suppress(OSError), socket.create_connection((HOST, self._port), timeout=0.5):
                break
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka did not answer on {self.bootstrap_servers} within {START_TIMEOUT_S:.0f} s; "
                    f"the end of {self.log_file}:\n{self._last_words()}\n"
                )
            time.sleep(0.02)
        client = KafkaPythonBroker(self.bootstrap_servers, timeout_s=START_TIMEOUT_S)
        try:
            client.topics()
        finally:
            client.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on which nothing listens, below those that systems give to outgoing connections (Linux from 32768).

    One of those may be taken before Kafka binds it, or while it is down: then it could not start again.

    Raises:
        BrokerError: a hundred ports in turn are taken.
    """
    for _ in range(100):
        if _is_free(port := 15_000 + secrets.randbelow(15_000)):
            return port
    raise BrokerError(f"no free port was found on {HOST}", do="Give one with --port.")
