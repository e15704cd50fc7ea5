"""Handing readings to Kafka (or to stdout) as they fall due, with a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec

from tidecast.service.broker.port import Broker, OutgoingBatch
from tidecast.service.config import settings
from tidecast.service.config.settings import Settings
from tidecast.service.datafiles.readings import Reading
from tidecast.service.errors import BrokerError
from tidecast.service.feed.pacing import SystemClock
from tidecast.service.stop_flag import on_signals
from tidecast.service.timestamps import format_time

_EVERY_S = 10.0  # a line on stderr
_show = msgspec.json.Encoder().encode


def check_topic(broker: Broker, config: Settings) -> None:
    """See that the input topic is there.

    Raises:
        BrokerError: it is not; the text holds the command that makes it.
    """
    if broker.partitions(config.input_topic) is None:
        flags = "".join(
            f" {settings.flag(name)} {getattr(config, name)}"
            for name in ("bootstrap_servers", "input_topic")
            if getattr(config, name) != settings.default(name)
        )
        raise BrokerError(
            f"there is no topic {config.input_topic!r} on {config.bootstrap_servers}",
            do=f"Make it: tidecast topics create{flags}",
        )


class ReadingSink(Protocol):
    """Of a producer, what sending readings takes."""

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Hand over records in order."""

    def flush(self, timeout_s: float) -> None:
        """Wait until all of them have arrived."""


def send(batches: Iterable[list[Reading]], producer: ReadingSink, topic: str, timeout_s: float, done: str) -> int:
    """Produce each list when it is due, then flush and say how many there were; also after a signal."""
    began = said = time.monotonic()
    count, keys = 0, set()
    try:
        for batch in batches:
            outgoing = OutgoingBatch(topic)
            for reading in batch:
                outgoing.append(reading.key, reading.value)
                keys.add(reading.key)
            producer.produce(outgoing)
            count += len(batch)
            if time.monotonic() - said >= _EVERY_S:
                said = time.monotonic()
                say(f"{count:,} readings, at {format_time(batch[-1].ts)}")
        producer.flush(timeout_s)
    except BrokerError:
        say(f"{count:,} readings were handed over before this; some of the last may not have arrived")
        raise
    seconds = max(time.monotonic() - began, 1e-9)
    say(f"{done} {count:,} readings of {len(keys):,} series in {seconds:.1f} s ({count / seconds:,.0f} per second)")
    return 0


class StdoutProducer:
    """A producer to stdout: `{"key": …, "value": {…}}`, as the topic would hold it."""

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Print each record."""
        for key, value in zip(outgoing.keys, outgoing.values, strict=True):
            line = _show({"key": (key or b"").decode(), "value": msgspec.Raw(value or b"null")})
            sys.stdout.write(line.decode() + "\n")
        sys.stdout.flush()

    def flush(self, timeout_s: float) -> None:
        """All is out already."""

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def stop_on_signals(clock: SystemClock) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the clock, so that the usual end follows: flush, count, exit 0."""

    def stop(number: int) -> None:
        clock.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    with on_signals(stop):
        yield


def say(text: str) -> None:
    """A line for the person, on stderr: stdout is for data."""
    print(f"produce: {text}", file=sys.stderr, flush=True)
