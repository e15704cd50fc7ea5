"""Every setting of the service, once: the fields below make the flags, the TIDECAST_* variables and the help."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, inspect

from tidecast.service.config.kinds import PATTERNS, Port, Sha256, Text, Topic, TopicOrNone, about
from tidecast.service.config.secrets import Secret
from tidecast.service.errors import UsageError

PREFIX = "TIDECAST_"

_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # besides msgspec's true, false, 1 and 0


def _data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return str(Path(base) / "tidecast" / "broker")


_kafka = functools.partial(about, "Kafka")
_security = functools.partial(about, "Kafka security")
_model = functools.partial(about, "Model")
_champion = functools.partial(about, "Champion")
_series = functools.partial(about, "Series")
_dead = functools.partial(about, "Dead letters")
_http = functools.partial(about, "HTTP")
_page = functools.partial(about, "Live page")
_route = functools.partial(about, "Route")
_process = functools.partial(about, "Process")
_embedded = functools.partial(about, "Embedded broker")
_no_secret = Secret()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force. `load` and `from_args` make one and check it; the constructor does not check."""

    bootstrap_servers: Annotated[Text, _kafka("host:port of the Kafka brokers, comma-separated")] = "127.0.0.1:9092"
    client: Annotated[
        Literal["auto", "kafka-python", "confluent"],
        _kafka("the Kafka client library; auto: confluent for a worker with tidecast[fast], else kafka-python"),
    ] = "auto"
    input_topic: Annotated[Topic, _kafka("topic that readings are read from")] = "readings"
    input: Annotated[
        str, _kafka("TOML file whose [input] table says how records become readings; none = tidecast's own JSON")
    ] = ""
    output_topic: Annotated[Topic, _kafka("topic that forecasts are written to")] = "forecasts"
    dead_letter_topic: Annotated[Topic, _kafka("topic for readings that cannot be used")] = "dead-letters"
    changelog_topic: Annotated[Topic, _kafka("compacted topic that holds the states of all series")] = "tidecast-state"
    group: Annotated[Text, _kafka("consumer group; workers of one group share the partitions")] = "tidecast"
    delivery: Annotated[
        Literal["exactly-once", "at-least-once"],
        _kafka("after a crash, forecasts are repeated (at-least-once) or not (exactly-once)"),
    ] = "exactly-once"
    start: Annotated[
        Literal["earliest", "latest"],
        _kafka("where a consumer group without committed offsets starts in the input topic"),
    ] = "earliest"
    commit_interval_ms: Annotated[
        int, _kafka("longest time between two commits while readings arrive, ms", ge=1, le=60_000)
    ] = 100
    changelog_seconds: Annotated[
        float, _kafka("each changed state is written to the changelog at most once in this time, s", ge=0.1)
    ] = 10.0
    changelog_bytes_per_second: Annotated[float, _kafka("upper limit for changelog writes, bytes/s", ge=1024)] = (
        8_388_608.0
    )
    accept_gap: Annotated[
        bool, _kafka("continue even if retention deleted input records needed for the replay (data loss)")
    ] = False
    instance: Annotated[
        Text, _kafka("a fixed name of this worker, which survives a restart; auto = a new one at each start")
    ] = "auto"
    session_timeout_seconds: Annotated[
        float, _kafka("a worker that sends no heartbeat for this long loses its partitions, s", ge=6)
    ] = 20.0
    max_poll_records: Annotated[
        int, _kafka("most readings fetched at once, and so the largest batch", ge=1, le=1_000_000)
    ] = 4000
    broker_timeout_seconds: Annotated[
        float, _kafka("how long to wait for a broker that does not answer before giving up, s", ge=1)
    ] = 60.0

    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"],
        _security("how to connect to Kafka: with TLS (…SSL), with user name and password (SASL_…)"),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], _security("how the password is verified, with SASL")
    ] = "SCRAM-SHA-512"
    kafka_username: Annotated[str, _security("user name, with SASL")] = ""
    kafka_password: Annotated[Secret, _security("file that holds the password, with SASL")] = _no_secret
    tls_ca_file: Annotated[
        str, _security("PEM file of the certificate authorities to trust; none = those of the system")
    ] = ""
    tls_cert_file: Annotated[str, _security("PEM file of the client certificate, for a Kafka that requires one")] = ""
    tls_key_file: Annotated[
        str, _security("PEM file of the client certificate's key; none = it is in the certificate's file")
    ] = ""
    tls_key_password: Annotated[Secret, _security("file that holds the password of an encrypted key")] = _no_secret

    model: Annotated[
        Text, _model("model directory, the .onnx file itself, or starter:step=…&target=… (made at once)")
    ] = "model"
    shadow: Annotated[
        str,
        _model(
            "directories of models that run over the same readings and emit nothing; comma-separated, or several flags"
        ),
    ] = ""
    model_sha256: Annotated[
        Sha256, _model("refuse a model file, also a newer one, that has not this sha256 (hex); none = any")
    ] = ""
    model_max_bytes: Annotated[int, _model("refuse a larger model file, bytes", ge=1)] = 64 << 20
    intra_op_threads: Annotated[int, _model("threads that onnxruntime may use for one model call", ge=1, le=256)] = 1
    model_watch_seconds: Annotated[
        float, _model("how often to look for a newer model file, s; 0 = only on SIGHUP", ge=0)
    ] = 2.0
    swap_replay_readings: Annotated[
        int, _model("most readings per partition replayed for a newer model whose state has another layout", ge=0)
    ] = 1_000_000

    promote: Annotated[
        Literal["by-command", "auto"],
        _champion("who replaces the served model by a shadow: `tidecast promote`, or also the worker, by a test"),
    ] = "by-command"
    promote_seconds: Annotated[
        float,
        _champion("event time that must be compared before an automatic decision, and between two of them, s", ge=0),
    ] = 86_400.0
    decisions_topic: Annotated[Topic, _champion("topic that holds the decisions about which model answers")] = (
        "tidecast-decisions"
    )

    max_gap_steps: Annotated[
        int,
        _series(
            "longest gap, in steps, that is filled in; after a longer one the series restarts from the initial state",
            ge=0,
        ),
    ] = 24
    max_series: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        _series("most series in memory; beyond that the least recently seen is evicted; auto = by the memory limit"),
    ] = "auto"
    series_ttl_seconds: Annotated[
        float, _series("drop a series after this long without a reading (event time), s; 0 = never", ge=0)
    ] = 0.0
    max_future_seconds: Annotated[
        float,
        _series("reject a reading this far ahead of its record's timestamp (or the clock), s; 0 = no limit", ge=0),
    ] = 86_400.0
    late_recovery_readings: Annotated[
        int,
        _series(
            "readings in a row that contradict a series whose clock was ahead, until it starts again; 0 = never",
            ge=0,
        ),
    ] = 5

    dead_letter_late: Annotated[bool, _dead("also dead-letter readings older than the last of their series")] = False
    dead_letter_duplicate: Annotated[
        bool, _dead("also dead-letter readings with the same time as the last of their series")
    ] = False
    dead_letter_limit: Annotated[
        int,
        _dead(
            "stop after more dead letters than this within the window, if most readings are bad; 0 = no limit",
            ge=0,
        ),
    ] = 1000
    dead_letter_window_seconds: Annotated[float, _dead("length of that window, s", ge=0.001)] = 60.0

    http_host: Annotated[Text, _http("address for /metrics and the health probes")] = "127.0.0.1"
    http_port: Annotated[Port, _http("port for /metrics and the health probes; 0 = any free one")] = 9108

    watch_host: Annotated[Text, _page("address for the live page")] = "127.0.0.1"
    watch_port: Annotated[Port, _page("port for the live page; 0 = any free one")] = 9109
    watch_password: Annotated[
        Secret, _page("file that holds the password of the page (any user name works); none = no password")
    ] = _no_secret
    watch_allowed_hosts: Annotated[str, _page("more host names for the page, comma-separated, such as a proxy's")] = ""
    watch_series: Annotated[
        int, _page("most series shown; beyond that the least recently updated is dropped", ge=1)
    ] = 20_000
    watch_points: Annotated[
        int, _page("readings and forecasts kept of each series for the chart", ge=10, le=10_000)
    ] = 720
    watch_memory_bytes: Annotated[
        int, _page("memory limit for them; beyond that fewer are kept of each series, bytes", ge=1 << 20)
    ] = 160 << 20
    watch_start_records: Annotated[
        int, _page("newest records of each partition to read at the start", ge=0, le=1_000_000)
    ] = 5_000

    source_topic: Annotated[
        TopicOrNone,
        _route("topic that `tidecast route` reads; it writes its readings to the input topic, keyed by series"),
    ] = ""
    route_group: Annotated[Text, _route("consumer group of `tidecast route`; its members share the source topic")] = (
        "tidecast-route"
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], _process("lowest level to log")] = "info"
    log_format: Annotated[Literal["text", "json"], _process("key=value lines, or one JSON object per line")] = "text"
    traces: Annotated[
        bool, _process("send spans by OTLP, as the OTEL_EXPORTER_OTLP_* variables say; comes with tidecast[otel]")
    ] = False
    shutdown_timeout_seconds: Annotated[
        float, _process("time to finish, commit and leave the group after SIGTERM, s", ge=0.1)
    ] = 30.0

    broker_data_dir: Annotated[Text, _embedded("where the embedded broker keeps its data")] = msgspec.field(
        default_factory=_data_dir
    )
    broker_port: Annotated[Port, _embedded("loopback port of the embedded broker; 0 = any free one")] = 9092

    @property
    def shadows(self) -> list[str]:
        """The directories of the shadows."""
        return [name.strip() for name in self.shadow.split(",") if name.strip()]

    @property
    def routes(self) -> bool:
        """True where they are the settings of a worker that routes: see `for_route`. No others have these two equal."""
        return self.source_topic == self.input_topic

    @property
    def decides(self) -> bool:
        """True where the worker follows the decisions topic."""
        return bool(self.shadows)

    def for_route(self) -> Settings:
        """What the worker of `tidecast route` needs: it reads the source topic, and writes the input topic."""
        return msgspec.structs.replace(
            self, input_topic=self.source_topic, output_topic=self.input_topic, group=self.route_group
        )


