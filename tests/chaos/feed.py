"""Readings for the storms: on the grid, without gaps, and among them what is not a reading; the same for a seed."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tidecast.service.broker.port import Broker, OutgoingBatch, Producer
from tidecast.service.errors import BrokerError
from tidecast.service.model.spec import ModelSpec

START_MS = 1_700_006_400_000  # a full day, UTC

# What comes between the readings: one in so many.
DUPLICATE = LATE = BAD = 100
MISSING = 20

_BAD = (
    b"{",
    b"[1]",
    b'"text"',
    b'{"value": 1}',
    b'{"ts": "soon"}',
    b'{"ts": 1700000000000.5}',
    b"\xff\xfe",
    b"\0\0\0\0\1x",
)


def feed(spec: ModelSpec, series: int, seed: int, bad: int = BAD) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of records, without end: each series steps in its turn, in an order shuffled each time.

    One in `bad` is no reading.
    """
    rng = random.Random(seed)
    names = [f"series-{i}" for i in range(series)]
    step = dict.fromkeys(names, 0)
    base = rng.randrange(1_000) * 86_400_000 + START_MS - 1_000 * 86_400_000

    def reading(name: str, at: int) -> tuple[bytes, bytes]:
        values = {f: None if rng.randrange(MISSING) == 0 else rng.randrange(100) for f in spec.features}
        return name.encode(), json.dumps({"ts": base + at * spec.step_ms, **values}).encode()

    while True:
        rng.shuffle(names)
        for name in names:
            at = step[name]
            yield reading(name, at)
            step[name] = at + 1
            if rng.randrange(DUPLICATE) == 0:
                yield reading(name, at)  # with other values: whoever takes it for a reading is found out
            if at and rng.randrange(LATE) == 0:
                yield reading(name, rng.randrange(at))
            if rng.randrange(bad) == 0:
                yield name.encode(), rng.choice(_BAD)


class Feeder(threading.Thread):
    """Produces a feed at a rate until `finish`. What a broker's death leaves in doubt is sent again.

    `records` are keys and values, and may have the time of the record, in ms, and its partition as well. `sent` counts
    them; `failure` holds what ended it early.
    """

    def __init__(self, broker: Broker, topic: str, records: Iterator[Any], rate: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self._broker, self._topic, self._records, self._rate = broker, topic, records, rate
        self._done = threading.Event()
        self.sent = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        producer, doubtful, began = self._broker.producer(), OutgoingBatch(self._topic), time.monotonic()
        while not self._done.wait(0.05):
            batch = OutgoingBatch(self._topic)
            for key, value, *more in islice(self._records, int((time.monotonic() - began) * self._rate) - self.sent):
                stamp, partition = (*more, None, None)[:2]
                for out in (batch, doubtful):
                    out.append(key, value, timestamp=stamp, partition=partition)
            self.sent += len(batch)
            try:
                producer.produce(batch)
                if len(doubtful) >= self._rate:  # about once a second
                    producer.flush(30)
                    doubtful = OutgoingBatch(self._topic)
            except BrokerError:
                producer = self._again(producer, doubtful)
                doubtful = OutgoingBatch(self._topic)
        try:
            producer.flush(30)
        except BrokerError:
            producer = self._again(producer, doubtful)
        producer.close()

    def _again(self, broken: Producer, doubtful: OutgoingBatch) -> Producer:
        """Send it once more, in order: what was there already is late or a duplicate then, as anybody's would be."""
        broken.close()
        producer = self._broker.producer()
        producer.produce(doubtful)
        producer.flush(30)
        return producer

    def finish(self) -> None:
        """Wait until all is in Kafka.

        Raises:
            RuntimeError: it is not.
        """
        self._done.set()
        self.join(120)
        if self.failure or self.is_alive():
            raise RuntimeError("the readings could not be produced") from self.failure
