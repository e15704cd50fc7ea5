"""A load whose every reading is due at an instant of its own, and a reader that notes when answers come.

Both take next to nothing while they run, for on two cores they would slow down what they measure. What is due within a
millisecond goes out at its end, in one request with a batch for each partition, and all requests are made before the
clock starts. The reader has one request for all partitions under way, as every client, and decodes at the end.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kafka.protocol.consumer.fetch import FetchRequest
from kafka.protocol.producer.produce import ProduceRequest
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

TICK_S = 0.001
_PRODUCE, _FETCH = 8, 4  # versions
_TAKEN = struct.Struct(">ihqqqih")  # number, error, offset, time, first offset, no errors of records, no message
_MAGIC = 2
_BYTES = 8 << 20
_WAIT_MS = 100
_Reading = tuple[int, bytes, bytes]  # partition, key, value


class Connection:
    """To the one broker, which answers requests in their order."""

    def __init__(self, bootstrap_servers: str) -> None:
        host, port = bootstrap_servers.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = bytearray()

    def send(self, asked: bytes | bytearray) -> None:
        """Does not wait for the answer."""
        self._socket.sendall(asked)

    def answer(self, *, wait: bool) -> bytes | None:
        """The next answer; None where it is not there."""
        while len(self._heard) < 4 or len(self._heard) < (end := 4 + int.from_bytes(self._heard[:4], "big")):
            try:
                heard = self._socket.recv(1 << 20, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if not heard:
                raise SystemExit("Kafka has closed the connection")
            self._heard += heard
        found = bytes(self._heard[4:end])
        del self._heard[:end]
        return found


def _framed(asked: Any, version: int) -> bytes:
    asked.API_VERSION = version
    asked.with_header()
    return bytes(asked.encode(header=True, framed=True))


def _good(codes: set[int]) -> None:
    if codes != {0}:
        raise SystemExit(f"Kafka refused what the load or the reader asked: error codes {sorted(codes)}")


# The load ----------------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """A request, and when its readings came into Kafka."""

    asked: bytes
    partitions: list[int]  # [readings], in the order in which they are due
    appended: list[float] = field(default_factory=list)  # [readings] s since the epoch, by Kafka's clock, to the ms


def requests(topic: str, readings: Iterator[_Reading], count: int, per_s: int) -> Iterator[Planned]:
    """One for each tick in the time of `count` readings, of which reading i is due at i / `per_s`; may be empty."""
    sent = tick = 0
    while sent < count:
        tick += 1
        due = min(count, 1 + int(tick * TICK_S * per_s))
        yield plan(topic, list(islice(readings, due - sent)))
        sent = due


def plan(topic: str, readings: list[_Reading]) -> Planned:
    """One for these readings."""
    return Planned(_request(topic, readings), [partition for partition, _, _ in readings])


def _request(topic: str, readings: list[_Reading]) -> bytes:
    """Asks Kafka to take these."""
    builders: dict[int, Any] = {}
    for partition, key, value in readings:
        builder = builders.setdefault(partition, MemoryRecordsBuilder(_MAGIC, 0, _BYTES))
        builder.append(timestamp=int(time.time() * 1000), key=key, value=value, headers=[])
    if not builders:
        return b""
    kinds, data = ProduceRequest.TopicProduceData, []
    for partition, builder in builders.items():
        builder.close()
        data.append(kinds.PartitionProduceData(index=partition, records=builder.buffer()))
    topics = [kinds(name=topic, partition_data=data)]
    return _framed(ProduceRequest(acks=1, timeout_ms=10_000, topic_data=topics), _PRODUCE)


def play(connection: Connection, planned: list[Planned], began: float) -> None:
    """Send each of the requests at the end of its tick; `began` is the begin of the first, by time.monotonic()."""
    under_way: deque[Planned] = deque()
    for number, each in enumerate(planned, 1):
        if (early := began + number * TICK_S - time.monotonic()) > 0:
            time.sleep(early)
        if each.asked:
            connection.send(each.asked)
            under_way.append(each)
        heard(connection, under_way, wait=False)
    while under_way:
        heard(connection, under_way, wait=True)


def heard(connection: Connection, under_way: deque[Planned], *, wait: bool) -> None:
    """Look what became of what was sent, and note when Kafka took it."""
    while under_way and (data := connection.answer(wait=wait)) is not None:
        # https://kafka.apache.org/protocol.html, Produce v8: correlation, one topic, its name, its partitions. Where
        # nothing is wrong with any of these, there is nothing of a variable length; a decoder takes four times as long.
        at = 10 + int.from_bytes(data[8:10], "big")
        (count,) = struct.unpack_from(">i", data, at)
        answers = [_TAKEN.unpack_from(data, at + 4 + i * _TAKEN.size) for i in range(count)]
        _good({error for _, error, *_ in answers})
        times = {partition: ms / 1_000 for partition, _, _, ms, *_ in answers}
        each = under_way.popleft()
        each.appended = [times[partition] for partition in each.partitions]


# The reader --------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Of one topic, from its beginning."""

    connection: Connection
    topic: str
    partitions: int
    committed: bool  # else what is not committed yet too
    count: int = 0  # of records
    batches: list[tuple[float, bytes]] = field(default_factory=list)  # instants by time.monotonic(), record batches

    def __post_init__(self) -> None:
        self._offsets = [0] * self.partitions
        kinds, some = FetchRequest.FetchTopic, range(self.partitions)
        asked = [kinds.FetchPartition(partition=p, fetch_offset=0, partition_max_bytes=_BYTES) for p in some]
        limits = {"max_wait_ms": _WAIT_MS, "min_bytes": 1, "max_bytes": _BYTES, "isolation_level": int(self.committed)}
        topics = [kinds(topic=self.topic, partitions=asked)]
        self._asked = bytearray(_framed(FetchRequest(replica_id=-1, topics=topics, **limits), _FETCH))
        self._first = len(self._asked) - 16 * self.partitions  # number, offset and limit of each end the request

    def read(self) -> None:
        """What has come; waits for a while where there is nothing."""
        for p, offset in enumerate(self._offsets):
            struct.pack_into(">q", self._asked, self._first + 16 * p + 4, offset)
        self.connection.send(self._asked)
        data = self.connection.answer(wait=True)
        now = time.monotonic()
        assert data is not None
        # https://kafka.apache.org/protocol.html, Fetch v4: correlation, throttle, one topic, its name, its partitions
        at = 14 + len(self.topic.encode())
        (count,) = struct.unpack_from(">i", data, at)
        at += 4
        for _ in range(count):
            partition, error, _, _, aborted = struct.unpack_from(">ihqqi", data, at)
            at += 26 + 16 * max(0, aborted)
            (size,) = struct.unpack_from(">i", data, at)
            at += 4
            _good({error})
            if size > 0:
                self._note(now, partition, data[at : at + size])
                at += size

    def _note(self, now: float, partition: int, records: bytes) -> None:
        """By the fixed places of a batch's head: https://kafka.apache.org/documentation/#recordbatch."""
        at = 0
        while at + 61 <= len(records):
            end = at + 12 + int.from_bytes(records[at + 8 : at + 12], "big")
            if end > len(records):  # the last of a fetch may be cut off
                return
            base = int.from_bytes(records[at : at + 8], "big")
            self._offsets[partition] = base + int.from_bytes(records[at + 23 : at + 27], "big") + 1
            if not records[at + 22] & 0x20:  # the mark of a transaction's end is no record
                self.count += int.from_bytes(records[at + 57 : at + 61], "big")
                self.batches.append((now, records[at:end]))
            at = end

    def values(self) -> Iterator[tuple[float, bytes]]:
        """When each came, and what it says."""
        for instant, data in self.batches:
            records = MemoryRecords(data)
            while (batch := records.next_batch()) is not None:
                for record in batch:
                    yield instant, record.value or b""
