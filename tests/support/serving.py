"""A worker as its users run it, a process of its own, and the topics of one test."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager

import pytest

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG

PATIENCE = 60.0  # for what must happen; nothing is asserted about how fast it does


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Topics:
    """Topics of one test's own, and what it puts into and takes out of them."""

    def __init__(self, bootstrap_servers, partitions=1, *, client=CLIENTS[0]):
        self.bootstrap_servers, self.count, self.client = bootstrap_servers, partitions, client
        name = uuid.uuid4().hex[:8]
        kinds = ("readings", "forecasts", "dead", "states")
        self.readings, self.forecasts, self.dead, self.states = (f"{kind}-{name}" for kind in kinds)
        self.group = f"group-{name}"
        self.broker = connect(bootstrap_servers, timeout_s=30)
        large = {"max.message.bytes": "8388608"}
        self.broker.create_topic(self.readings, partitions, large)
        self.broker.create_topic(self.forecasts, partitions)
        self.broker.create_topic(self.dead, 1, large)
        self.broker.create_topic(self.states, partitions, CHANGELOG_CONFIG)

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
        consumer = self.broker.consumer(group=self.group)
        consumer.assign(self.readings, dict.fromkeys(range(self.count), -2))
        try:
            return consumer.committed(range(self.count))
        finally:
            consumer.close()


class Serve:
    """`tidecast serve` as a process; its log is collected line by line."""

    program: tuple[str, ...] = ("-m", "tidecast", "serve")

    def __init__(self, *flags):
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIDECAST_")}
        command = [sys.executable, *self.program, *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")))
        self._reader.start()

    @property
    def log(self):
        return "".join(self.lines)

    def wait_for(self, what, test):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := test():
                return found
            assert self.process.poll() is None, f"it ended while waiting for {what}:\n{self.log}"
            time.sleep(0.02)
        pytest.fail(f"never came: {what}\n{self.log}")

    def get(self, path):
        host = self.wait_for("its address", lambda: re.search(r"url=http://(\S+)", self.log))[1]
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    def ready(self):
        self.wait_for("ready", lambda: self.get("/readyz")[0] == 200)
        return self

    def metric(self, name):
        """The sum over all labels of one metric."""
        pattern = rf"^{name}(?:{{.*}})? (\S+)$"
        return sum(float(v) for v in re.findall(pattern, self.get("/metrics")[1], re.MULTILINE))

    def show(self):
        """Print the log, and where a process that lives on is: for a failure that another worker may have caused."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        print(f"log of worker {self.process.pid}, exit code {self.process.poll()}:\n{self.log}")

    def end(self, signum=signal.SIGTERM):
        """The exit code and the whole log."""
        if self.process.poll() is None and signum:
            self.process.send_signal(signum)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            self.process.kill()
            self.process.wait()
            pytest.fail(f"it did not end:\n{self.log}")
        self._reader.join(10)
        self.out = self.process.stdout.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, self.log


@contextmanager
def serving(*flags):
    worker = Serve(*flags)
    try:
        yield worker
    except BaseException:
        worker.show()
        raise
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
