"""Decisions on a real Kafka: the topic, the command, and workers that follow."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.models import STEP_MS, Variant, counting_model
from tests.support.printed import printed
from tests.support.serving import serving
from tests.support.worker_process import tidecast
from tests.unit.champion.test_decisions import A, B, C, decision
from tidecast.service import cli
from tidecast.service.broker.connect import connect
from tidecast.service.champion.decisions import DecisionReader, read_history, write_decision
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError
from tidecast.service.model.session import Model
from tidecast.service.model.spec import Diagnostic


@pytest.fixture(params=["kafka-python", "confluent"])
def kafka(request, broker):
    made = connect(broker, client=request.param, timeout_s=20.0)
    yield made
    made.close()


@pytest.fixture
def named(broker):
    """Settings with topics of their own."""
    tag = uuid.uuid4().hex[:8]
    topics = {role: f"{role}-{tag}" for role in ("input_topic", "output_topic", "dead_letter_topic")}
    return Settings(
        bootstrap_servers=broker,
        changelog_topic=f"changelog-{tag}",
        decisions_topic=f"decisions-{tag}",
        group=f"group-{tag}",
        broker_timeout_seconds=20.0,
        **topics,
    )


def flags(named, *roles):
    wanted = roles or ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic", "decisions_topic")
    found = [f"--bootstrap-servers={named.bootstrap_servers}"]
    return found + [f"--{role.replace('_', '-')}={getattr(named, role)}" for role in wanted]


def test_what_one_writes_all_read_in_one_order_and_the_topic_keeps_it(kafka, named):
    assert cli.main(["topics", "create", "--partitions=2", *flags(named)]) == 0
    assert kafka.partitions(named.decisions_topic) == 1
    config = kafka.topic_config(named.decisions_topic)
    assert (config["cleanup.policy"], config["retention.ms"], config["retention.bytes"]) == ("delete", "-1", "-1")
    reader = DecisionReader(kafka, named)
    try:
        assert reader.read_to_end() == []
        write_decision(kafka, named, decision(A, B, group=named.group))
        write_decision(kafka, named, decision(A, C, group="another"))
        write_decision(kafka, named, decision(B, C, group=named.group, by="auto", after=0))
        write_decision(kafka, named, decision(B, A, group=named.group, by="auto", after=0))
        read_to = reader.read_to_end()
        assert [(each.number, each.decision.to, each.void) for each in read_to] == [
            (0, B, False),
            (2, C, False),
            (3, A, True),
        ]
        assert reader.read_to_end() == []
        assert read_history(kafka, named).decisions == reader.history.decisions
    finally:
        reader.close()


def test_writing_without_the_topic_says_so_and_makes_none(kafka, named):
    with pytest.raises(BrokerError, match=named.decisions_topic):
        write_decision(kafka, named, decision(A, B, group=named.group))
    assert kafka.partitions(named.decisions_topic) is None


# ---------------------------------------------------------------------- with workers

SERIES, START_MS = 16, 1_700_006_400_000
ENOUGH = 320  # readings of each series, so that a test can tell


def scoring(column):
    """The counting model scores how many values were missing, and how many steps it has made: which is its error?"""
    return [
        Diagnostic(name, "absolute_error" if name == column else "surprise", "value", 1)
        for name in ("missing", "earlier")
    ]


@pytest.fixture
def models(tmp_path):
    """Directories: a model whose error grows, one whose error does not, and one that is as bad as the first."""
    return [
        counting_model(tmp_path / str(i), Variant(multiplier=31 + 2 * i), diagnostics=scoring(column))
        for i, column in enumerate(("earlier", "missing", "earlier"))
    ]


def ids(models):
    return [Model.load(path).spec.id for path in models]


def feed(topics, first, last):
    topics.send(
        (s % topics.count, b"s%d" % s, json.dumps({"ts": START_MS + i * STEP_MS, "value": s, "wind": i % 7}).encode())
        for i in range(first, last)
        for s in range(SERIES)
    )


def feed_until_promoted(worker, topics):
    """How many readings of each series it took. A worker that reads one partition first, then the other, needs more.

    The series of the other partition seem to have gone meanwhile, and are counted anew.
    """
    last = 0
    while worker.metric("tidecast_promotions_total") != 1:
        assert last < 5 * ENOUGH, f"no promotion\n{worker.log}"
        feed(topics, last, last + 40)
        last += 40
        worker.wait_for("answers", lambda n=last: worker.metric("tidecast_forecasts_total") == SERIES * n)
    return last


def answered_by(topics, until):
    """partition -> ids of the models that answered, in order; each reading is answered once."""
    told, seen = {p: [] for p in range(topics.count)}, set()
    for partition, key, value, _ in topics.read(topics.forecasts, until):
        forecast = json.loads(value)
        assert (key, forecast["ts"]) not in seen
        seen.add((key, forecast["ts"]))
        if told[partition][-1:] != [forecast["model"]]:
            told[partition].append(forecast["model"])
    assert len(seen) == until
    return told


def test_a_worse_champion_is_replaced_by_itself_and_the_next_worker_knows(topics, models):
    t, (worse, better, _) = topics(partitions=2), ids(models)
    flags = ["--model", models[0], "--shadow", models[1], *t.flags, t.make_decisions()]
    auto = [*flags, "--promote=auto", "--promote-seconds=60"]
    with serving(*auto) as worker:
        last = feed_until_promoted(worker, t)
        feed(t, last, last + 2)
        assert answered_by(t, SERIES * (last + 2)) == {p: [worse, better] for p in range(2)}
        metrics = worker.get("/metrics")[1]
        assert 'role="champion"} 1' in metrics and 'tidecast_promotions_total{by="auto"} 1' in metrics
        code, log = worker.end()
    assert code == 0 and log.count("another model is to answer") == 1, log
    with serving(*flags) as worker:
        worker.ready()
        assert "the champion was decided before" in worker.log
        feed(t, last + 2, last + 4)
        assert answered_by(t, SERIES * (last + 4)) == {p: [worse, better] for p in range(2)}
        assert worker.metric("tidecast_promotions_total") == 0
        assert worker.end()[0] == 0
    named = Settings(bootstrap_servers=t.bootstrap_servers, decisions_topic=t.decisions, group=t.group)
    (found,) = read_history(t.broker, named).decisions
    assert (found.decision.was, found.decision.to, found.decision.by) == (worse, better, "auto")
    assert found.decision.evidence.series <= SERIES and found.decision.evidence.loss["value"]["1"] < 0.1


def test_a_shadow_that_is_no_better_never_takes_over(topics, models):
    t, (worse, _, as_bad) = topics(partitions=2), ids(models)
    assert worse != as_bad
    flags = ["--model", models[0], "--shadow", models[2], *t.flags, t.make_decisions(), "--promote=auto"]
    with serving(*flags, "--promote-seconds=0") as worker:
        feed(t, 0, 2 * ENOUGH)
        assert answered_by(t, SERIES * 2 * ENOUGH) == {p: [worse] for p in range(2)}
        worker.wait_for(
            "evidence", lambda: f'tidecast_promotion_evidence{{model="{as_bad}"}}' in worker.get("/metrics")[1]
        )
        assert worker.metric("tidecast_promotion_evidence") == 0
        assert worker.end()[0] == 0
    assert t.read(t.decisions, 0) == []


def test_two_workers_follow_the_same_decisions(topics, models):
    t, (worse, better, _) = topics(partitions=4), ids(models)
    flags = ["--model", models[0], "--shadow", models[1], *t.flags, t.make_decisions()]
    where = [f"--bootstrap-servers={t.bootstrap_servers}", f"--input-topic={t.readings}", f"--group={t.group}"]
    where.append(f"--decisions-topic={t.decisions}")
    with serving(*flags) as one, serving(*flags) as two:
        one.ready(), two.ready()
        feed(t, 0, 5)
        t.read(t.forecasts, SERIES * 5)
        code, out, log = tidecast("promote", better, "--wait", 60, *where)
        assert code == 0, log
        assert f"all partitions are committed by {better}" in out
        feed(t, 5, 10)
        t.read(t.forecasts, SERIES * 10)
        code, _, log = tidecast("promote", "--rollback", "--wait", 60, *where)
        assert code == 0, log
        feed(t, 10, 15)
        assert answered_by(t, SERIES * 15) == {p: [worse, better, worse] for p in range(4)}
        for worker in (one, two):
            assert worker.metric("tidecast_promotions_total") == 2
            assert worker.end()[0] == 0


def test_the_commands_of_the_page_promote_and_go_back(topics, models, tmp_path):
    t, (worse, better, _) = topics(partitions=2), ids(models)
    shutil.copytree(models[1], tmp_path / "build/newer")
    with serving("--model", models[0], "--shadow", models[1], *t.flags, t.make_decisions()) as worker:
        worker.ready()
        feed(t, 0, 2)
        t.read(t.forecasts, SERIES * 2)
        names = {"bootstrap_servers": t.bootstrap_servers, "input_topic": t.readings, "group": t.group}
        names["decisions_topic"] = t.decisions
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIDECAST_")}
        env |= {f"TIDECAST_{name.upper()}": value for name, value in names.items()}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        typed = ["bash", "-ec", printed("promote")]
        done = subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("all partitions are committed by") == 2
        assert f"{worse} -> {better}  by command" in done.stdout
        assert worker.end()[0] == 0


def test_a_worker_with_shadows_refuses_to_start_without_the_topic_of_decisions(topics, models):
    t = topics(partitions=1)
    with serving("--model", models[0], "--shadow", models[1], *t.flags, f"--decisions-topic={t.decisions}") as worker:
        code, log = worker.end(signum=None)
    assert code == 1
    assert f"there is no topic {t.decisions}" in log and f"--decisions-topic {t.decisions}" in log
