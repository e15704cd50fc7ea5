"""An address where no Kafka answers: each cause has a word of its own."""

import re
import socket
import threading
import time

import pytest

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.reachability import why_unreachable
from tidecast.service.errors import BrokerUnavailable, UsageError


@pytest.fixture
def answering():
    """`answering(bytes)`: the address of a server that gives this answer to whoever asks; None = it never does."""
    servers = []

    def make(answer):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        held = []

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(64)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield make
    for server in servers:
        server.close()


def closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "speaks HTTP, not Kafka"),
        (b"<!DOCTYPE HTML>", "speaks HTTP, not Kafka"),
        (b"\x15\x03\x03\0\x02\x02\x50", "wants TLS: use --security-protocol SSL"),
        (b"", "closes the connection: no Kafka, or one that wants TLS"),
        (b"SSH-2.0-OpenSSH_9.6", "does not speak Kafka"),
        (None, "is silent: another program, or a firewall"),
        (b"\0\0\0\x20\0\0\0\x01\0\0", "a Kafka listens on port .* but was not ready"),
    ],
)
def test_what_answers_there_is_named(answering, answer, said):
    address = answering(answer)
    found = why_unreachable(address)
    assert re.search(said, found) and address.rpartition(":")[2] in found, found


def test_a_closed_port_and_an_unknown_name_are_named():
    address = closed()
    assert why_unreachable(address) == f"nothing listens on port {address.rpartition(':')[2]} of 127.0.0.1"
    assert why_unreachable("kafka.invalid:9092") == "the name kafka.invalid is not known here"


def test_of_many_silent_servers_not_each_is_waited_for(answering):
    began = time.monotonic()
    why_unreachable(",".join(answering(None) for _ in range(5)))
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_says_why_it_found_no_kafka(answering, client):
    broker = connect(answering(None), client=client, timeout_s=2)
    with pytest.raises(BrokerUnavailable, match=r"did not answer within 2 s: port \d+ of 127.0.0.1 is silent"):
        broker.consumer()
    broker.close()


@pytest.mark.parametrize("address", ["kafka", "kafka:", "kafka:0", "kafka:70000", ":9092"])
def test_an_address_without_a_usable_port_is_refused_at_once(address):
    with pytest.raises(UsageError, match="host:port"):
        connect(address)
