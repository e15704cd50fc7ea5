"""Make the broker that the settings name."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import msgspec

from tidecast.service.broker.port import Broker
from tidecast.service.broker.security import PLAIN_TEXT, Security
from tidecast.service.config.settings import Settings
from tidecast.service.errors import UsageError

if TYPE_CHECKING:
    from tidecast.service.broker.kafka_python.questions import Questions

AUTO = "auto"
CLIENTS = ("kafka-python", "confluent")
log = logging.getLogger("tidecast.broker")

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+):(\d{1,5})")


def connect_from_settings(settings: Settings, *, worker: bool = False) -> Broker:
    """The broker that the settings name, with their credentials.

    With the client "auto" a worker gets confluent where it is installed; all else gets kafka-python. The log of a
    worker says which.

    Raises:
        UsageError: as for `connect`.
    """
    client = settings.client
    if client == AUTO:
        client = "confluent" if worker and _has_confluent() else "kafka-python"
    if worker:
        log.info("Kafka client", extra={"client": client, "setting": settings.client})
    return connect(
        settings.bootstrap_servers,
        client=client,
        timeout_s=settings.broker_timeout_seconds,
        security=Security.of(settings),
    )


def connect(
    bootstrap_servers: str, *, client: str = "kafka-python", timeout_s: float = 60.0, security: Security = PLAIN_TEXT
) -> Broker:
    """The broker at `host:port[,host:port…]`, through the client library of that name.

    Nothing is contacted yet: the first call that needs the broker waits for it, up to `timeout_s`.

    Raises:
        UsageError: not a list of servers, no such client, its package is not installed, or a certificate's file cannot
            be used.
    """
    servers = [server.strip() for server in bootstrap_servers.split(",")]
    found = [_SERVER.fullmatch(server) for server in servers]
    if not all(each is not None and 1 <= int(each[2]) <= 65_535 for each in found):
        raise UsageError(
            "--bootstrap-servers must be host:port, or several with commas between them", got=bootstrap_servers
        )
    if client not in CLIENTS:
        raise UsageError(f"there is no Kafka client {client!r}", do=f"Use one of: {', '.join(CLIENTS)}.")
    security.context()
    if client == "confluent":
        try:
            from tidecast.service.broker.confluent.broker import ConfluentBroker
        except ImportError as error:
            raise UsageError(
                f"the client {client!r} cannot be used: {error}", do="Install it: pip install 'tidecast[fast]'"
            ) from error
        return ConfluentBroker(",".join(servers), timeout_s=timeout_s, security=security)
    from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker

    return KafkaPythonBroker(",".join(servers), timeout_s=timeout_s, security=security)


def questions_from_settings(settings: Settings) -> tuple[Broker, Questions]:
    """What `tidecast doctor` asks of the cluster besides, and the broker to close afterwards; raises as `connect`."""
    from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker
    from tidecast.service.broker.kafka_python.questions import Questions

    broker = connect_from_settings(msgspec.structs.replace(settings, client="kafka-python"))
    assert isinstance(broker, KafkaPythonBroker)
    return broker, Questions(broker)


def _has_confluent() -> bool:
    try:
        import confluent_kafka  # noqa: F401
    except ImportError:
        return False
    return True
