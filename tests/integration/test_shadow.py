"""Shadows on a real Kafka: processes that are killed, started with other shadows, and told who is to answer."""

import json
import shutil
import signal

import pytest

from tests.support.models import START_MS, STEP_MS, SUCCESSORS, counting_model, publish
from tests.support.serving import serving
from tests.support.shadowed import Alone, expected, judge, states
from tests.support.worker_process import tidecast
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.model.session import Model

OLD, NEW_LAYOUT, LONGER = SUCCESSORS[0], SUCCESSORS[2], SUCCESSORS[3]
SERIES = 8


class Stream:
    """What was sent to one test's topics, and what came of it, as `tests.support.shadowed` asks for it."""

    def __init__(self, topics):
        self.topics, self.sent, self.steps = topics, [], 0
        self.decisions = f"decisions-{topics.group}"
        topics.broker.create_topic(self.decisions, 1)
        self.flags = [*topics.flags, f"--decisions-topic={self.decisions}", "--changelog-seconds=0.5", "--instance=one"]

    def feed(self, steps):
        """A reading of each series for each of so many steps; returns how many there are by now."""
        records = [
            (s % 2, b"s%d" % s, json.dumps({"ts": START_MS + i * STEP_MS, "value": s, "wind": i}).encode())
            for i in range(self.steps, self.steps + steps)
            for s in range(SERIES)
        ]
        self.topics.send(records)
        self.sent += records
        self.steps += steps
        return self.steps * SERIES

    def answered(self, steps):
        """Send so many steps more, and wait until all are answered."""
        return self.topics.read(self.topics.forecasts, self.feed(steps))

    def forecasts(self):
        return [(p, k, json.loads(v)) for p, k, v, _ in self.topics.read(self.topics.forecasts, self.steps * SERIES)]

    def read(self, topic):
        return self.topics.read(self.topics.states, SERIES)

    def promote(self, *words):
        t = self.topics
        code, out, log = tidecast("promote", *words, f"--bootstrap-servers={t.bootstrap_servers}",
                                  f"--decisions-topic={self.decisions}", f"--input-topic={t.readings}",
                                  f"--group={t.group}")  # fmt: skip
        assert code == 0, log
        return out


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        counting_model(folder / "old", OLD),
        counting_model(folder / "new", NEW_LAYOUT),
        counting_model(folder / "turned", LONGER, name="turned", features=["wind", "value"]),
    ]


def alone(path, variant, first=0):
    return Alone(Model.load(path), variant, first)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_forecasts_are_byte_for_byte_those_without_shadows_and_killed_workers_leave_the_states_of_each_model(
    topics, paths, delivery
):
    old, new, turned = paths
    stream = Stream(t := topics(partitions=2))
    flags = ["--model", old, f"--delivery={delivery}", *stream.flags]
    shadows = ["--shadow", new, "--shadow", turned]
    for _ in range(3):
        with serving(*flags, *shadows) as worker:
            stream.answered(20)
            worker.kill()
    with serving(*flags, *shadows) as worker:
        stream.answered(5)
        name = next(one.model.spec.id for one in [alone(turned, LONGER)])
        worker.wait_for("the shadow's scores", lambda: f'model_absolute_error_count{{horizon="1",model="{name}"'
                        in worker.get("/metrics")[1])  # fmt: skip
        page = json.loads(worker.get("/series/s0")[1])
        assert [told["role"] for told in page["models"].values()].count("shadow") == 2
        code, log = worker.end()
    assert code == 0, log
    each = alone(old, OLD), alone(new, NEW_LAYOUT), alone(turned, LONGER)
    if delivery == "exactly-once":
        judge(stream, *each)
    else:
        [one.run(stream.sent) for one in each]
    assert states(stream, *(one.model for one in each)) == expected(*each)

    kinds = ("output-topic", "dead-letter-topic", "changelog-topic", "group")
    other = {kind: f"plain-{kind}-{t.group}" for kind in kinds}
    for flag in ("output-topic", "dead-letter-topic", "changelog-topic"):
        t.broker.create_topic(other[flag], 2, CHANGELOG_CONFIG if flag == "changelog-topic" else None)
    plain = [f"--{flag}={name}" for flag, name in other.items()]
    with serving(*flags, *plain):
        without = t.read(other["output-topic"], len(stream.sent))
    found = t.read(t.forecasts, len(stream.sent))
    assert {value for _, _, value, _ in found} == {value for _, _, value, _ in without}


