"""A worker's world in memory: topics, readings, and workers that run, fail or are killed at any call to Kafka."""

import json
import math

from tests.support.models import OFFSETS, START_MS, STEP_MS, CountingReference
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.observability.metrics import Metrics
from tidecast.service.state.codec import Codec
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.worker import Worker

SERIES = (b"a", b"b", b"c", b"d")
TOPICS = ("readings", "forecasts", "dead-letters", "tidecast-state")


class Killed(BaseException):
    """kill -9: nothing more of this process happens, not even an `except Exception`."""


class Observer:
    """Sees each call of a worker to Kafka, by name: "poll", "commit", "produce forecasts", "commit_transaction", ..."""

    def around(self, call, do):
        return do()


class Fault(Observer):
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
        done = do()
        if hit:
            raise self.error
        return done


class Spy(Observer):
    """Notes the calls. `fail` maps a call to the errors that it raises, one for each time."""

    def __init__(self):
        self.calls, self.fail, self.on_poll = [], {}, None

    def around(self, call, do):
        self.calls.append(call)
        if self.fail.get(call):
            raise self.fail[call].pop(0)
        if call == "poll" and self.on_poll:
            self.on_poll()
        return do()

    def count(self, call):
        return self.calls.count(call)


class ObservedBroker:
    """A memory broker as a worker sees it; answers of asynchronous commits come with the poll after next."""

    silent = False  # True = asynchronous commits are never answered

    def __init__(self, broker, observer, polled):
        self.broker, self.around, self.polled = broker, observer.around, polled

    def __getattr__(self, name):
        return getattr(self.broker, name)

    def partitions(self, topic):
        return self.around("partitions", lambda: self.broker.partitions(topic))

    def consumer(self, **options):
        inner = self.broker.consumer(**options)
        return ObservedConsumer(self, inner) if options.get("group") else inner

    def producer(self, **options):
        return ObservedProducer(self, self.broker.producer(**options))


class ObservedConsumer:
    def __init__(self, observed, inner):
        self.observed, self.inner, self.polls, self.refused = observed, inner, 0, None

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def subscribe(self, topic, on_assigned, on_revoked):
        self.observed.on_assigned, self.observed.on_revoked = on_assigned, on_revoked
        self.inner.subscribe(topic, on_assigned, on_revoked)

    def poll(self, timeout_s, max_records):
        self.polls += 1
        batch = self.observed.around("poll", lambda: self.inner.poll(0.0, max_records))
        self.observed.polled(batch, timeout_s)
        return batch

    def commit(self, offsets, metadata=""):
        self.observed.around("commit", lambda: self.inner.commit(offsets, metadata))

    def commit_async(self, offsets, metadata=""):
        self.asked_at, self.refused = self.polls, None
        try:
            self.commit(offsets, metadata)
        except BrokerError as error:
            self.refused = error

    def commit_acknowledged(self):
        if self.observed.silent or self.polls < self.asked_at + 2:
            return False
        if self.refused is not None:
            raise self.refused
        return True

    def close(self):
        self.observed.around("leave", self.inner.close)


class ObservedProducer:
    def __init__(self, observed, inner):
        self.around, self.inner = observed.around, inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def begin(self):
        self.around("begin", self.inner.begin)

    def produce(self, outgoing):
        self.around(f"produce {outgoing.topic}", lambda: self.inner.produce(outgoing))

    def flush(self, timeout_s):
        self.around("flush", lambda: self.inner.flush(timeout_s))

    def commit_transaction(self, topic, offsets, consumer, timeout_s):
        self.around("commit_transaction",
                    lambda: self.inner.commit_transaction(topic, offsets, consumer.inner, timeout_s))  # fmt: skip


class World:
    """Topics with two partitions, the readings in them, and a clock that moves as a worker polls, or a test says so."""

    def __init__(self, model, **settings):
        self.model, self.broker, self.now = model, MemoryBroker(), 1_000.0
        usual = {"instance": "one", "max_poll_records": 3, "commit_interval_ms": 20, "max_series": 1_000_000}
        self.settings = Settings(**usual | settings)
        for topic in TOPICS:
            self.broker.create_topic(topic, 2, CHANGELOG_CONFIG if topic == "tidecast-state" else None)
        self.sent = []  # (partition, key, value)

    def send(self, first, last, rubbish=True):
        """A reading of each series for each of these steps."""
        producer, out = self.broker.producer(), OutgoingBatch("readings")
        for step in range(first, last):
            for number, key in enumerate(SERIES):
                value = json.dumps({"ts": START_MS + step * STEP_MS, "value": number, "wind": step}).encode()
                value = b"{" if rubbish and step % 5 == 4 and number == 1 else value
                out.append(key, value, partition=number % 2)
                self.sent.append((number % 2, key, value))
        producer.produce(out)

    def send_value(self, key, value, partition=0):
        producer, out = self.broker.producer(), OutgoingBatch("readings")
        out.append(key, value, partition=partition)
        producer.produce(out)

    def reading(self, key, step, value=1.0, partition=0):
        self.send_value(
            key, json.dumps({"ts": START_MS + step * STEP_MS, "value": value, "wind": 2.0}).encode(), partition
        )

    def worker(self, observer=None, idle=8, batches=10_000, newer=None, joining=(), after=0, **options):
        """A worker that stops once nothing more has arrived for `idle` polls, or after so many batches.

        `newer`: a model that is published after so many batches, and `joining`: shadows that come with it.
        """
        shadows = *options.get("shadows", ()), *joining
        models, left = [[newer, *shadows]] if newer is not None else [], [idle, batches]

        def published():
            return models.pop() if models and batches - left[1] >= after else None

        def polled(batch, timeout_s):
            self.now += 0.01 if len(batch) else max(timeout_s, 0.01)
            left[0] -= not len(batch) and not worker.busy
            left[1] -= len(batch) > 0
            if left[0] <= 0 or left[1] <= 0:
                worker.stop()

        self.observed = ObservedBroker(self.broker, observer or Observer(), polled)
        spec = None if self.model is None else self.model.spec
        self.metrics = Metrics(spec, DeadLetterReason, wall=lambda: START_MS / 1_000 + 3_600)
        worker = Worker(self.settings, self.work(), self.observed, self.metrics, newer_models=published,
                        clock=lambda: self.now, wall=lambda: self.now, **options)  # fmt: skip
        return worker

    def work(self):
        """What the worker does; a world of routers has one of these."""
        return self.model

    def live(self, observer=None, **options):
        """One life of a worker, until it ends or is killed."""
        worker = self.worker(observer, **options)
        try:
            worker.run()
        except Killed:
            self.broker.groups.clear()  # its session times out; it does not leave
        return worker

    def metric(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"tidecast_{name}", labels)

    def metric_sum(self, name):
        """The sum over all labels."""
        families = self.metrics.registry.collect()
        return sum(s.value for family in families for s in family.samples if s.name == f"tidecast_{name}")

    def committed(self, group="tidecast"):
        """partition -> (offset, snapshot offset), None where nothing is."""
        consumer = self.broker.consumer(group=group)
        consumer.assign("readings", {})
        known = consumer.committed([0, 1])
        return {p: c and (c[0], Committed.parse(*c).snapshot) for p, c in known.items()}

    def forecasts(self):
        return [(p, key, json.loads(value)) for p, key, value, _ in self.read("forecasts")]

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
