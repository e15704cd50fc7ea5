"""Every setting of the service, once: the fields below make the flags, the TIDECAST_* variables and the help."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidecast.service.config.secrets import Secret
from tidecast.service.errors import UsageError

PREFIX = "TIDECAST_"

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def _data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return str(Path(base) / "tidecast" / "broker")


def _setting(
    default: Any,
    help: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    metadata = {"help": help, "group": group, "choices": choices, "low": low, "high": high}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is in force. Make one with `load` or `from_args`, which check; the constructor trusts its caller."""

    bootstrap_servers: str = _setting(
        "127.0.0.1:9092", "host:port of the Kafka brokers, comma-separated", group="Kafka"
    )
    client: str = _setting(
        "kafka-python",
        "the Kafka client library to use; confluent, the fast one, comes with tidecast[fast]",
        group="Kafka",
        choices=("kafka-python", "confluent"),
    )
    input_topic: str = _setting("readings", "topic that readings are read from", group="Kafka")
    output_topic: str = _setting("forecasts", "topic that forecasts are written to", group="Kafka")
    dead_letter_topic: str = _setting("dead-letters", "topic for readings that cannot be used", group="Kafka")
    changelog_topic: str = _setting(
        "tidecast-state", "compacted topic that holds the states of all series", group="Kafka"
    )
    group: str = _setting("tidecast", "consumer group; workers of one group share the partitions", group="Kafka")
    delivery: str = _setting(
        "exactly-once",
        "what a crash may do to forecasts: repeat some (at-least-once) or nothing (exactly-once)",
        group="Kafka",
        choices=("exactly-once", "at-least-once"),
    )
    start: str = _setting(
        "earliest",
        "where a group that has never committed begins in the input topic",
        group="Kafka",
        choices=("earliest", "latest"),
    )
    commit_interval_ms: int = _setting(
        100, "longest time between two commits while readings arrive, ms", group="Kafka", low=1, high=60_000
    )
    changelog_seconds: float = _setting(
        10.0, "each state that has moved on is written to the changelog once in so long, s", group="Kafka", low=0.1
    )
    changelog_bytes_per_second: float = _setting(
        8_388_608.0, "what writing states may cost at the most, bytes a second", group="Kafka", low=1024
    )
    accept_gap: bool = _setting(
        False, "go on where retention has eaten readings that the states still needed", group="Kafka"
    )
    instance: str = _setting(
        "auto", "a name of this worker's own, which outlives a restart; auto = a new one each time", group="Kafka"
    )
    session_timeout_seconds: float = _setting(
        20.0, "a worker that Kafka has not heard of for so long loses its partitions, s", group="Kafka", low=6
    )
    max_poll_records: int = _setting(
        4000, "readings taken from Kafka in one go, and so the largest batch", group="Kafka", low=1, high=1_000_000
    )
    broker_timeout_seconds: float = _setting(
        60.0, "how long to wait for a broker that does not answer before giving up, s", group="Kafka", low=1
    )

    security_protocol: str = _setting(
        "PLAINTEXT",
        "how to speak with Kafka: with TLS (…SSL), with a user's name and password (SASL_…)",
        group="Kafka security",
        choices=("PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"),
    )
    sasl_mechanism: str = _setting(
        "SCRAM-SHA-512",
        "how to prove the password, with SASL",
        group="Kafka security",
        choices=("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    )
    kafka_username: str = _setting("", "the user's name, with SASL", group="Kafka security")
    kafka_password: Secret = _setting(  # noqa: RUF009 - a field, as all of them
        Secret, "file that holds the user's password, with SASL", group="Kafka security"
    )
    tls_ca_file: str = _setting(
        "", "PEM file of the authorities whose brokers are trusted; none = this machine's own", group="Kafka security"
    )
    tls_cert_file: str = _setting(
        "", "PEM file of our certificate, for a Kafka that asks for one", group="Kafka security"
    )
    tls_key_file: str = _setting(
        "", "PEM file of its key; none = the certificate's file holds it too", group="Kafka security"
    )
    tls_key_password: Secret = _setting(  # noqa: RUF009
        Secret, "file that holds the password of an encrypted key", group="Kafka security"
    )

    model: str = _setting("model", "model directory, or the .onnx file itself", group="Model")
    model_sha256: str = _setting(
        "", "the model file must have this sha256 (hex), a newer one too; none = any", group="Model"
    )
    model_max_bytes: int = _setting(64 << 20, "a larger model file is refused, bytes", group="Model", low=1)
    intra_op_threads: int = _setting(
        1, "threads that onnxruntime may use inside one step", group="Model", low=1, high=256
    )

    model_watch_seconds: float = _setting(
        2.0, "how often to look for a newer model in its place, s; 0 = only on SIGHUP", group="Model", low=0
    )
    swap_replay_readings: int = _setting(
        1_000_000,
        "at most so many readings of each partition are replayed for a newer model whose state has another layout",
        group="Model",
        low=0,
    )

    max_gap_steps: int = _setting(
        24, "missing steps that are filled in silently; after more the series starts again, cold", group="Series", low=0
    )
    max_series: int = _setting(
        1_000_000, "series held at once; beyond it the least recently seen is forgotten", group="Series", low=1
    )
    series_ttl_seconds: float = _setting(
        0.0, "forget a series after this long without a reading (event time), s; 0 = never", group="Series", low=0
    )
    max_future_seconds: float = _setting(
        86_400.0,
        "a reading further ahead of its record's timestamp is out of range, s; 0 = no limit",
        group="Series",
        low=0,
    )

    dead_letter_late: bool = _setting(
        False, "also dead-letter readings older than their series' last", group="Dead letters"
    )
    dead_letter_duplicate: bool = _setting(
        False, "also dead-letter readings with the time of their series' last", group="Dead letters"
    )
    dead_letter_limit: int = _setting(
        1000, "more dead letters than this within the window stop the worker; 0 = no limit", group="Dead letters", low=0
    )
    dead_letter_window_seconds: float = _setting(60.0, "length of that window, s", group="Dead letters", low=0.001)

    http_host: str = _setting("127.0.0.1", "address to serve /metrics and the probes on", group="HTTP")
    http_port: int = _setting(9108, "port to serve them on; 0 = any free one", group="HTTP", low=0, high=65_535)

    watch_host: str = _setting("127.0.0.1", "address to serve the live page on", group="Live page")
    watch_port: int = _setting(9109, "port to serve it on; 0 = any free one", group="Live page", low=0, high=65_535)
    watch_password: Secret = _setting(  # noqa: RUF009
        Secret,
        "file that holds the password of the page, for any user name; none = nobody is asked",
        group="Live page",
    )
    watch_allowed_hosts: str = _setting(
        "",
        "names under which it may be asked for, comma-separated, such as a proxy's; on loopback beside its own",
        group="Live page",
    )
    watch_series: int = _setting(
        20_000, "series shown at most; beyond it the least recently heard of is left out", group="Live page", low=1
    )
    watch_points: int = _setting(
        720, "readings and forecasts kept of each series to draw", group="Live page", low=10, high=10_000
    )
    watch_memory_bytes: int = _setting(
        256 << 20,
        "what all of them may cost; beyond it fewer are kept of each series, bytes",
        group="Live page",
        low=1 << 20,
    )
    watch_start_records: int = _setting(
        5_000, "newest records of each partition that the page begins with", group="Live page", low=0, high=1_000_000
    )

    log_level: str = _setting(
        "info", "least severe message to log", group="Process", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _setting(
        "text", "key=value lines, or one JSON object a line", group="Process", choices=("text", "json")
    )
    traces: bool = _setting(
        False,
        "send spans by OTLP, to where the OTEL_EXPORTER_OTLP_* variables say; comes with tidecast[otel]",
        group="Process",
    )
    shutdown_timeout_seconds: float = _setting(
        30.0, "time to drain, commit and leave the group after SIGTERM, s", group="Process", low=0.1
    )

    broker_data_dir: str = _setting(_data_dir, "where the embedded broker keeps its data", group="Embedded broker")
    broker_port: int = _setting(
        9092, "loopback port of the embedded broker; 0 = any free one", group="Embedded broker", low=0, high=65_535
    )


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Settings)}


def default(name: str) -> Any:
    """The default of one setting."""
    f = FIELDS[name]
    return f.default_factory() if callable(f.default_factory) else f.default


CONNECTION = (  # what every command needs that goes to Kafka
    "bootstrap_servers",
    "client",
    "broker_timeout_seconds",
    *(name for name, f in FIELDS.items() if f.metadata["group"] == "Kafka security"),
)


def is_secret(name: str) -> bool:
    """Whether it is one that nobody may see. It has no flag for its value, which every user of a machine could read."""
    return name in FIELDS and isinstance(default(name), Secret)


def flag(name: str) -> str:
    """`input_topic` -> `--input-topic`; a secret's names its file: `kafka_password` -> `--kafka-password-file`."""
    return "--" + name.replace("_", "-") + ("-file" if is_secret(name) else "")


def variable(name: str) -> str:
    """`input_topic` -> `TIDECAST_INPUT_TOPIC`; a secret's names its file: `TIDECAST_KAFKA_PASSWORD_FILE`."""
    return PREFIX + name.upper() + ("_FILE" if is_secret(name) else "")


def variables(name: str) -> tuple[str, ...]:
    """All that can set it: a secret can also be given itself, `TIDECAST_KAFKA_PASSWORD`."""
    return (variable(name), PREFIX + name.upper()) if is_secret(name) else (variable(name),)


def parse(name: str, given: object, origin: str) -> Any:
    """`given` as the setting's type, within its choices and limits."""
    meta = FIELDS[name].metadata
    kind = type(default(name))
    text = given.strip() if isinstance(given, str) else given
    parse: Callable[[object], Any] = _PARSERS[kind]
    try:
        value = parse(text)
    except (TypeError, ValueError):
        raise UsageError(f"{origin} must be {_NAMES[kind]}", got=given) from None
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{origin} must be one of {', '.join(meta['choices'])}", got=given)
    if kind in (int, float) and not meta["low"] <= value <= meta["high"]:
        bounds = f"at least {meta['low']:,}" + (f" and at most {meta['high']:,}" if meta["high"] < math.inf else "")
        raise UsageError(f"{origin} must be {bounds}", got=given)
    if kind is str and not value and default(name):
        raise UsageError(
            f"{origin} is empty", do=f"Give it a value, or leave it out for the default {default(name)!r}."
        )
    if name.endswith("_topic") and (not _TOPIC.fullmatch(value) or value in (".", "..")):
        raise UsageError(
            f"{origin} is not a topic's name", got=given, do="Use letters, digits, '.', '_' and '-', at most 249."
        )
    return value


def _to_bool(given: object) -> bool:
    if isinstance(given, bool):
        return given
    text = str(given).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(text)
    return text in _TRUE


def _to_int(given: object) -> int:
    if isinstance(given, bool):
        raise TypeError(given)
    if isinstance(given, float) and not given.is_integer():
        raise ValueError(given)
    return int(given)  # type: ignore[call-overload, no-any-return]


def _to_float(given: object) -> float:
    value = float(given)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise ValueError(value)
    return value


_PARSERS: dict[type, Callable[[object], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: str}
_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
