"""Structured logs on stderr: `logging` as everybody knows it, with `extra={...}` as the fields.

    log.info("partitions assigned", extra={"partitions": [0, 1]})

One line a message, either `key=value` text or JSON. Nothing is logged for a single reading.
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
    """`2026-01-01T00:00:00.000Z INFO  partitions assigned partitions=0,1`; values with blanks are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it where there is one."""
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
    """One JSON object a line: time, level, logger, message, the fields, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),  # before JSON has its way with quotes and the like
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
    """Keeps the Kafka client from burying our own messages.

    When its broker is away it says the same ten times a second, in five places of its network code, some of it with a
    traceback; here that code speaks once in a while, and each other line of its code too, and without.
    """

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for what is not the client's, or was not said lately."""
        if not record.name.startswith("kafka"):
            return True
        network = record.name.startswith(("kafka.net", "kafka.cluster"))
        place, now = ("network", 0) if network else (record.pathname, record.lineno), self._clock()
        if now - self._said.get(place, -math.inf) < self._seconds:
            return False
        self._said[place] = now
        record.exc_info = record.exc_text = None
        return True


def hide_password_exchange(record: logging.LogRecord) -> bool:
    """False for what the Kafka client says of how a password is proved: who reads the log could guess at it."""
    args = record.args if isinstance(record.args, tuple) else ()
    return not any(type(arg).__name__.startswith("Sasl") for arg in args)


def setup(level: str = "info", fmt: str = "text", stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (stderr) at `level`; libraries' own chatter only from warning up.

    Calling it again replaces what the first call made.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    if level != "debug":
        handler.addFilter(RepeatFilter())
    handler.addFilter(hide_password_exchange)
    logging.getLogger("kafka.protocol.parser").setLevel(logging.INFO)  # else all that is sent, byte by byte
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        for library in ("kafka", "asyncio", "urllib3"):
            logging.getLogger(library).setLevel(logging.WARNING)
        # Warns of each task that took 0.1 s, which on a busy machine says nothing about Kafka.
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
