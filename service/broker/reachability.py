"""Why nothing answers as Kafka does at an address, in a few words for a person who has to find out."""

from __future__ import annotations

import socket
import time

_WAIT_S = 0.7
_TOTAL_S = 0.5  # no further server is asked after so long
# ApiVersions, version 0, without a client id: every Kafka answers it, and what is no Kafka shows what it is.
_QUESTION = b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\xff\xff"


def why_unreachable(servers: str) -> str:
    """For the servers of the list, `host:port` each, what stands in the way; takes at most two seconds."""
    found, began = [], time.monotonic()
    for server in servers.split(","):
        host, _, port = server.rpartition(":")
        found.append(_why(host, port))
        if time.monotonic() - began > _TOTAL_S:
            break
    return "; ".join(found)


def _why(host: str, port: str) -> str:
    try:
        socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return f"the name {host} is not known here"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _WAIT_S) as connection:
            connection.settimeout(_WAIT_S)
            connection.sendall(_QUESTION)
            return _what(host, port, connection.recv(16))
    except ConnectionRefusedError:
        return f"nothing listens on port {port} of {host}"
    except ConnectionResetError:
        return _what(host, port, b"")
    except TimeoutError:
        return f"port {port} of {host} is silent: another program, or a firewall"
    except OSError as error:
        return f"{host}:{port} cannot be reached: {error.strerror}"


def _what(host: str, port: str, answer: bytes) -> str:
    if answer.startswith(b"HTTP"):
        return f"port {port} of {host} speaks HTTP, not Kafka"
    if not answer:
        return f"port {port} of {host} closes the connection: no Kafka, or one that wants TLS"
    if answer[4:8] == _QUESTION[8:12]:
        return f"a Kafka listens on port {port} of {host}, but was not ready"
    return f"port {port} of {host} does not speak Kafka"
