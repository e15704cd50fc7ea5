"""Loads a model file, refuses one that breaks the contract, and runs its single step.

The graph is the whole forecaster; this file knows shapes and names, nothing about forecasting.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from tidecast.service.errors import ModelError
from tidecast.service.model.onnx_file import content_hash, read_metadata
from tidecast.service.model.spec import CONTRACT, METADATA_KEY, ModelSpec
from tidecast.service.model.spec_checks import EXPORT_AGAIN, check_spec, forecast_shape, is_classifier, require

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

MODEL_FILE = "model.onnx"
MAX_BYTES = 64 * 1024 * 1024
ort.disable_telemetry_events()  # what a plant measures is nobody else's business
# onnxruntime works on a few rows at a time, and on what is left over in another way, with another last bit. In a batch
# of a multiple of so many rows nothing is left over: so a series' forecasts do not depend on who shares its wave.
_ROWS = 4
_FEW = 128  # rows: what each operator asks for memory counts, and a plan of it is kept for each size of a batch
_ERRORS_ONLY = 3  # onnxruntime's severity: its warnings speak to its developers


class Model:
    """One checked model, ready to step. Not for use from several threads at once."""

    __slots__ = ("_buffers", "_few", "_session", "initial_state", "sha256", "spec")

    def __init__(self, spec: ModelSpec, session: ort.InferenceSession, few: ort.InferenceSession, sha256: str) -> None:
        self.spec = spec
        self.sha256 = sha256  # of the whole file
        self.initial_state: Float32 = np.array(spec.initial_state, dtype=np.float32)  # [state]
        self.initial_state.flags.writeable = False
        self._session = session
        self._few = few  # for calls of at most _FEW rows
        self._buffers: tuple[NDArray[Any], ...] = ()  # for batches that are to be filled up: x, ts, state

    @classmethod
    def load(
        cls, path: Path | str, *, max_bytes: int = MAX_BYTES, intra_op_threads: int = 1, sha256: str | None = None
    ) -> Model:
        """Read a model directory, or the .onnx file itself, check it against the contract, and run its self-test.

        Args:
            path: a directory with a model.onnx in it, or a file.
            max_bytes: a larger file is refused unread.
            intra_op_threads: threads inside one operator; 1 is fastest for small recurrent models.
            sha256: where given, the file's bytes must have this hash (hex).

        Raises:
            ModelError: the file breaks the contract in any way.
        """
        data = _read(Path(path), max_bytes)
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256.strip().lower():
            raise ModelError(
                "the model file is not the one that was asked for",
                got=f"sha256 {digest}",
                do=f"Expected {sha256}: serve that file, or give --model-sha256 this one's once you trust it",
            )
        spec = _read_spec(read_metadata(data))  # refuses foreign operators and external data before a runtime sees them
        check_spec(spec)
        if content_hash(data) != spec.hash:
            raise ModelError(
                "the graph is not the one that the model's spec describes",
                got=f"content hash {content_hash(data)[:12]}, the spec says {spec.hash[:12]}",
                do=EXPORT_AGAIN,
            )
        few = open_session(data, intra_op_threads, few_sizes=True)
        model = cls(spec, open_session(data, intra_op_threads), few, digest)
        model._check_tensors()
        model._self_test()
        return model

    def step(self, x: Float32, ts: Int64, state: Float32) -> tuple[Float32, Float32, Float32]:
        """One step of a batch of series. A row's answer is the same to the last bit, whatever else is in the batch.

        Args:
            x: [batch, features], raw units, NaN = missing.
            ts: [batch], ms since the epoch, UTC.
            state: [batch, state].

        Returns:
            y [batch, horizon, targets, quantiles] in raw units (a classifier's: [batch, classes]), next_state
            [batch, state], score [batch, diagnostics].

        Raises:
            ModelError: the runtime refuses to run the graph on this input.
        """
        rows = len(ts)
        if rows % _ROWS:
            x, ts, state = self._filled_up(x, ts, state)
        session = self._few if len(ts) <= _FEW else self._session
        try:
            y, next_state, score = session.run(("y", "next_state", "score"), {"x": x, "ts": ts, "state": state})
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ModelError("the model failed in a step", got=_first_line(error), do=EXPORT_AGAIN) from error
        return y[:rows], next_state[:rows], score[:rows]

    def _filled_up(self, *inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The inputs [batch, ...] with a few more rows, whatever these hold."""
        rows = len(inputs[0])
        wanted = rows + -rows % _ROWS
        if not self._buffers or len(self._buffers[0]) < wanted:
            self._buffers = tuple(np.zeros((wanted, *each.shape[1:]), dtype=each.dtype) for each in inputs)
        for buffer, each in zip(self._buffers, inputs, strict=True):
            buffer[:rows] = each
            yield buffer[:wanted]

    def _check_tensors(self) -> None:
        """Names, types and shapes of the graph against the spec; only batch may be dynamic."""
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
        """Fold the spec's own readings and compare the last forecast with what the trainer got."""
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


def _read(path: Path, max_bytes: int) -> bytes:
    """The bytes of the model file, at most `max_bytes` of them."""
    file = path / MODEL_FILE if path.is_dir() else path
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for, a device never ends
            raise OSError(0, "it is not a file")
        with file.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ModelError(
            f"the model file {str(file)!r} cannot be read",
            got=error.strerror,
            do="Give --model a directory made by `tidecast train`, or its model.onnx",
        ) from None
    if len(data) > max_bytes:
        raise ModelError(
            f"the model file {str(file)!r} is larger than {max_bytes} bytes",
            got=file.stat().st_size,
            do="Train a smaller model, or raise TIDECAST_MODEL_MAX_BYTES",
        )
    return data


def _read_spec(metadata: dict[str, str]) -> ModelSpec:
    """The spec in the metadata; the contract's version is looked at before anything that depends on it."""
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"the model has no {METADATA_KEY!r} in its metadata",
            got=sorted(metadata),
            do="Serve a model that `tidecast train` exported, or add the metadata that the contract asks for",
        )
    text = metadata[METADATA_KEY]
    try:
        contract = msgspec.json.decode(text, type=_Version).contract
        if contract != CONTRACT:
            raise ModelError(
                f"the model keeps version {contract} of the contract, this is version {CONTRACT}",
                do="Serve it with the tidecast that exported it, or export it again with this one",
            )
        return msgspec.json.decode(text, type=ModelSpec)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ModelError(
            f"the model's {METADATA_KEY!r} cannot be read", got=_first_line(error), do=EXPORT_AGAIN
        ) from None


class _Version(msgspec.Struct):
    contract: int


def open_session(data: bytes, intra_op_threads: int = 1, *, few_sizes: bool = False) -> ort.InferenceSession:
    """A session as the worker runs it, and the trainer's gate too; `few_sizes`: for batches of a few sizes alone.

    Raises:
        ModelError: onnxruntime does not take the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # What comes on top folds activations into products, where they are slower, and moves transpositions about: an
    # exported graph has the batch as the last axis of all that is small, and knows why.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = few_sizes  # it keeps a plan for each batch size ever seen, and waves have all sizes
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
