"""A real schema registry with Confluent's API: Apicurio's, under the Java of the embedded broker, in memory."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from tests.support.one_at_a_time import one_at_a_time
from tidecast.service.broker.embedded import jars
from tidecast.service.broker.embedded.child_process import start_tied
from tidecast.service.broker.embedded.server import HOST, free_port

VERSION = "3.3.3"
PATIENCE_S = 120.0  # for a start, which takes 7 s of a quiet core


def _unpacked() -> Path:
    """The folder with the registry; fetched once on a machine (151 MB), and skipped by name where that cannot be."""
    folder = jars.cache_dir().with_name(f"apicurio-{VERSION}")
    with one_at_a_time(folder.with_suffix(".lock")):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                packed = _fetch(Path(temporary))
                with tarfile.open(packed) as archive:
                    archive.extractall(Path(temporary) / "root", filter="data")
                (Path(temporary) / "root").rename(folder)
    return folder


def _fetch(folder: Path) -> Path:
    import truststore
    from jgo.maven import MavenContext

    truststore.inject_into_ssl()
    try:
        project = MavenContext(repo_cache=folder, timeout=30).project("io.apicurio", "apicurio-registry-app")
        return Path(project.at_version(VERSION).artifact(classifier="all", packaging="tar.gz").resolve())
    except Exception as error:  # jgo raises bare RuntimeErrors and AssertionErrors
        pytest.skip(f"the schema registry (Apicurio {VERSION}) cannot be fetched from Maven Central: {error}")
    finally:
        truststore.extract_from_ssl()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The URL of the Confluent API of a registry that holds nothing yet."""
    home, port = _unpacked(), free_port()
    settings = {
        "quarkus.http.host": HOST,
        "quarkus.http.port": port,
        "quarkus.management.host": HOST,
        "quarkus.management.port": free_port(),
    }
    java = [str(jars.java()), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    options = [f"-D{name}={value}" for name, value in settings.items()]
    # Without the archive of classes that the tests make for Kafka: it is none for other classes.
    without = [str(shutil.which("env")), "-u", "JDK_JAVA_OPTIONS"]
    command = [*without, *java, *options, "-jar", str(home / "quarkus-run.jar")]
    process = start_tied(command, folder, "registry.log")
    url = f"http://{HOST}:{port}/apis/ccompat/v7"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(url):
            log = folder / "registry.log"
            assert process.poll() is None, f"the schema registry ended:\n{log.read_text()[-2_000:]}"
            assert time.monotonic() < deadline, f"the schema registry does not answer:\n{log.read_text()[-2_000:]}"
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def registry_client(url: str) -> SchemaRegistryClient:
    """Confluent's client as a careful producer sets it: without a timeout it waits for ever for an answer that is lost,
    as one of Apicurio's was in one of some hundred runs, though its access log had it. What timed out is asked again.
    """
    return SchemaRegistryClient({"url": url, "timeout": 10})


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/subjects", timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False
