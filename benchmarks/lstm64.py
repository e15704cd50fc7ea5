"""The job of all contenders: one value in, an LSTM of 64 units that keeps its state, one number out.

The weights are random, from a fixed seed: what a step costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.session import open_session
from tidecast.service.model.spec import ModelSpec, SelfTest, StateSlice, TrainingData

if TYPE_CHECKING:
    import onnx

HIDDEN = 64
_GATES = ("let", "keep", "show", "new")
START_MS = 1_700_000_000_000


def readings(n: int, series: int, partitions: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value) as the peers get them: one series after the other, 10 ms between two readings."""
    return (reading(i, series, partitions) for i in range(n))


def reading(i: int, series: int, partitions: int) -> tuple[int, bytes, bytes]:
    """The i-th of them."""
    value = b'{"ts": %d, "value": %.6f}' % (START_MS + i * 10, number(i))
    return i % series % partitions, b"sensor-%d" % (i % series), value


def number(i: int) -> float:
    """What the i-th reading says, before it is rounded to 6 places."""
    return i * 7919 % 10007 / 5003.5 - 1


def make(folder: Path, hidden: int = HIDDEN) -> Path:
    """The model, kept to the contract, in `folder`; returns it."""
    from tidecast.training.export.export import (
        write_model,  # with torch, which whoever only wants the readings does not need
    )

    graph = _graph(hidden)
    x = [[number(i)] for i in range(8)]
    ts = [START_MS + i * 10_000 for i in range(8)]
    session, state = open_session(graph.SerializeToString()), np.zeros((1, 2 * hidden), dtype=np.float32)
    for row, t in zip(x, ts, strict=True):
        feed = {"x": np.array([row], dtype=np.float32), "ts": np.array([t], dtype=np.int64), "state": state}
        y, state, _ = session.run(("y", "next_state", "score"), feed)
    spec = ModelSpec(
        name=f"lstm{hidden}",
        hash=content_hash(graph.SerializeToString()),
        features=["value"],
        targets=["value"],
        horizon=1,
        step_ms=0,
        quantiles=[0.5],
        state_size=2 * hidden,
        state=[StateSlice("hidden", 0, (hidden,)), StateSlice("cell", hidden, (hidden,))],
        initial_state=[0.0] * (2 * hidden),
        warmup_steps=0,
        diagnostics=[],
        training_data=TrainingData("0" * 64, START_MS, START_MS, 0),
        metrics={},
        self_test=SelfTest(x=msgspec.convert(x, list[list[float | None]]), ts=ts, y=y.ravel().tolist()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_model(graph, spec, folder / "model.onnx")
    return folder


def _graph(hidden: int) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    rng, bound = np.random.default_rng(0), hidden**-0.5

    def weights(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    constants = {
        **{f"w{gate}": weights(1 + hidden, hidden) for gate in _GATES},
        **{f"b{gate}": weights(hidden) for gate in _GATES},
        "out": weights(hidden, 1),
        "bias": weights(1),
        "halves": np.array([hidden, hidden], dtype=np.int64),
        "first": np.array([0], dtype=np.int64),
        "to_y": np.array([-1, 1, 1, 1], dtype=np.int64),
        "second": np.array([1], dtype=np.int64),  # an axis
    }
    node = helper.make_node
    nodes = [  # as the trainer exports the cell: see Recurrent
        node("Split", ["state", "halves"], ["h0", "c0"], axis=1),
        node("Concat", ["x", "h0"], ["both"], axis=1),
        *(node("Gemm", ["both", f"w{gate}", f"b{gate}"], [f"z{gate}"]) for gate in _GATES),
        *(node("Tanh" if gate == "new" else "Sigmoid", [f"z{gate}"], [gate]) for gate in _GATES),
        node("Mul", ["keep", "c0"], ["kept"]),
        node("Mul", ["let", "new"], ["added"]),
        node("Add", ["kept", "added"], ["c"]),
        node("Tanh", ["c"], ["shown"]),
        node("Mul", ["show", "shown"], ["h"]),
        node("Concat", ["h", "c"], ["next_state"], axis=1),
        node("Gemm", ["h", "out", "bias"], ["flat"]),
        node("Reshape", ["flat", "to_y"], ["y"]),
        node("Slice", ["flat", "first", "first", "second"], ["score"]),  # [batch, 0]
    ]

    def tensor(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        f"lstm{hidden}",
        [tensor("x", 1), tensor("ts", kind=TensorProto.INT64), tensor("state", 2 * hidden)],
        [tensor("y", 1, 1, 1), tensor("next_state", 2 * hidden), tensor("score", 0)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
