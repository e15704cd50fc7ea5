"""The way of a recipe's model to the worker: the export gate, the file, and its own data through the pipeline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.datafiles.readings import keys, values
from tidecast.service.datafiles.table import Table
from tidecast.service.errors import ModelError
from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec, TrainingData
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy
from tidecast.training.export.export import SELF_TEST_STEPS, self_test, trace, write_model
from tidecast.training.export.parity import (
    TOLERANCE,
    Floats,
    Times,
    check_parity_of,
    difference,
    onnx_step,
)
from tidecast.training.recipes.parts.steps import Step

STEP_MS = 1_000
START_MS = 1_767_225_600_000  # 2026-01-01
MISSING = 0.1  # of the gate's readings, so that missing values are compared too


@dataclass(frozen=True, slots=True)
class Served:
    """What came out of the worker's pipeline for a recipe's data."""

    spec: ModelSpec
    y: Floats  # [series, steps, horizon, targets, 1], or [series, steps, classes]
    warm: NDArray[np.bool_]  # [series, steps]
    difference: float  # from torch's window pass: the largest, relative
    parity: float  # the largest of the export gate's


@dataclass(frozen=True, slots=True)
class Names:
    """What a model calls its inputs and outputs."""

    model: str
    features: list[str]
    targets: list[str]  # of a forecaster
    classes: list[str]  # of a classifier


def times(series: int, steps: int) -> Times:
    """[series, steps] ms: one reading a second."""
    return np.tile(START_MS + STEP_MS * np.arange(steps, dtype=np.int64), (series, 1))


def deliver(model: Step, names: Names, x: Floats, path: Path, *, warmup: int = 1, gate_steps: int = 300) -> Served:
    """Export `model` to `path`, and send x [series, steps, features] through the worker's own pipeline.

    `gate_steps` should be longer than a series ever is, and not by far: an RNN whose weights stretch what it remembers
    also stretches the last bit of its rounding, step by step, in torch and in onnxruntime.

    Raises:
        ModelError: the export, or what is served, differs from torch by more than 1e-4, relative.
    """
    model.eval()
    graph = trace(model, model.features, model.initial_state())
    data = graph.SerializeToString()
    scale = np.ones(1, np.float32) if model.classifier else model.y_std.numpy()[:, None]
    parity = 0.0
    for batch in (1, 16):
        mixed, ts = _gate_readings(x, batch, gate_steps)
        found = check_parity_of(model, model.window, onnx_step(data), mixed, ts, scale)
        parity = max(parity, found.window_to_fold, found.fold_to_onnx)
    write_model(graph, _describe(model, names, x, content_hash(data), warmup), path)

    worker = Model.load(path)  # as the worker does
    y, warm = answers_of_worker(worker, names, x)
    worst = difference(y, _torch_answers(model, x), scale)
    if not worst <= TOLERANCE:
        raise ModelError(
            f"{names.model}: what is served differs from torch", got=f"{worst:.2e} relative, allowed {TOLERANCE:.0e}"
        )
    return Served(worker.spec, y, warm, worst, parity)


def _gate_readings(x: Floats, batch: int, steps: int) -> tuple[Floats, Times]:
    """The recipe's own readings, one series after the other, repeated when they end, with some values made missing."""
    generator = np.random.default_rng(batch)
    rows = x.reshape(-1, x.shape[-1])
    at = (generator.integers(len(rows), size=(batch, 1)) + np.arange(steps)) % len(rows)
    mixed = rows[at].astype(np.float32)
    mixed[generator.random(mixed.shape) < MISSING] = np.nan
    return mixed, times(batch, steps)


def _torch_answers(model: Step, x: Floats) -> Floats:
    """Torch's window pass, some series at a time."""
    parts = [torch.from_numpy(x[start : start + 500]) for start in range(0, len(x), 500)]
    with torch.no_grad():
        return np.concatenate([model.window(p, torch.zeros(p.shape[:2], dtype=torch.int64)).numpy() for p in parts])


def _describe(model: Step, names: Names, x: Floats, graph_hash: str, warmup: int) -> ModelSpec:
    every = times(1, x.shape[1])[0]
    return ModelSpec(
        name=names.model,
        hash=graph_hash,
        features=names.features,
        targets=names.targets,
        horizon=1 if model.classifier else model.outputs[0],
        step_ms=STEP_MS,
        quantiles=[] if model.classifier else [0.5],
        state_size=model.state_size,
        state=model.slices,
        initial_state=model.initial_state().tolist(),
        warmup_steps=warmup,
        diagnostics=[],
        training_data=TrainingData(
            hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest(), int(every[0]), int(every[-1]), x[..., 0].size
        ),
        metrics={},
        self_test=self_test(model, *_gate_readings(x, 1, SELF_TEST_STEPS)),
        kind="classifier" if model.classifier else "forecaster",
        classes=names.classes,
    )


def answers_of_worker(model: Model, names: Names, x: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Every reading as the JSON record it would be on Kafka, one batch for each step; answers decoded from JSON."""
    series, steps, _ = x.shape
    ts = times(series, steps)
    pipeline = Pipeline(model, Policy(max_series=series), output_topic="forecasts", dead_letter_topic="dead-letters")
    keyed = [f"{names.model}-{i}" for i in range(series)]
    answers, warm = [], []
    for t in range(steps):
        table = Table(ts[:, t], keyed, x[:, t].astype(np.float64), tuple(names.features))
        record_keys: list[bytes | None] = [*keys(table)]
        batch = Batch(
            "readings", [0] * series, list(range(t * series, (t + 1) * series)), ts[:, t].tolist(), record_keys,
            [*values(table)], [()] * series,
        )  # fmt: skip
        forecasts = pipeline.process(batch).forecasts
        if forecasts.keys != record_keys:
            raise ModelError(
                f"{names.model}: not every reading was answered",
                got=f"{len(forecasts)} forecasts for {series} readings",
            )
        for value in forecasts.values:
            found = msgspec.json.decode(value or b"")
            warm.append(found["warm"])
            if names.classes:
                answers.append([found["classes"][name] for name in names.classes])
            else:
                answers.append([found["targets"][name]["p50"] for name in names.targets])
    y = np.array(answers, np.float32).reshape(steps, series, *np.shape(answers[0])).swapaxes(0, 1)
    if not names.classes:  # [series, steps, targets, horizon] -> [series, steps, horizon, targets, 1]
        y = y.swapaxes(2, 3)[..., None]
    return y, np.array(warm).reshape(steps, series).T
