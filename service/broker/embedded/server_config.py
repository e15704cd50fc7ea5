"""The configuration of the embedded Kafka: one KRaft node on loopback, small internal topics, a small log file."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

# After a kill -9 the restarted node must wait for the end of its old session: 9 s by default, 3 s here.
_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
num.partitions=4
default.replication.factor=1
min.insync.replicas=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
log.index.size.max.bytes=1048576
num.network.threads=1
num.io.threads=2
"""

_LOG4J = """\
status=error
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log}
appender.file.filePattern={log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %-5p %m (%c{{1}})%n
appender.file.policies.type=SizeBasedTriggeringPolicy
appender.file.policies.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
"""


def server_properties(
    host: str, port: int, controller_port: int, log_dir: Path, more: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The text of server.properties; clients connect to `host:port`. `more` comes last, and so overrides."""
    text = _SERVER.format(host=host, port=port, controller_port=controller_port, log_dir=_escaped(log_dir))
    for name, value in more.items():
        value = value.replace("{port}", str(port)).replace("{controller_port}", str(controller_port))
        text += f"{name}={value}\n"
    return text


def log4j_properties(log: Path) -> str:
    """The text of log4j2.properties: to `log`, 3 files of 10 MB at most."""
    return _LOG4J.format(log=_escaped(log))


def cluster_id() -> str:
    """A new random id. It never begins with "-", which would read as an option."""
    return base64.urlsafe_b64encode(b"t" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\")  # Java's properties take a backslash for themselves
