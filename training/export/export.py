"""From a fitted forecaster to one `model.onnx` that describes itself, or to an error.

The graph is exported by `torch.onnx.export`, stripped of the exporter's traces, compared with torch by
`tidecast.training.export.parity`, given its spec as metadata, and loaded again by the worker's own loader.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from onnxscript import optimizer

from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.session import Model
from tidecast.service.model.spec import METADATA_KEY, ModelSpec, SelfTest, TrainingData
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.export.parity import Floats, Stateful, Times, fold, sequences, torch_step
from tidecast.training.model.forecaster import Forecaster

OPSET = 20
SELF_TEST_STEPS = 32


def write(
    proto: onnx.ModelProto, model: Forecaster, config: Config, dataset: Dataset, metrics: dict[str, float], path: Path
) -> ModelSpec:
    """Add the spec to a graph that has passed the gate, and write the file.

    Raises:
        ModelError: the worker's own loader refuses the file; then nothing is written.
    """
    return write_model(proto, describe(model, config, dataset, metrics, content_hash(proto.SerializeToString())), path)


def write_model(proto: onnx.ModelProto, spec: ModelSpec, path: Path) -> ModelSpec:
    """Put the spec into the graph's metadata, and write the file.

    Raises:
        ModelError: the worker's own loader refuses the file; then nothing is written.
    """
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, msgspec.json.encode(spec).decode()
    draft = path.with_suffix(".draft.onnx")
    draft.write_bytes(proto.SerializeToString())
    try:
        Model.load(draft)
    except BaseException:
        draft.unlink()
        raise
    draft.replace(path)
    return spec


def build_graph(model: Forecaster) -> onnx.ModelProto:
    """The single step as an ONNX graph; batch is its only dynamic axis."""
    return trace(model, model.d + model.c, model.initial_state())


def trace(module: torch.nn.Module, features: int, initial_state: torch.Tensor) -> onnx.ModelProto:
    """The graph of `module(x, ts, state) -> y, next_state, score`; batch is its only dynamic axis."""
    example = (
        torch.zeros(3, features),
        torch.zeros(3, dtype=torch.int64),
        initial_state.expand(3, -1).clone(),
    )
    inputs, outputs = ["x", "ts", "state"], ["y", "next_state", "score"]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            example,
            file,
            dynamo=False,  # torch's newer exporter gives the same forecasts, and takes ten times as long
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        )
        answers = module(*example)
        proto: onnx.ModelProto = optimizer.optimize(onnx.load_model(file))
    # The exporter drops inputs that no node reads, and gives names to the sizes that it cannot follow.
    del proto.graph.input[:], proto.graph.output[:]
    proto.graph.input.extend(_declared(inputs, example))
    proto.graph.output.extend(_declared(outputs, answers))
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _declared(names: Sequence[str], values: Sequence[torch.Tensor]) -> list[onnx.ValueInfoProto]:
    """Inputs or outputs of the graph that are like these tensors [batch, ...]."""
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    return [
        onnx.helper.make_tensor_value_info(name, kinds[value.dtype], ["batch", *value.shape[1:]])
        for name, value in zip(names, values, strict=True)
    ]


def describe(
    model: Forecaster, config: Config, dataset: Dataset, metrics: dict[str, float], graph_hash: str
) -> ModelSpec:
    """The spec that goes into the file's metadata."""
    training = np.concatenate([s.ts[(s.ts < config.train_until_ms) & (s.rows >= 0)] for s in dataset.stretches])
    return ModelSpec(
        name=config.name,
        hash=graph_hash,
        features=config.features,
        targets=config.targets,
        horizon=model.h,
        step_ms=config.step_ms,
        quantiles=model.quantiles,
        state_size=model.state_size,
        state=[s for s in model.slices if 0 not in s.shape],
        initial_state=model.initial_state().tolist(),
        warmup_steps=model.history,
        diagnostics=model.diagnostics,
        training_data=TrainingData(dataset.sha256, int(training.min()), int(training.max()), len(training)),
        metrics=metrics,
        self_test=self_test(model, *sequences(model, dataset, 1, seed=7)),
        units=config.data.units,
    )


def self_test(model: Stateful, x: Floats, ts: Times) -> SelfTest:
    """The last forecast after the first readings of x [1, steps, features], ts [1, steps] ms."""
    x, ts = x[:, :SELF_TEST_STEPS], ts[:, :SELF_TEST_STEPS]
    y = fold(torch_step(model), model.initial_state().numpy(), x, ts)[0, -1]
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in x[0]]
    return SelfTest(x=rows, ts=ts[0].tolist(), y=[float(v) for v in y.ravel()])


def _strip(proto: onnx.ModelProto) -> None:
    """Take out what the exporter leaves of this machine: stack traces, paths, documentation."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del graph.value_info[:]
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks to torch's developers; what matters to the user is checked by the gate."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
