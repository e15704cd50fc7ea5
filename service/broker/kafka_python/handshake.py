"""Check that Kafka accepts our connections, before a client is made.

Both libraries treat a wrong password or certificate as a broker that is away: they try again in silence until their
time limit (docs/upstream.md, K13). So one connection is made first, with parts of kafka-python, and one to every broker
that the first one lists, as their names may not match their certificates. A refusal is raised at once, in one sentence;
a broker that is away is waited for.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
from collections.abc import Iterator
from typing import Any

from kafka import errors
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.security import Security
from tidecast.service.config.settings import flag
from tidecast.service.errors import BrokerError, ConnectionRejected

_TRY_S = 5.0  # for one connection
_AGAIN_S = 0.25
_HUNG_UP_S = 5.0  # this long: a broker that stops, or starts behind a proxy, does so too
_FILE = "tidecast config shows which file is in force."


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
        BrokerError: it closes every connection.
        TimeoutError: it did not answer in that time.
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
            raise TimeoutError(client.bootstrap_servers)
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
    security = client.security
    for cause in _causes(error):
        match cause:
            case errors.SaslAuthenticationFailedError():
                return _unknown_user(security, where, str(cause))
            case errors.UnsupportedSaslMechanismError() | errors.IllegalSaslStateError():
                return _other_mechanism(security, where, str(cause))
            case ssl.SSLCertVerificationError():
                return _untrusted(where, cause)
            case ssl.SSLError() if "WRONG_VERSION_NUMBER" in str(cause) or "RECORD_LAYER_FAILURE" in str(cause):
                return _no_tls(security, where)
            case ssl.SSLError() if "ALERT" in str(cause):
                return _certificate_refused(security, where, str(cause))
            case errors.InvalidReceiveError() if not security.tls:
                return ConnectionRejected(
                    f"Kafka at {where} does not answer to {security.protocol} in Kafka's protocol: it may want TLS",
                    do=f"Use {flag('security_protocol')} {'SASL_SSL' if security.sasl else 'SSL'}, or its other port.",
                )
            case ValueError() if security.sasl and not isinstance(cause, (OSError, UnicodeError)):
                return ConnectionRejected(
                    f"Kafka at {where} could not prove that it knows the password of {security.username!r}: {cause}",
                    do="Check the address: this may not be your Kafka.",
                )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: its arguments, and the errors that were handled when it was raised."""
    seen: list[BaseException] = [error]
    for each in seen:
        yield each
        inside = (*each.args, each.__cause__, each.__context__)
        seen += [one for one in inside if isinstance(one, BaseException) and one not in seen]


def _ended(error: BaseException) -> bool:
    """Whether the other side has closed an open connection."""
    for cause in _causes(error):
        if isinstance(cause, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True
        if isinstance(cause, errors.KafkaConnectionError) and "socket disconnected" in str(cause):
            return True
    return False


def _unknown_user(security: Security, where: str, said: str) -> ConnectionRejected:
    return ConnectionRejected(
        f"Kafka at {where} refuses the user {security.username!r} with {security.mechanism}: the name or the password "
        f"is wrong, or not for this mechanism{_in_its_words(said)}",
        do=f"Check {flag('kafka_username')}, {flag('kafka_password')} and {flag('sasl_mechanism')}.",
    )


def _in_its_words(said: str) -> str:
    """Kafka's own text, without the error numbers and names that the library puts before it."""
    words = re.sub(r"^(\[Error \d+\] |\w+Error: )+", "", said).rstrip(".")
    return f" ({words})" if words else ""


def _other_mechanism(security: Security, where: str, said: str) -> ConnectionRejected:
    return ConnectionRejected(
        f"Kafka at {where} does not accept {security.mechanism}{_in_its_words(said)}",
        do=f"Use another {flag('sasl_mechanism')}, or another of its ports.",
    )


def _untrusted(where: str, error: ssl.SSLCertVerificationError) -> ConnectionRejected:
    why = error.verify_message.rstrip(".") or str(error)
    if re.search("mismatch", why, re.I):
        return ConnectionRejected(
            f"the certificate of Kafka at {where} is for another name: {why}",
            do="Use a name that the certificate has in --bootstrap-servers and in the brokers' advertised.listeners.",
        )
    return ConnectionRejected(
        f"the certificate of Kafka at {where} is not trusted: {why}",
        do=f"Give the file of the authority that signed it with {flag('tls_ca_file')}; {_FILE}",
    )


def _no_tls(security: Security, where: str) -> ConnectionRejected:
    return ConnectionRejected(
        f"Kafka at {where} does not speak TLS on this port",
        got=f"the security protocol {security.protocol}",
        do=f"Use the port of its TLS listener, or {flag('security_protocol')} "
        f"{'SASL_PLAINTEXT' if security.sasl else 'PLAINTEXT'}.",
    )


def _certificate_refused(security: Security, where: str, said: str) -> ConnectionRejected:
    alert = re.search(r"ALERT_(\w+)", said)
    why = alert[1].lower().replace("_", " ") if alert else said
    if not security.cert_file:
        return ConnectionRejected(
            f"Kafka at {where} wants a client certificate, and none is set ({why})",
            do=f"Give it with {flag('tls_cert_file')} and {flag('tls_key_file')}.",
        )
    return ConnectionRejected(
        f"Kafka at {where} refuses our certificate {security.cert_file} ({why})",
        do=f"Give one that it trusts with {flag('tls_cert_file')} and {flag('tls_key_file')}.",
    )


def _closed(client: KafkaPythonClient) -> BrokerError:
    security = client.security
    if security.tls:
        what = "it may not speak TLS on this port" + ("" if security.cert_file else ", or want a client certificate")
        do = f"Use the port of its TLS listener, or give {flag('tls_cert_file')}; {_FILE}"
    else:
        what = "it may want TLS, or no password"
        do = f"Use another {flag('security_protocol')}, or another of its ports."
    return BrokerError(
        f"Kafka at {client.bootstrap_servers} closes each connection during the handshake: {what}",
        got=f"the security protocol {security.protocol}",
        do=do,
    )
