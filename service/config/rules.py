"""Rules about several settings: combinations that cannot work are refused before anything starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from tidecast.service.config.settings import flag
from tidecast.service.errors import UsageError

LONGEST_TRANSACTION_MS = 5_000  # half of the producer's transaction time-out


def check_together(found: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse combinations of settings that cannot work.

    Raises:
        UsageError: names the setting and the combination.
    """
    names = ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic", "decisions_topic")
    topics = {name: found[name] for name in names}
    if found["source_topic"][0]:
        topics["source_topic"] = found["source_topic"]
    if len({value for value, _ in topics.values()}) < len(topics):
        got = ", ".join(f"{name.replace('_', ' ')} {value}" for name, (value, _) in topics.items())
        raise UsageError(f"the topics must differ: {got}", do="A worker that reads its own output would never stop.")
    value, origin = found["route_group"]
    if value == found["group"][0]:
        raise UsageError(
            f"{origin}: `tidecast route` and `tidecast serve` must have a group each",
            got=value,
            do="Choose another name.",
        )
    value, origin = found["promote"]
    if value == "auto" and not found["shadow"][0]:
        raise UsageError(f"{origin} {value} has no effect without a shadow", do=f"Give {flag('shadow')} DIR too.")
    value, origin = found["commit_interval_ms"]
    if found["delivery"][0] == "exactly-once" and value > LONGEST_TRANSACTION_MS:
        raise UsageError(
            f"{origin}: a commit at least every {LONGEST_TRANSACTION_MS} ms is needed with exactly-once delivery",
            got=value,
            do="Kafka ends a transaction that stays open for longer than 10 s. Use a shorter interval.",
        )
    _check_security(found)


def _check_security(found: Mapping[str, tuple[Any, str]]) -> None:
    """User names and certificates need a protocol that uses them; no password is sent unencrypted."""
    protocol = found["security_protocol"][0]
    sasl, tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    for name in ("kafka_username", "kafka_password"):
        value, origin = found[name]
        if value and not sasl:
            raise UsageError(
                f"{origin} has no effect with the security protocol {protocol}",
                do=f"Use {flag('security_protocol')} SASL_SSL (SASL_PLAINTEXT without TLS), or leave it out.",
            )
        if sasl and not value:
            raise UsageError(f"the security protocol {protocol} needs {flag(name)}")
    for name in ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password"):
        value, origin = found[name]
        if value and not tls:
            raise UsageError(
                f"{origin} has no effect with the security protocol {protocol}",
                do=f"Use {flag('security_protocol')} {'SASL_SSL' if sasl else 'SSL'}, or leave it out.",
            )
        if value and name.startswith("tls_key_") and not found["tls_cert_file"][0]:
            raise UsageError(f"{origin} has no effect without a certificate", do=f"Give {flag('tls_cert_file')} too.")
    if protocol == "SASL_PLAINTEXT" and found["sasl_mechanism"][0] == "PLAIN":
        for server in found["bootstrap_servers"][0].split(","):
            if not is_loopback(server.strip().rpartition(":")[0]):
                raise UsageError(
                    "PLAIN without TLS would send the password unencrypted",
                    got=f"{protocol} to {server.strip()}",
                    do=f"Use {flag('security_protocol')} SASL_SSL, or {flag('sasl_mechanism')} SCRAM-SHA-512.",
                )


def is_loopback(host: str) -> bool:
    """Whether this host is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
