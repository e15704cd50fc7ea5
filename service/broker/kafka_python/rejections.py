"""Kafka refuses the connection, or we do not trust it: what the library raised, as a sentence.

For the first connection (`handshake`) and for any later one: a password may change while a worker runs.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from kafka import errors

from tidecast.service.broker.security import Security
from tidecast.service.config.settings import flag
from tidecast.service.errors import ConnectionRejected

WHICH_FILE = "tidecast config shows which file is in force."


def rejection(security: Security, where: str, error: BaseException) -> ConnectionRejected | None:
    """The rejection that an error of the library, or one of its causes, means; None for any other error."""
    for cause in causes(error):
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
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: its arguments, and the errors that were handled when it was raised."""
    seen: list[BaseException] = [error]
    for each in seen:
        yield each
        inside = (*each.args, each.__cause__, each.__context__)
        seen += [one for one in inside if isinstance(one, BaseException) and one not in seen]


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
        do=f"Give the file of the authority that signed it with {flag('tls_ca_file')}; {WHICH_FILE}",
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
