"""Loads a model file, refuses it if it breaks the contract, and runs its single step.

The graph is the whole forecaster; this module knows shapes and names, but nothing about forecasting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from tidecast.service.errors import ModelError
from tidecast.service.model.model_file import MAX_BYTES, read_model_file
from tidecast.service.model.onnx_file import content_hash, read_metadata
from tidecast.service.model.spec import CONTRACT, METADATA_KEY, ModelSpec
from tidecast.service.model.spec_checks import EXPORT_AGAIN, check_spec, forecast_shape, is_classifier, require

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# onnxruntime computes a few rows at a time, and the remaining ones in another way, which may differ in the last bit.
# With a multiple of this number of rows none remain, so forecasts do not depend on which series share a wave.
_ROW_MULTIPLE = 4
_MAX_SMALL_BATCH = 128  # rows: up to here memory allocation dominates, and a memory plan is kept for each batch size
_ERRORS_ONLY = 3  # onnxruntime's severity: its warnings are for its developers


class Model:
    """One checked model, ready to step. Not for use from several threads at once."""

    __slots__ = ("_buffers", "_session", "_small_batch_session", "initial_state", "sha256", "spec")

    def __init__(
        self, spec: ModelSpec, session: ort.InferenceSession, small: ort.InferenceSession, sha256: str
    ) -> None:
        self.spec = spec
        self.sha256 = sha256  # of the whole file
        self.initial_state: Float32 = np.array(spec.initial_state, dtype=np.float32)  # [state]
        self.initial_state.flags.writeable = False
        self._session = session
        self._small_batch_session = small  # for calls of at most _MAX_SMALL_BATCH rows
        self._buffers: tuple[NDArray[Any], ...] = ()  # for padded batches: x, ts, state

    @classmethod
    def load(
        cls, path: Path | str, *, max_bytes: int = MAX_BYTES, intra_op_threads: int = 1, sha256: str | None = None
    ) -> Model:
        """Read a model directory, or the .onnx file itself, check it against the contract, and run its self-test.

        Args:
            path: a directory that contains model.onnx, or a file.
            max_bytes: a larger file is refused without being read.
            intra_op_threads: threads inside one operator; 1 is fastest for small recurrent models.
            sha256: if given, the file must have this hash (hex).

        Raises:
            ModelError: the file breaks the contract in any way.
        """
        file = read_model_file(path, max_bytes=max_bytes, sha256=sha256)
        return cls.from_bytes(file.data, file.sha256, intra_op_threads)

    @classmethod
    def from_bytes(cls, data: bytes, sha256: str, intra_op_threads: int = 1) -> Model:
        """As `load`, with the content of the file and its hash."""
        spec = _read_spec(read_metadata(data))  # before the runtime sees foreign operators
        check_spec(spec)
        if content_hash(data) != spec.hash:
            raise ModelError(
                "the graph is not the one that the model's spec describes",
                got=f"content hash {content_hash(data)[:12]}, the spec says {spec.hash[:12]}",
                do=EXPORT_AGAIN,
            )
        small = open_session(data, intra_op_threads, plan_memory=True)
        model = cls(spec, open_session(data, intra_op_threads), small, sha256)
        model._check_tensors()
        model._self_test()
        return model

    def step(self, x: Float32, ts: Int64, state: Float32) -> tuple[Float32, Float32, Float32]:
        """One step for a batch of series. The result of a row is bit-identical, whatever the other rows are.

        Args:
            x: [batch, features], raw units, NaN = missing.
            ts: [batch], ms since the epoch, UTC.
            state: [batch, state].

        Returns:
            y [batch, horizon, targets, quantiles] in raw units (a classifier's: [batch, classes]), next_state
            [batch, state], score [batch, diagnostics].

        Raises:
            ModelError: the runtime failed.
        """
        rows = len(ts)
        if rows % _ROW_MULTIPLE:
            x, ts, state = self._padded(x, ts, state)
        session = self._small_batch_session if len(ts) <= _MAX_SMALL_BATCH else self._session
        try:
            y, next_state, score = session.run(("y", "next_state", "score"), {"x": x, "ts": ts, "state": state})
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ModelError("the model failed in a step", got=_first_line(error), do=EXPORT_AGAIN) from error
        return y[:rows], next_state[:rows], score[:rows]

    def try_batch(self, rows: int) -> None:
        """Step so many series at once, with the last reading of the self-test.

        Raises:
            ModelError: the runtime failed.
        """
        test, features = self.spec.self_test, len(self.spec.features)
        x = np.tile(np.array(test.x[-1], dtype=np.float32).reshape(1, features), (rows, 1))
        self.step(x, np.full(rows, test.ts[-1], dtype=np.int64), np.tile(self.initial_state, (rows, 1)))

    def _padded(self, *inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The inputs [batch, ...] with a few more rows of arbitrary values."""
        rows = len(inputs[0])
        wanted = rows + -rows % _ROW_MULTIPLE
        if not self._buffers or len(self._buffers[0]) < wanted:
            self._buffers = tuple(np.zeros((wanted, *each.shape[1:]), dtype=each.dtype) for each in inputs)
        for buffer, each in zip(self._buffers, inputs, strict=True):
            buffer[:rows] = each
            yield buffer[:wanted]

    def _check_tensors(self) -> None:
        """Check names, types and shapes of the graph against the spec; only the batch axis may be dynamic."""
        spec = self.spec
        forecast = [len(spec.classes)] if is_classifier(spec) else forecast_shape(spec)
        inputs = {
            "x": ("tensor(float)", [len(spec.features)]),
            "ts": ("tensor(int64)", []),
            "state": ("tensor(float)", [spec.state_size]),
        }
        outputs = {
            "y": ("tensor(float)", forecast),
            "next_state": ("tensor(float)", [spec.state_size]),
            "score": ("tensor(float)", [len(spec.diagnostics)]),
        }
        _compare("input", inputs, self._session.get_inputs())
        _compare("output", outputs, self._session.get_outputs())

    def _self_test(self) -> None:
        """Run the readings of the spec's self-test and compare the last forecast with the trainer's."""
        test, state = self.spec.self_test, self.initial_state[np.newaxis]
        x = np.array(test.x, dtype=np.float32).reshape(len(test.ts), 1, len(self.spec.features))  # None -> NaN
        for row, ts in zip(x, test.ts, strict=True):
            y, state, _ = self.step(row, np.array([ts], dtype=np.int64), state)
        expected = np.array(test.y, dtype=np.float64)
        got = y.astype(np.float64).ravel()
        # Relative to the size of the forecast as a whole: a quantile near 0 has no useful relative error.
        allowed = test.rtol * max(float(np.abs(expected).max()), 1e-6)
        worst = float(np.abs(got - expected).max()) if got.shape == expected.shape else math.nan
        if not worst <= allowed:
            raise ModelError(
                "the model fails its self-test on this machine",
                got=f"a forecast {worst:.3g} away from the trainer's, allowed {allowed:.3g}",
                do=f"{EXPORT_AGAIN}; if it fails again, compare the onnxruntime versions",
            )
        if not np.isfinite(state).all():
            raise ModelError("the model's state is not finite after its self-test", do=EXPORT_AGAIN)


def _read_spec(metadata: dict[str, str]) -> ModelSpec:
    """The spec in the metadata. The contract's version is checked first, since all else depends on it."""
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"the model has no {METADATA_KEY!r} in its metadata",
            got=sorted(metadata),
            do="Serve a model that `tidecast train` exported, or add the metadata that the contract requires",
        )
    text = metadata[METADATA_KEY]
    try:
        contract = msgspec.json.decode(text, type=_Version).contract
        if contract != CONTRACT:
            raise ModelError(
                f"the model has version {contract} of the contract, this tidecast supports version {CONTRACT}",
                do="Serve it with the tidecast that exported it, or export it again with this one",
            )
        return msgspec.json.decode(text, type=ModelSpec)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ModelError(
            f"the model's {METADATA_KEY!r} cannot be read", got=_first_line(error), do=EXPORT_AGAIN
        ) from None


