"""Check that Kafka accepts our connections, before a client is made.

Both libraries treat a wrong password or certificate as a broker that is away: they try again in silence until their
time limit (docs/upstream.md, K13). So one connection is made first, with parts of kafka-python, and one to every broker
that the first one lists, as their names may not match their certificates. A refusal is raised at once, in one sentence;
a broker that is away is waited for.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from typing import Any

from kafka import errors
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from tidecast.service.broker.client import CHECK_ADDRESS
from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.kafka_python.rejections import WHICH_FILE, causes, rejection
from tidecast.service.broker.reachability import why_unreachable
from tidecast.service.config.settings import flag
from tidecast.service.errors import BrokerUnavailable, ConnectionClosed, ConnectionRejected

_TRY_S = 5.0  # for one connection
_AGAIN_S = 0.25
_HUNG_UP_S = 5.0  # this long: a broker that stops, or starts behind a proxy, does so too


class _HungUp(Exception):
    """Kafka closed the connection during the handshake."""


def _keep_last_bytes(transport: type[Any]) -> None:
    """Have a transport of the library deliver what came before a connection's end. See docs/upstream.md, K2."""
    receive = transport._sock_recv

    def receive_all(self: Any) -> tuple[bytes, BaseException | None]:
        data, error = receive(self)
        return data, None if data else error  # the next call meets the end of the connection again

    transport._sock_recv = receive_all


LIBRARY_RECEIVE = KafkaTCPTransport._sock_recv  # as the library has it
_keep_last_bytes(KafkaTCPTransport)
_keep_last_bytes(KafkaSSLTransport)


def probe(client: KafkaPythonClient) -> None:
    """Wait until Kafka has accepted a connection, at most `client.timeout_s`.

    Raises:
        ConnectionRejected: it refuses us, or we do not trust it.
        ConnectionClosed: it closes every connection.
        BrokerUnavailable: it did not answer in that time, and why.
    """
    deadline = time.monotonic() + client.timeout_s
    hung_up: float | None = None  # since when it has done nothing else
    while True:
        try:
            if _tried(client, deadline):
                return
            hung_up = None
        except _HungUp:
            hung_up = hung_up or time.monotonic()
            if time.monotonic() - hung_up >= min(_HUNG_UP_S, client.timeout_s / 2):
                raise _closed(client) from None
        if time.monotonic() + _AGAIN_S >= deadline:
            servers = client.bootstrap_servers
            raise BrokerUnavailable(
                f"Kafka at {servers} did not answer within {client.timeout_s:g} s: {why_unreachable(servers)}",
                do=CHECK_ADDRESS,
            )
        time.sleep(_AGAIN_S)


def _tried(client: KafkaPythonClient, deadline: float) -> bool:
    """Whether one of the brokers has accepted a connection."""
    net = NetworkSelector()
    manager = KafkaConnectionManager(net, **client.options())
    net.start()
    try:
        for node in manager.cluster.bootstrap_brokers():
            if _met(client, manager, node, deadline):
                # A short limit: it does not matter if other brokers are away.
                with contextlib.suppress(errors.KafkaError, OSError):
                    asked = manager.call_soon(manager.cluster.refresh_metadata, node.node_id)
                    manager.run(manager.wait_for, asked, 1_000 * _TRY_S)
                    for other in manager.cluster.brokers():
                        _met(client, manager, other, deadline)
                return True
        return False
    finally:
        manager.close()
        net.stop()


def _met(client: KafkaPythonClient, manager: Any, node: Any, deadline: float) -> bool:
    """Whether the broker has accepted a connection; False if it is away."""
    limit_ms = int(1_000 * max(0.1, min(_TRY_S, deadline - time.monotonic())))

    async def meet() -> None:
        connection = manager.get_connection(node.node_id, timeout_ms=limit_ms)
        await manager.wait_for(connection.init_future, limit_ms)

    try:
        manager.run(meet)
    except (errors.KafkaError, OSError, ValueError, KeyError) as error:
        where = f"{node.host}:{node.port}"
        if (refusal := _refusal(client, where, error)) is not None:
            raise refusal from error
        if _ended(error) and (client.security.tls or client.security.sasl):
            raise _HungUp from error
        return False
    return True


def _refusal(client: KafkaPythonClient, where: str, error: BaseException) -> ConnectionRejected | None:
    """The rejection that the error means; None if a later try may succeed."""
    if (rejected := rejection(client.security, where, error)) is not None or not client.security.sasl:
        return rejected
    for cause in causes(error):
        if isinstance(cause, ValueError) and not isinstance(cause, (OSError, UnicodeError)):
            return ConnectionRejected(
                f"Kafka at {where} could not prove that it knows the password of {client.security.username!r}: {cause}",
                do="Check the address: this may not be your Kafka.",
            )
    return None


def _ended(error: BaseException) -> bool:
    """Whether the other side has closed an open connection."""
    for cause in causes(error):
        if isinstance(cause, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True
        if isinstance(cause, errors.KafkaConnectionError) and "socket disconnected" in str(cause):
            return True
    return False


def _closed(client: KafkaPythonClient) -> ConnectionClosed:
    security = client.security
    if security.tls:
        what = "it may not speak TLS on this port" + ("" if security.cert_file else ", or want a client certificate")
        do = f"Use the port of its TLS listener, or give {flag('tls_cert_file')}; {WHICH_FILE}"
    else:
        what = "it may want TLS, or no password"
        do = f"Use another {flag('security_protocol')}, or another of its ports."
    return ConnectionClosed(
        f"Kafka at {client.bootstrap_servers} closes each connection during the handshake: {what}",
        got=f"the security protocol {security.protocol}",
        do=do,
    )
