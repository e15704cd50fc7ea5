"""Readings for the counting model in topics of a test's own, and what a worker must have made of them."""

import json
import re
import shlex
import time

from kafka import KafkaAdminClient, TopicPartition

from tests.support.models import OFFSETS, START_MS, STEP_MS, CountingReference, counting_spec
from tests.support.serving import PATIENCE, Topics, serving
from tests.support.worker_process import tidecast
from tidecast.service.config import loader
from tidecast.service.state import changelog_admin
from tidecast.service.state.codec import Codec

CODEC = Codec(counting_spec())


class Counted(Topics):
    """Topics with `each` series in every partition; all of them get a reading at every step."""

    def __init__(self, bootstrap_servers, partitions=2, each=3, **more):
        super().__init__(bootstrap_servers, partitions, **more)
        self.series = {b"s%d-%d" % (p, i): p for p in range(partitions) for i in range(each)}
        self.steps = 0

    def feed(self, steps):
        """So many readings more for each series."""
        first, self.steps = self.steps, self.steps + steps
        self.send((p, key, self.reading(step)) for step in range(first, self.steps) for key, p in self.series.items())

    @staticmethod
    def reading(step):
        return json.dumps({"ts": START_MS + step * STEP_MS, "value": step % 50, "wind": 2.0}).encode()

    def live(self, model, *flags, signum=None, until=None):
        """One life of a worker, until it has answered all there is (`until`: so many in all); its log.

        It ends with SIGTERM and exit code 0, or by `signum`.
        """
        with serving("--model", model, *flags, *self.flags) as worker:
            self.read(self.forecasts, self.steps * len(self.series) if until is None else until)
            code, log = worker.end() if signum is None else worker.end(signum)
        assert code == (0 if signum is None else -signum), log
        return log

    def refused(self, model, *flags):
        """What a worker says that refuses to continue: its last line, after which it has ended with exit code 1."""
        with serving("--model", model, *flags, *self.flags) as worker:
            code, log = worker.end(signum=None)
        assert code == 1 and "Traceback" not in log, log
        return log.splitlines()[-1]

    def run(self, command):
        """Run a command line that a sentence named, as it stands there."""
        words = shlex.split(command)
        assert words[0] == "tidecast"
        code, out, err = tidecast(*words[1:])
        assert code == 0, f"{command}\n{out}{err}"

    def answered(self):
        """`key -> [step]`, in the order of the forecasts."""
        found = {key: [] for key in self.series}
        for _, key, value, _ in self.read(self.forecasts, 0):
            found[key].append((json.loads(value)["ts"] - START_MS) // STEP_MS)
        return found

    def kept(self):
        """`key -> state`, as the changelog has it."""
        found = changelog_admin.read_latest(
            self.broker, loader.load({"changelog_topic": self.states}, {}), CODEC.decode
        )
        return {place.key: snapshot.state.tolist() for place, snapshot in found.items()}

    def check(self):
        """Every reading was answered once, in order, by the state of all before it; and that is what was kept."""
        reference, answers = CountingReference(), []
        for step in range(self.steps):
            reference.step((step % 50, 2.0), START_MS + step * STEP_MS)
            answers.append([row[1] for row in (OFFSETS + (reference.hash + 3 * reference.count)).tolist()])
        found = {key: [] for key in self.series}
        for _, key, value, _ in self.read(self.forecasts, self.steps * len(self.series)):
            told = json.loads(value)
            found[key].append(((told["ts"] - START_MS) // STEP_MS, told["targets"]["value"]["p50"]))
        assert found == {key: list(enumerate(answers)) for key in self.series}
        assert self.kept() == dict.fromkeys(self.series, reference.state)

    def set_back(self, offsets):
        """As a person does it with Kafka's own tools, while the group is stopped."""
        consumer = self.broker.consumer(group=self.group)
        consumer.assign(self.readings, dict.fromkeys(range(self.count), 0))
        consumer.commit(offsets)
        consumer.close()

    def delete_topic(self, topic):
        """And wait until it is gone."""
        self.broker.delete_topic(topic)
        wait_until(lambda: self.broker.partitions(topic) is None)

    def delete_readings(self, before):
        """As retention does it: all before these offsets."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        admin.delete_records({TopicPartition(self.readings, p): offset for p, offset in before.items()})
        admin.close()


def command_in(sentence):
    """The `tidecast …` command that a sentence names, which must be whole: to its end, or in backquotes."""
    found = re.search(r"`(tidecast [^`]*)`|(tidecast (?:state|topics) .*)$", sentence)
    assert found, f"no command in: {sentence}"
    return (found[1] or found[2]).rstrip(".")


def wait_until(true):
    """Look again and again until it is."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)
