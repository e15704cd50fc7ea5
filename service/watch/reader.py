"""Reads both topics for the page, in a thread of its own; reconnects after each failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.errors import ConnectionRejected, TidecastError
from tidecast.service.input.mapping import InputMapper
from tidecast.service.watch.messages import (
    answered_reading,
    decode_forecast,
    decode_measurement,
    mapped_measurements,
    series_name,
)
from tidecast.service.watch.store import Store
from tidecast.service.watch.stream_stats import StreamStats

log = logging.getLogger("tidecast.watch")

_END = -1
_RECORDS_AT_ONCE = 2_000
_POLL_S = 0.05
_CHECK_S = 5.0  # how often the number of partitions is checked, s
_RETRY_S = 2.0


class Reader:
    """Fills the store from `start` until `stop`.

    Args:
        connect: makes a broker; called again after each failure.
        newest: records of each partition to start with. A lag of ten times as many makes it skip ahead to them.
        mapper: of `--input`; None = the readings are tidecast's own JSON.
    """

    def __init__(
        self,
        connect: Callable[[], Broker],
        input_topic: str,
        output_topic: str,
        store: Store,
        *,
        newest: int,
        mapper: InputMapper | None = None,
    ) -> None:
        self._mapper = mapper
        self._connect, self._topics, self._store, self._newest = connect, (input_topic, output_topic), store, newest
        self._stats, self._lock = StreamStats(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch-reader", daemon=True)
        self._state, self._reason = "connecting", ""
        self.failure: ConnectionRejected | None = None  # why it stopped by itself
        self._skipped = self._refused = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Stop, and wait for at most `timeout_s`."""
        self._stop.set()
        self._thread.join(timeout_s)

    def status(self) -> dict[str, Any]:
        """What the tiles show, and the state of Kafka: connecting, waiting (for a topic), behind, live, or away."""
        with self._lock:
            stats = self._stats.snapshot(time.monotonic(), time.time() * 1000)
            return {
                **stats,
                "kafka": self._state,
                "reason": self._reason,
                "series": len(self._store),
                "skipped": self._skipped,
                "refused": self._refused,
            }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except ConnectionRejected as error:
                self.failure = error
                return
            except TidecastError as error:
                self._set_state("away", str(error))
            except Exception as error:  # viewers must see that the page no longer updates
                log.exception("reading failed")
                self._set_state("away", f"internal error of the page: {type(error).__name__}")
            self._stop.wait(_RETRY_S)

    def _read(self) -> None:
        broker = self._connect()
        consumers: list[Consumer] = []
        try:
            partitions = self._partition_counts(broker)
            if partitions is None:
                return
            consumers = [broker.consumer() for _ in self._topics]
            self._seek_near_end(consumers, partitions)
            checked = time.monotonic()
            while not self._stop.is_set():
                for consumer, add in zip(consumers, (self._add_readings, self._add_forecasts), strict=True):
                    add(consumer.poll(_POLL_S, _RECORDS_AT_ONCE))
                behind = max(sum(consumer.lag().values()) for consumer in consumers)
                if behind > 10 * self._newest * max(partitions):
                    self._seek_near_end(consumers, partitions)
                self._set_state("behind" if behind > _RECORDS_AT_ONCE else "live")
                if time.monotonic() - checked > _CHECK_S:
                    checked = time.monotonic()
                    if self._partition_counts(broker) != partitions:
                        return
        finally:
            for consumer in consumers:
                consumer.close()
            broker.close()

    def _partition_counts(self, broker: Broker) -> tuple[int, int] | None:
        """Number of partitions of the two topics; None while one is missing."""
        counts = [broker.partitions(topic) for topic in self._topics]
        missing = [topic for topic, count in zip(self._topics, counts, strict=True) if not count]
        if missing:
            self._set_state("waiting", f"there is no topic {' and no topic '.join(missing)} yet")
            return None
        return counts[0] or 0, counts[1] or 0

    def _seek_near_end(self, consumers: list[Consumer], partitions: tuple[int, int]) -> None:
        for consumer, topic, count in zip(consumers, self._topics, partitions, strict=True):
            places = range(count)
            before = sum(consumer.lag().values()) if self._state in ("live", "behind") else 0
            consumer.assign(topic, dict.fromkeys(places, _END))
            ends, begins = consumer.end_offsets(places), consumer.beginning_offsets(places)
            for partition in places:
                consumer.seek(partition, max(begins[partition], ends[partition] - self._newest))
            kept = sum(min(self._newest, ends[p] - begins[p]) for p in places)
            self._skipped += max(0, before - kept)
        with self._lock:
            self._stats.restart()

    def _add_readings(self, batch: Batch) -> None:
        now = time.monotonic()
        if self._mapper is None:
            measured = [None if value is None else decode_measurement(value) for value in batch.values]
            forgets = {row for row, value in enumerate(batch.values) if value is None}
        else:
            self._mapper.prepare(batch)
            mapped = self._mapper.map(batch)
            batch, measured, forgets = mapped.batch, mapped_measurements(mapped), {*mapped.readings.tombstones}
        columns = zip(batch.partitions, batch.offsets, batch.timestamps, batch.keys, measured, strict=True)
        for row, (partition, offset, record_ms, key, reading) in enumerate(columns):
            name = series_name(key)
            if name is not None and row in forgets:
                self._store.forget(name)
                continue
            awaited = name is not None and reading is not None and self._store.add_reading(name, reading, now)
            self._refused += reading is None or name is None
            with self._lock:
                self._stats.reading(partition, offset, record_ms, now, awaited=awaited)

    def _add_forecasts(self, batch: Batch) -> None:
        now = time.monotonic()
        for key, value in zip(batch.keys, batch.values, strict=True):
            name, found = series_name(key), decode_forecast(value) if value is not None else None
            if name is None or found is None:
                self._refused += 1
                continue
            forecast, source = found
            self._store.add_forecast(name, forecast, now)
            with self._lock:
                self._stats.forecast(answered_reading(source, self._topics[0]), now)

    def _set_state(self, state: str, reason: str = "") -> None:
        with self._lock:
            changed = (state, reason) != (self._state, self._reason)
            self._state, self._reason = state, reason
        if changed and state in ("away", "waiting"):
            log.warning("not reading", extra={"state": state, "reason": reason})
        elif changed and state == "live":
            log.info("reading", extra={"topics": list(self._topics)})
