"""Checks from the name of a server to the rights of the user."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Collection

from tidecast.service.broker.reachability import unanswered, unknown_name
from tidecast.service.broker.security import Security
from tidecast.service.config.settings import Settings
from tidecast.service.doctor.patient import GROUP_RIGHTS, Patient, Said, State
from tidecast.service.errors import NoCoordinator
from tidecast.service.wording import counted


def _servers(patient: Patient) -> list[tuple[str, str]]:
    """(host, port) of each server of the list."""
    found = [server.strip().rpartition(":") for server in patient.settings.bootstrap_servers.split(",")]
    return [(host, port) for host, _, port in found]


def name(patient: Patient) -> Said:
    """The names of the servers resolve."""
    found_out = {server: unknown_name(*server) for server in _servers(patient)}
    yield from _some(found_out.values(), "Check the spelling in --bootstrap-servers, and the DNS of this machine.")
    for (host, port), bad in found_out.items():
        if not bad:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            addresses = ", ".join(sorted({str(each[4][0]) for each in found}))
            yield State.OK, f"{host} is {addresses}" if addresses != host.strip("[]") else f"{host} is an address"


def port(patient: Patient) -> Said:
    """Something answers there as Kafka does."""
    tls = Security.of(patient.settings).tls
    servers = [server for server in _servers(patient) if not unknown_name(*server)]
    found_out = {server: unanswered(*server, tls=tls) for server in servers}
    yield from _some(
        found_out.values(), "Check that a broker listens there, or name another address with --bootstrap-servers."
    )
    for (host, number), bad in found_out.items():
        if not bad:
            yield State.OK, f"{host}:{number} {'is open' if tls else 'answers as Kafka does'}"


def _some(found_out: Collection[str | None], do: str) -> Said:
    """One server that answers is enough to start with; without the others a start may fail while that one is away."""
    if bad := [text for text in found_out if text]:
        yield State.WRONG if len(bad) == len(found_out) else State.NOTE, f"{'; '.join(bad)}. {do}"


def login(patient: Patient) -> Said:
    """Kafka accepts our connection, and we trust it."""
    patient.questions.login()
    security = Security.of(patient.settings)
    how = "with TLS" if security.tls else "without TLS"
    if security.cert_file:
        how += f" and the certificate {security.cert_file}"
    who = f", as the user {security.username!r} ({security.mechanism})" if security.sasl else ""
    yield State.OK, f"Kafka accepts the connection {how}{who}"


def version(patient: Patient) -> Said:
    """How new Kafka is."""
    found = patient.cluster
    yield State.OK, f"Kafka {'.'.join(map(str, found.version))}, {counted(found.brokers, 'broker')}"


def rights(patient: Patient) -> Said:
    """The user may do what `serve` does."""
    s, denied = patient.settings, False
    for role in patient.topic_rights:
        if missing := patient.missing_rights(role):
            denied = True
            yield State.WRONG, _denied(s, missing, "topic", getattr(s, role))
    allowed = patient.group.operations
    if allowed is not None and (missing := tuple(each for each in GROUP_RIGHTS if each not in allowed)):
        denied = True
        yield State.WRONG, _denied(s, missing, "group", s.group)
    if not denied:
        decisions = ", and follow decisions" if s.decides else ""
        yield State.OK, f"this user may read the input, and write forecasts, dead letters and states{decisions}"


def transactions(patient: Patient) -> Said:
    """Kafka coordinates transactions, and the user may ask for them."""
    s = patient.settings
    if s.delivery != "exactly-once":
        yield State.OK, f"not needed with --delivery {s.delivery}"
        return
    found = patient.questions.transaction_coordinator(f"{s.group}-doctor")
    if found is None:
        yield State.WRONG, _denied(s, ("WRITE",), "transactional-id", s.group, prefixed=True)
    elif not found:
        yield State.WRONG, str(NoCoordinator(s.bootstrap_servers))
    else:
        yield State.OK, "there is a transaction coordinator (no transaction was begun)"


def _denied(s: Settings, missing: tuple[str, ...], kind: str, name: str, *, prefixed: bool = False) -> str:
    """What is not allowed, and the command that allows it."""
    user = s.kafka_username or ("NAME-IN-THE-CERTIFICATE" if s.tls_cert_file else "ANONYMOUS")
    operations = " ".join(f"--operation {each.title().replace('_', '')}" for each in missing)
    pattern = " --resource-pattern-type prefixed" if prefixed else ""
    what = f"transactional ids that begin with {name}" if prefixed else f"the {kind} {name}"
    return (
        f"the user {user!r} lacks {', '.join(missing)} on {what} (docs/security.md). Allow it: kafka-acls.sh "
        f"--bootstrap-server {s.bootstrap_servers} --add --allow-principal {shlex.quote(f'User:{user}')} {operations} "
        f"--{kind} {shlex.quote(name)}{pattern}"
    )
