"""Sends readings to Kafka (or stdout) when they are due, with a clean end on Ctrl-C and SIGTERM."""

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

_EVERY_S = 10.0  # between two progress messages
_show = msgspec.json.Encoder().encode


def check_topic(broker: Broker, config: Settings) -> None:
    """Check that the input topic exists.

    Raises:
        BrokerError: it does not; the text has the command that creates it.
    """
    if broker.partitions(config.input_topic) is None:
        flags = "".join(
            f" {settings.flag(name)} {getattr(config, name)}"
            for name in ("bootstrap_servers", "input_topic")
            if getattr(config, name) != settings.default(name)
        )
        raise BrokerError(
            f"there is no topic {config.input_topic!r} on {config.bootstrap_servers}",
            do=f"Create it: tidecast topics create{flags}",
        )


class ReadingSink(Protocol):
    """The part of a producer that is needed to send readings."""

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Send records in order."""

    def flush(self, timeout_s: float) -> None:
        """Wait until all of them are acknowledged."""


def send(batches: Iterable[list[Reading]], producer: ReadingSink, topic: str, timeout_s: float, done: str) -> int:
    """Send each list when it is due, then flush and print the count; also after a signal."""
    began = reported = time.monotonic()
    count, keys = 0, set()
    try:
        for batch in batches:
            outgoing = OutgoingBatch(topic)
            for reading in batch:
                outgoing.append(reading.key, reading.value)
                keys.add(reading.key)
            producer.produce(outgoing)
            count += len(batch)
            if time.monotonic() - reported >= _EVERY_S:
                reported = time.monotonic()
                say(f"{count:,} readings, at {format_time(batch[-1].ts)}")
        producer.flush(timeout_s)
    except BrokerError:
        say(f"{count:,} readings were sent before this; some of the last may not have arrived")
        raise
    seconds = max(time.monotonic() - began, 1e-9)
    say(f"{done} {count:,} readings of {len(keys):,} series in {seconds:.1f} s ({count / seconds:,.0f} per second)")
    return 0


class StdoutProducer:
    """A producer that writes to stdout: `{"key": …, "value": {…}}`, with key and value as in the topic."""

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Print each record."""
        for key, value in zip(outgoing.keys, outgoing.values, strict=True):
            line = _show({"key": (key or b"").decode(), "value": msgspec.Raw(value or b"null")})
            sys.stdout.write(line.decode() + "\n")
        sys.stdout.flush()

    def flush(self, timeout_s: float) -> None:
        """Nothing to do: each record was written at once."""

    def close(self) -> None:
        """Nothing to release."""


@contextmanager
def stop_on_signals(clock: SystemClock) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the clock, so that the usual end follows: flush, count, exit 0."""

    def stop(number: int) -> None:
        clock.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    with on_signals(stop):
        yield


def say(text: str) -> None:
    """Print a message on stderr: stdout is for data."""
    print(f"produce: {text}", file=sys.stderr, flush=True)
