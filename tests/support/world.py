"""A small world in memory: topics, readings, and workers that live and are killed, for tests of what they leave."""

import json
import math

from tests.support.models import OFFSETS, START_MS, STEP_MS, CountingReference
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import Outgoing
from tidecast.service.config.settings import Settings
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.dead_letters import DeadLetterReason
from tidecast.service.state.codec import Codec
from tidecast.service.worker.worker import Worker

SERIES = (b"a", b"b", b"c", b"d")
TOPICS = ("readings", "forecasts", "dead-letters", "tidecast-state")


class Killed(BaseException):
    """kill -9: nothing more of this process happens, not even an `except Exception`."""


class Fault:
    """Raises `error` at the `nth` time of a call, before or after it is done."""

    def __init__(self, call="", nth=1, error=None, after=False):
        self.call, self.left, self.error, self.after = call, nth, error, after

    def around(self, call, do):
        hit = False
        if call == self.call and self.error is not None:
            self.left -= 1
            hit = self.left == 0
        if hit and not self.after:
            raise self.error
        do()
        if hit:
            raise self.error


class FaultyBroker:
    def __init__(self, broker, fault):
        self.broker, self.fault, self.dead = broker, fault, False

    def __getattr__(self, name):
        return getattr(self.broker, name)

    def producer(self, **options):
        return FaultyProducer(self, self.broker.producer(**options))


class FaultyProducer:
    def __init__(self, faulty, inner):
        self.fault, self.inner = faulty.fault, inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def begin(self):
        self.fault.around("begin", self.inner.begin)

    def produce(self, outgoing):
        self.fault.around(f"produce {outgoing.topic}", lambda: self.inner.produce(outgoing))

    def commit_transaction(self, topic, offsets, consumer, timeout_s):
        self.fault.around("commit_transaction",
                          lambda: self.inner.commit_transaction(topic, offsets, consumer, timeout_s))  # fmt: skip


class World:
    """Topics with two partitions, and the readings in them."""

    def __init__(self, model, **settings):
        self.model, self.broker, self.now = model, MemoryBroker(), 1_000.0
        self.settings = Settings(**{"instance": "one", "max_poll_records": 3, "commit_interval_ms": 20} | settings)
        for topic in TOPICS:
            self.broker.create_topic(topic, 2, {"cleanup.policy": "compact"} if topic == "tidecast-state" else None)
        self.sent = []  # (partition, key, value)

    def send(self, first, last, rubbish=True):
        producer, out = self.broker.producer(), Outgoing("readings")
        for step in range(first, last):
            for number, key in enumerate(SERIES):
                value = json.dumps({"ts": START_MS + step * STEP_MS, "value": number, "wind": step}).encode()
                value = b"{" if rubbish and step % 5 == 4 and number == 1 else value
                out.append(key, value, partition=number % 2)
                self.sent.append((number % 2, key, value))
        producer.produce(out)

    def worker(self, broker=None, **options):
        """One that is ready to join the group."""
        metrics = Metrics(self.model.spec, list(DeadLetterReason))
        worker = Worker(self.settings, self.model, broker or self.broker, metrics, **options)
        worker.prepare()
        return worker

    def live(self, fault=None, idle=8, batches=10_000, newer=None, after=0):
        """One life of a worker; ends when nothing more arrives, after so many batches, or it is killed.

        `newer`: a model that is published after so many batches.
        """
        broker = FaultyBroker(self.broker, fault or Fault())
        left = [idle, batches]
        models = [newer] if newer is not None else []

        def published():
            return models.pop() if models and batches - left[1] >= after else None

        worker = self.worker(broker, newer_model=published, clock=lambda: self.now)
        consumer = worker._consumer
        poll = consumer.poll

        def counted(timeout_s, max_records):
            batch = poll(0.0, max_records)
            self.now += 0.01 if len(batch) else max(timeout_s, 0.01)
            left[0] -= 0 if len(batch) or worker._assignment.busy else 1
            left[1] -= len(batch) > 0
            if left[0] <= 0 or left[1] <= 0:
                worker.stop()
            return batch

        consumer.poll = counted
        try:
            worker.run()
        except Killed:
            self.broker.groups.clear()  # its session times out; nobody says goodbye
        return worker

    def read(self, topic):
        consumer = self.broker.consumer()
        consumer.assign(topic, dict.fromkeys(range(2), 0))
        found = []
        while batch := consumer.poll(0.0, 1_000):
            found += zip(batch.partitions, batch.keys, batch.values, batch.headers, strict=True)
        return found

    def check(self):
        """One answer for each reading, in order, as the plain loop has it; and the changelog's states are its."""
        reference = {key: CountingReference() for key in SERIES}
        expected, rubbish = {p: [] for p in range(2)}, 0
        for partition, key, reading in linear(self.sent, reference):
            if reading is None:
                rubbish += 1
                continue
            p50 = [row[1] for row in (OFFSETS + (reference[key].hash + 3 * reference[key].count)).tolist()]
            expected[partition].append((key, reading["ts"], p50))
        found = {p: [] for p in range(2)}
        for partition, key, value, _ in self.read("forecasts"):
            told = json.loads(value)
            found[partition].append((key, told["ts"], told["targets"]["value"]["p50"]))
        assert found == expected
        assert len(self.read("dead-letters")) == rubbish
        codec, latest = Codec(self.model.spec), {}
        for _, key, value, _ in self.read("tidecast-state"):
            latest[key] = value
        assert {key: codec.decode(value).state.tolist() for key, value in latest.items()} == {
            key: reference[key].state for key in SERIES
        }


def linear(sent, reference):
    """Step the references over what was sent, filling gaps; yields (partition, key, reading or None for rubbish)."""
    last = {}
    for partition, key, value in sent:
        if value == b"{":
            yield partition, key, None
            continue
        reading = json.loads(value)
        for missing in range(last.get(key, reading["ts"]) + STEP_MS, reading["ts"], STEP_MS):
            reference[key].step((math.nan, math.nan), missing)
        last[key] = reading["ts"]
        reference[key].step((reading["value"], reading["wind"]), reading["ts"])
        yield partition, key, reading
