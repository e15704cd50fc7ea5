"""A newer model on a real Kafka: put into its place and told of by SIGHUP, or found by the worker itself."""

import json
import shutil
import signal

import pytest

from tests.chaos.topics import Names
from tests.chaos.verifier import verify
from tests.support.models import SUCCESSORS, counting_models, publish
from tests.support.serving import serving
from tidecast.service.model.session import Model

SERIES, STEP_MS, START_MS = 6, 60_000, 1_700_006_400_000


def feed(topics, first, last):
    topics.send(
        (s % topics.count, b"s%d" % s, json.dumps({"ts": START_MS + i * STEP_MS, "value": s, "wind": i}).encode())
        for i in range(first, last)
        for s in range(SERIES)
    )


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_newer_model_takes_over_on_sighup_whether_states_can_be_carried_or_not(topics, tmp_path, delivery):
    models = counting_models(tmp_path, 3)
    assert SUCCESSORS[1].longer == SUCCESSORS[0].longer != SUCCESSORS[2].longer
    place = tmp_path / "served"
    shutil.copytree(models[0], place)
    t, steps = topics(partitions=2), 0
    with serving("--model", place, "--delivery", delivery, "--model-watch-seconds=0", *t.flags) as worker:
        for nth, model in enumerate(models):
            if nth:
                publish(model, place)
                worker.process.send_signal(signal.SIGHUP)
                worker.wait_for("the swap", lambda n=nth: worker.metric("tidecast_model_swaps_total") == n)
            feed(t, steps, steps + 12)
            steps += 12
            t.read(t.forecasts, SERIES * steps)
        (place / "model.onnx").write_bytes(b"half a mod")
        worker.process.send_signal(signal.SIGHUP)
        worker.wait_for("the refusal", lambda: "the new model is refused, the old one stays in service" in worker.log)
        code, log = worker.end()
    assert code == 0, log
    report = verify(t.broker, [Model.load(m) for m in models], Names(t.readings, t.forecasts, t.dead, t.states),
                    rtol=0, atol=0)  # fmt: skip
    assert report.ok, report
    assert report.forecasts == SERIES * steps
    assert (report.hand_overs["carried"], report.hand_overs["rebuilt"]) == (SERIES, SERIES)


def test_a_worker_finds_a_newer_model_by_itself(topics, tmp_path):
    models = counting_models(tmp_path, 2)
    place = tmp_path / "served"
    shutil.copytree(models[0], place)
    t = topics(partitions=2)
    with serving("--model", place, "--model-watch-seconds=0.1", *t.flags) as worker:
        feed(t, 0, 3)
        t.read(t.forecasts, SERIES * 3)
        publish(models[1], place)
        worker.wait_for("the swap", lambda: worker.metric("tidecast_model_swaps_total") == 1)
        assert worker.end()[0] == 0
