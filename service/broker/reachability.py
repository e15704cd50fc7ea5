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
    return unknown_name(host, port) or unanswered(host, port) or _ready_late(host, port)


def unknown_name(host: str, port: str) -> str | None:
    """What is wrong with the name of a server; None where it is known."""
    try:
        socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return f"the name {host} is not known here"
    return None


def unanswered(host: str, port: str, *, tls: bool = False) -> str | None:
    """Why nothing answers as Kafka does; None if it answers. With `tls` it is only seen whether the port is open."""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _WAIT_S) as connection:
            if tls:
                return None
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


def _ready_late(host: str, port: str) -> str:
    return f"a Kafka listens on port {port} of {host}, but was not ready"


def _what(host: str, port: str, answer: bytes) -> str | None:
    if answer.startswith((b"HTTP", b"<")):  # or a page without a head, as to what is no request
        return f"port {port} of {host} speaks HTTP, not Kafka"
    if answer.startswith(b"\x15\x03"):  # an alert of TLS
        return f"port {port} of {host} wants TLS: use --security-protocol SSL, or SASL_SSL with a user"
    if not answer:
        return f"port {port} of {host} closes the connection: no Kafka, or one that wants TLS"
    if answer[4:8] == _QUESTION[8:12]:
        return None
    return f"port {port} of {host} does not speak Kafka"
