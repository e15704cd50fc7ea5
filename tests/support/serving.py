"""The topics of one test, and a worker on them."""

import time
import uuid
from contextlib import contextmanager

from tests.support.worker_process import PATIENCE, WorkerProcess
from tidecast.service.broker.connect import connect
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG, DECISIONS_CONFIG
from tidecast.service.errors import BrokerUnavailable

CLIENT = "confluent"  # of the workers in tests that are not about a client


class Topics:
    """Topics of one test's own, and what it puts into and takes out of them."""

    def __init__(self, bootstrap_servers, partitions=1, *, client=CLIENT):
        self.bootstrap_servers, self.count, self.client = bootstrap_servers, partitions, client
        name = uuid.uuid4().hex[:8]
        kinds = ("readings", "forecasts", "dead", "states")
        self.readings, self.forecasts, self.dead, self.states = (f"{kind}-{name}" for kind in kinds)
        self.decisions, self.group = f"decisions-{name}", f"group-{name}"
        self.broker = connect(bootstrap_servers, timeout_s=30)
        large = {"max.message.bytes": "8388608"}
        self.broker.create_topic(self.readings, partitions, large)
        self.broker.create_topic(self.forecasts, partitions)
        self.broker.create_topic(self.dead, 1, large)
        self.broker.create_topic(self.states, partitions, CHANGELOG_CONFIG)

    def make_decisions(self):
        """The topic of the decisions, which only workers with shadows need; its flag."""
        self.broker.create_topic(self.decisions, 1, DECISIONS_CONFIG)
        return f"--decisions-topic={self.decisions}"

    @property
    def flags(self):
        return [
            f"--bootstrap-servers={self.bootstrap_servers}",
            f"--input-topic={self.readings}",
            f"--output-topic={self.forecasts}",
            f"--dead-letter-topic={self.dead}",
            f"--changelog-topic={self.states}",
            f"--group={self.group}",
            f"--client={self.client}",
            "--http-port=0",
        ]

    def send(self, records):
        """Produce (partition, key, value, headers) records and wait until Kafka has them."""
        producer = self.broker.producer()
        out = OutgoingBatch(self.readings)
        for partition, key, value, *headers in records:
            out.append(key, value, partition=partition, headers=headers[0] if headers else ())
        producer.produce(out)
        producer.flush(PATIENCE)
        producer.close()

    def read(self, topic, until):
        """All records of `topic` as (partition, key, value, headers), read until there are `until` of them."""
        consumer = self.broker.consumer()
        consumer.assign(topic, dict.fromkeys(range(self.broker.partitions(topic)), -2))
        found, deadline = [], time.monotonic() + PATIENCE
        while len(found) < until and time.monotonic() < deadline:
            b = consumer.poll(0.5, 10_000)
            found += zip(b.partitions, b.keys, b.values, map(dict, b.headers), strict=True)
        more = consumer.poll(0.5, 10_000)
        found += zip(more.partitions, more.keys, more.values, map(dict, more.headers), strict=True)
        consumer.close()
        assert len(found) >= until, f"{len(found)} of {until} records came"
        return found

    def committed(self):
        """What the group has committed, by partition.

        Kafka does not say it while a transaction of a killed worker is open: until the next worker of its name begins.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            consumer = self.broker.consumer(group=self.group)
            try:
                consumer.assign(self.readings, dict.fromkeys(range(self.count), -2))
                return consumer.committed(range(self.count))
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
            finally:
                consumer.close()


@contextmanager
def serving(*flags, preloaded=None):
    """A worker that is killed at the end, with its log printed if the test fails."""
    worker = WorkerProcess(*flags, preloaded=preloaded)
    try:
        yield worker
    except BaseException:
        worker.show()
        raise
    finally:
        worker.kill()
