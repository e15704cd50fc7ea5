"""Structured logs on stderr: the standard `logging`, with `extra={...}` as the fields.

    log.info("partitions assigned", extra={"partitions": [0, 1]})

One line per message, as `key=value` text or JSON. Nothing is logged for a single reading.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from tidecast.service.config.secrets import masked

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[^\s\"=]+")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-01T00:00:00.000Z INFO  partitions assigned partitions=0,1`; values with spaces are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        pairs = "".join(f" {name}={self._value(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {_one_line(record.getMessage())}{pairs}"
        return masked(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)

    @staticmethod
    def _value(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, (list, tuple, set, frozenset)):
            text = ",".join(str(v) for v in value)
        elif isinstance(value, dict):
            text = ",".join(f"{k}:{v}" for k, v in value.items())
        else:
            text = str(value)
        return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),  # before JSON escapes quotes
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = masked(self.formatException(record.exc_info))
        return masked(json.dumps(entry, default=_jsonable, ensure_ascii=False))


def _jsonable(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


class RepeatFilter(logging.Filter):
    """Limits repeated messages of the Kafka client, which would hide our own.

    Without its broker the client logs the same ten times a second, from five places of its network code, some with a
    traceback. This passes one message per `seconds` from that code, and from each other line of the client's code, and
    removes tracebacks.
    """

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._last_logged: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for messages that are not the client's, or were not logged recently."""
        if not record.name.startswith("kafka"):
            return True
        network = record.name.startswith(("kafka.net", "kafka.cluster"))
        place, now = ("network", 0) if network else (record.pathname, record.lineno), self._clock()
        if now - self._last_logged.get(place, -math.inf) < self._seconds:
            return False
        self._last_logged[place] = now
        record.exc_info = record.exc_text = None
        return True


def hide_password_exchange(record: logging.LogRecord) -> bool:
    """False for the Kafka client's messages with password proofs, from which passwords could be guessed."""
    args = record.args if isinstance(record.args, tuple) else ()
    return not any(type(arg).__name__.startswith("Sasl") for arg in args)


def setup(level: str = "info", fmt: str = "text", stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (stderr) at `level`, but messages of libraries only from warning up.

    A second call replaces the first.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    if level != "debug":
        handler.addFilter(RepeatFilter())
    handler.addFilter(hide_password_exchange)
    logging.getLogger("kafka.protocol.parser").setLevel(logging.INFO)  # at debug level it logs every byte
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        for library in ("kafka", "asyncio", "urllib3", "httpx2"):
            logging.getLogger(library).setLevel(logging.WARNING)
        # It warns of each task that takes 0.1 s, which on a busy machine has nothing to do with Kafka.
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
