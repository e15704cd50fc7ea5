import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.contract.broker_contract import PATIENCE_S, drain, fill
from tests.support.kafka import own_kafka
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker
from tidecast.service.errors import BrokerError

ROOT = Path(__file__).parents[2]


def await_end(pid):
    """Wait for a process to be gone (a zombie whose parent died is)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        deadline = time.monotonic() + PATIENCE_S
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} still runs"
            time.sleep(0.02)


@pytest.fixture
def command(tmp_path):
    """`command()` runs `tidecast broker` in a process of its own and waits until it is ready."""
    running = []

    def start():
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tidecast",
                "broker",
                "--port=0",
                "--heap-mb=256",
                f"--data-dir={tmp_path / 'data'}",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        name, _, servers = process.stdout.readline().strip().partition(" ")
        assert name == "bootstrap.servers", process.stderr.read()
        java = json.loads((tmp_path / "data" / "lock").read_text())["jvm"]
        return process, servers, java

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Kafka that has been started."""
    with own_kafka(tmp_path_factory.mktemp("own") / "data") as broker:
        yield broker


def test_records_and_committed_offsets_outlive_kill_9_and_a_clean_stop(tmp_path):
    broker = own_kafka(tmp_path / "data")
    address = None
    for end in (broker.kill, broker.stop, broker.stop):
        broker.start()
        assert address in (None, broker.bootstrap_servers), "clients would look for it at another port"
        port = KafkaPythonBroker(broker.bootstrap_servers, timeout_s=PATIENCE_S)
        consumer = port.consumer(group="g")
        if address is None:
            port.create_topic("t", 1)
            fill(port, "t", 100, partition=0)
            consumer.assign("t", {0: -2})
            consumer.commit({0: 60}, "snapshot")
        else:
            consumer.assign("t", {0: -2})
            assert drain(consumer, 100).values[99] == b"v99"
            assert consumer.committed([0]) == {0: (60, "snapshot")}
        consumer.close()
        port.close()
        address, java = broker.bootstrap_servers, broker.pid
        end()
        assert not broker.alive() and not psutil.pid_exists(java)


def test_a_port_in_use_is_named_with_two_alternatives(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        broker = EmbeddedBroker(tmp_path / "data", port=number)
        with pytest.raises(BrokerError, match=rf"port {number} on 127.0.0.1 is taken.*--bootstrap-servers.*--port"):
            broker.start()
    assert not broker.alive()


def test_a_second_broker_on_the_same_folder_is_refused_with_the_address_of_the_first(running):
    second = EmbeddedBroker(running.data_dir)
    with pytest.raises(
        BrokerError, match=rf"in use by the broker of process {os.getpid()}.*{running.bootstrap_servers}"
    ):
        second.start()
    assert running.alive()


def test_a_folder_that_kafka_cannot_use_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "data" / "kafka").mkdir(parents=True)
    (tmp_path / "data" / "kafka" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n")
    broker = EmbeddedBroker(tmp_path / "data")
    with pytest.raises(BrokerError, match=r"Kafka was ended with exit code 1") as caught:
        broker.start()
    assert "meta.properties" in str(caught.value) and "broker.log" in str(caught.value)
    assert not broker.alive()


def test_its_log_can_be_read_and_topics_are_not_made_by_accident(running):
    assert "Kafka Server started" in running.log_file.read_text()
    assert "auto.create.topics.enable=false" in (running.data_dir / "server.properties").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stops_cleanly_and_leaves_no_process(command, number):
    process, servers, java = command()
    assert KafkaPythonBroker(servers, timeout_s=PATIENCE_S).topics() == {}
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "Traceback" not in err
    assert not psutil.pid_exists(java)


def test_ctrl_c_in_the_terminal_does_not_reach_java_before_the_worker_has_drained(command):
    process, _, java = command()
    assert os.getpgid(java) != os.getpgid(process.pid)


def test_java_dies_with_a_command_that_is_killed_and_the_next_one_takes_over(command):
    process, servers, java = command()
    process.kill()
    process.wait()
    await_end(java)
    _, again, _ = command()
    assert again == servers


def test_the_command_says_so_when_java_dies(command):
    process, _, java = command()
    os.kill(java, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "tidecast: Kafka was ended by signal 9; the end of" in err and "Traceback" not in err


def test_calls_to_a_broker_that_hangs_fail_in_time_and_work_again_when_it_answers(running):
    port = KafkaPythonBroker(running.bootstrap_servers, timeout_s=2)
    port.create_topic("t", 1)
    fill(port, "t", 1, partition=0)
    consumer = port.consumer(group="g")
    consumer.assign("t", {0: -2})
    drain(consumer, 1)
    os.kill(running.pid, signal.SIGSTOP)
    try:
        for attempt in (lambda: consumer.commit({0: 1}), lambda: port.partitions("t"), port.topics):
            with pytest.raises(BrokerError, match="did not answer within 2 s"):
                attempt()
        assert len(consumer.poll(0.2, 10)) == 0
    finally:
        os.kill(running.pid, signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BrokerError):
            consumer.commit({0: 1})
            break
    assert consumer.committed([0]) == {0: (1, "")}
    consumer.close()
    port.close()
