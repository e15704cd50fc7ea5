"""`--model starter:…` on a real Kafka: a topic that nobody has trained a model for."""

import json

import numpy as np
import pytest

from tests.support.models import START_MS, STEP_MS
from tests.support.serving import serving
from tidecast.service.model.session import Model
from tidecast.service.timestamps import format_duration
from tidecast.training.export.parity import fold, onnx_step

STARTER = f"starter:step={format_duration(STEP_MS)}&features=value,wind&target=value&horizon=2"


@pytest.mark.timeout(300)
def test_a_topic_without_history_is_answered_from_its_first_reading_and_learned_on_after_a_kill(
    counted, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    t = counted()
    t.feed(1)
    with serving("--model", STARTER, *t.flags) as worker:
        worker.patience = 240.0  # making it takes some ten seconds of a core
        worker.ready()
        assert "making the starter" in worker.log
        t.read(t.forecasts, len(t.series))
        t.feed(59)
        t.read(t.forecasts, 60 * len(t.series))
        worker.end(9)
    (made,) = (tmp_path / "tidecast" / "starters").iterdir()
    first_written = (made / "model.onnx").stat().st_mtime_ns
    t.feed(60)
    with serving("--model", STARTER, *t.flags) as worker:
        answers = t.read(t.forecasts, t.steps * len(t.series))
        worker.end()
    assert (made / "model.onnx").stat().st_mtime_ns == first_written, "the second worker takes it from the cache"
    assert t.answered() == {key: list(range(t.steps)) for key in t.series}, "each reading is answered once"
    told = [json.loads(value) for _, key, value, _ in answers if key == b"s0-0"]
    assert len({each["model"] for each in told}) == 1
    # As one run without a kill: 0 … 49, again and again.
    model, steps = Model.load(made), np.arange(t.steps)
    x = np.stack([steps % 50, np.full(t.steps, 2.0)], axis=1).astype(np.float32)[None]
    state = np.array(model.spec.initial_state, np.float32)
    y = fold(onnx_step((made / "model.onnx").read_bytes()), state, x, START_MS + steps[None] * STEP_MS)
    middle = y[0, :, :, 0, model.spec.quantiles.index(0.5)]
    assert [each["targets"]["value"]["p50"] for each in told] == [
        pytest.approx(row, rel=1e-4, abs=1e-3) for row in middle
    ]
    assert set(told[0]["targets"]["value"]["p50"]) == {0.0}, "the first forecast is the first reading"