class _Version(msgspec.Struct):
    contract: int


def open_session(data: bytes, intra_op_threads: int = 1, *, plan_memory: bool = False) -> ort.InferenceSession:
    """A session for the worker and for the trainer's parity check. `plan_memory`: for a limited number of batch sizes.

    Raises:
        ModelError: onnxruntime refuses the graph.
    """
    ort.disable_telemetry_events()  # no data leaves the machine
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Higher levels fuse activations into products, which is slower here, and move transpositions, which the exporter
    # placed on purpose: small tensors have the batch as their last axis.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = plan_memory  # keeps a plan for each batch size, and waves can have any size
    try:
        return ort.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["TransposeOptimizer"]
        )
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError("onnxruntime refuses the model", got=_first_line(error), do=EXPORT_AGAIN) from None


def _compare(side: str, expected: dict[str, tuple[str, list[int]]], found: Sequence[ort.NodeArg]) -> None:
    names = sorted(tensor.name for tensor in found)
    require(names == sorted(expected), f"the graph's {side}s must be {', '.join(expected)}", names)
    for tensor in found:
        kind, static = expected[tensor.name]
        shape = list(tensor.shape)
        text = f"the graph's {side} {tensor.name!r}"
        require(tensor.type == kind, f"{text} must be a {kind}", tensor.type)
        require(len(shape) == 1 + len(static), f"{text} must have {1 + len(static)} axes", shape)
        require(not isinstance(shape[0], int), f"{text} must have a dynamic first axis, batch", shape)
        require(shape[1:] == static, f"{text} must have the shape {['batch', *static]}", shape)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