class Setting(msgspec.Struct, frozen=True):
    """What is known of one setting: its name, its default, what it accepts, its group and its help."""

    name: str
    default: Callable[[], Any]
    annotation: Any  # with its limits, for `msgspec.convert`
    type: inspect.Type
    group: str
    help: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values that it accepts, as declared; empty where there is no such list."""
        return get_args(self.annotation.__origin__) if get_origin(self.annotation.__origin__) is Literal else ()

    @property
    def number_or_word(self) -> bool:
        """Whether it is a number, or "auto"."""
        return isinstance(self.type, inspect.UnionType)

    @property
    def expected(self) -> str:
        """What a value must do, to follow "must"."""
        if self.choices:
            return f"be one of {', '.join(self.choices)}"
        if isinstance(self.type, inspect.BoolType):
            return "be true or false"
        if isinstance(self.type, inspect.StrType):
            return PATTERNS.get(self.type.pattern or "", "not be empty")
        number, word = (self.type.types[0], " or auto") if isinstance(self.type, inspect.UnionType) else (self.type, "")
        assert isinstance(number, (inspect.IntType, inspect.FloatType))
        kind = "a whole number" if isinstance(number, inspect.IntType) else "a number"
        most = f" and at most {number.le:,}" if number.le is not None else ""
        return f"be {kind} of at least {number.ge:,}{most}{word}"


def _describe(info: msgspec.structs.FieldInfo, field: inspect.Field) -> Setting:
    assert isinstance(field.type, inspect.Metadata)
    about = (field.type.extra or {})["group"], (field.type.extra_json_schema or {})["description"]
    make = (lambda: info.default) if info.default_factory is msgspec.NODEFAULT else info.default_factory
    return Setting(info.name, make, info.type, field.type.type, *about)


_INFO = inspect.type_info(Settings)
assert isinstance(_INFO, inspect.StructType)
FIELDS = {
    info.name: _describe(info, field)
    for info, field in zip(msgspec.structs.fields(Settings), _INFO.fields, strict=True)
}

CONNECTION = (  # what every command needs that connects to Kafka
    "bootstrap_servers",
    "client",
    "broker_timeout_seconds",
    *(name for name, setting in FIELDS.items() if setting.group == "Kafka security"),
)


def default(name: str) -> Any:
    """The default of one setting."""
    return FIELDS[name].default()


def is_secret(name: str) -> bool:
    """Whether nobody may see it. It has no flag for its value: every user of a machine could read that."""
    return name in FIELDS and FIELDS[name].annotation.__origin__ is Secret


def flag(name: str) -> str:
    """`input_topic` -> `--input-topic`; a secret's names its file: `kafka_password` -> `--kafka-password-file`."""
    return "--" + name.replace("_", "-") + ("-file" if is_secret(name) else "")


def variable(name: str) -> str:
    """`input_topic` -> `TIDECAST_INPUT_TOPIC`; a secret's names its file: `TIDECAST_KAFKA_PASSWORD_FILE`."""
    return PREFIX + name.upper() + ("_FILE" if is_secret(name) else "")


def variables(name: str) -> tuple[str, ...]:
    """All that can set it. A secret can also be given directly: `TIDECAST_KAFKA_PASSWORD`."""
    return (variable(name), PREFIX + name.upper()) if is_secret(name) else (variable(name),)


def parse(name: str, given: object, origin: str) -> Any:
    """`given`, a text or a value, as the setting's type.

    Raises:
        UsageError: the setting cannot have this value; `origin` is named as where it came from.
    """
    setting = FIELDS[name]
    value = given.strip() if isinstance(given, str) else given
    if isinstance(setting.type, inspect.BoolType) and isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    try:
        value = msgspec.convert(value, setting.annotation, strict=False)
    except msgspec.ValidationError:
        raise UsageError(f"{origin} must {setting.expected}", got=given) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{origin} must {setting.expected}", got=given)
    return value