def test_shadows_are_added_left_out_and_put_in_another_order_and_all_others_continue_exactly(topics, paths):
    old, new, turned = paths
    stream = Stream(topics(partitions=2))
    for shadows in ([], [new], [new, turned], [turned, new], [turned]):
        with serving("--model", old, *stream.flags, *(f"--shadow={path}" for path in shadows)) as worker:
            stream.answered(10)
            if shadows == [new, turned]:
                worker.kill()
            else:
                assert worker.end()[0] == 0
    each = alone(old, OLD), alone(turned, LONGER, 20)
    judge(stream, *each)
    assert states(stream, *(one.model for one in each)) == expected(*each)


@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
def test_promotions_and_rollbacks_under_kills_change_the_model_once_for_each_decision(topics, paths, client):
    old, _, turned = paths
    stream = Stream(topics(partitions=2))
    each = alone(old, OLD), alone(turned, LONGER)
    first, second = (one.model.spec.id for one in each)
    flags = ["--model", old, "--shadow", turned, *stream.flags, "--commit-interval-ms=20", "--max-poll-records=20"]
    flags.append(f"--client={client}")
    decided = [first]
    for words in ([turned], ["--rollback"], ["--rollback"], [old]):
        with serving(*flags) as worker:
            stream.answered(10)
            stream.feed(30)
            stream.promote(*words)
            decided.append(first if decided[-1] == second else second)
            worker.kill()  # perhaps before it has heard of it, or between its forecasts and their commit
        with serving(*flags) as worker:
            role = f'hash="{decided[-1][-12:]}",kind="forecaster",name="{decided[-1][:-13]}",role="champion"'
            worker.wait_for("the decision", lambda role=role: role in worker.get("/metrics")[1])
            stream.answered(10)
            code, log = worker.end()
            assert code == 0, log
    told = judge(stream, *each)
    for partition, names in told.items():
        assert [name for n, name in enumerate(names) if not n or names[n - 1] != name] == decided, partition
    assert states(stream, *(one.model for one in each)) == expected(*each)


def test_a_newer_file_of_the_model_takes_its_place_while_a_shadow_steps_on(topics, paths, tmp_path):
    old, new, turned = paths
    place = tmp_path / "served"
    shutil.copytree(old, place)
    stream, three = Stream(topics(partitions=2)), alone(turned, LONGER)
    with serving("--model", place, "--shadow", turned, "--model-watch-seconds=0", *stream.flags) as worker:
        stream.answered(20)
        publish(new, place)
        worker.process.send_signal(signal.SIGHUP)
        worker.wait_for("the swap", lambda: worker.metric("tidecast_model_swaps_total") == 1)
        stream.answered(10)
        stream.promote(turned, "--wait", 30)
        stream.answered(10)
        code, log = worker.end()
    assert code == 0, log
    three.run(stream.sent)
    told = states(stream, Model.load(new), three.model)
    assert {key: found[three.model.spec.id] for key, found in told.items()} == {
        key: found[three.model.spec.id] for key, found in expected(three).items()
    }
    by = [forecast["model"] for _, key, forecast in stream.forecasts() if key == b"s0"]
    assert list(dict.fromkeys(by)) == [Model.load(path).spec.id for path in paths]
    assert all(forecast["targets"]["value"]["p50"] == three.answers[key, forecast["ts"]][0]
               for _, key, forecast in stream.forecasts() if forecast["model"] == three.model.spec.id)  # fmt: skip
