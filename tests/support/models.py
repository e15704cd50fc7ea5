"""Small ONNX models that keep the contract, made without training, for tests that must see every step.

`counting_model` keeps, in whole numbers that float32 holds exactly: how many steps, how many missing values, the
last time, and a hash over everything it was shown, in order. So one step that is lost, doubled, mixed up or given
to another series changes every later forecast, and equality with `CountingReference` is exact.

A `Variant` is another model of the same name, for tests that change models: its hash differs at the first step, so a
state that the wrong model advanced is found too.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tidecast.service.model.model_file import MODEL_FILE
from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.spec import METADATA_KEY, Diagnostic, ModelSpec, SelfTest, StateSlice, TrainingData

POISON_STATE = 666.0  # as the first feature: next_state becomes infinite
POISON_FORECAST = 667.0  # as the first feature: y becomes NaN, the state stays fine
STEP_MS = 60_000
START_MS = 1_700_000_000_000 // STEP_MS * STEP_MS
MODULUS = 8191
FEATURES = ("value", "wind")
TARGETS = ("value",)
QUANTILES = (0.1, 0.5, 0.9)
HORIZON = 2
STATE = ("count", "missing", "last", "hash")  # one number each
OFFSETS = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], dtype=np.float32)  # [horizon, quantiles]


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the counting models: how its hash grows, and whether its state has the time before the last one too."""

    multiplier: int = 31
    longer: bool = False  # a state of another layout: five numbers, under other names, and not all of them start at 0

    @property
    def slices(self) -> list[StateSlice]:
        if self.longer:
            names, sizes = ("steps", "missing", "hash", "times"), (1, 1, 1, 2)
        else:
            names, sizes = STATE, (1, 1, 1, 1)
        return [StateSlice(name, sum(sizes[:i]), (sizes[i],)) for i, name in enumerate(names)]

    @property
    def initial_state(self) -> list[float]:
        return [0.0, 0.0, 1000.0, 0.0, 0.0] if self.longer else [0.0] * len(STATE)


PLAIN = Variant()
# To be published one after the other: the first change keeps the layout of the state, the second does not, and so on.
SUCCESSORS = (
    PLAIN,
    Variant(multiplier=37),
    Variant(multiplier=41, longer=True),
    Variant(multiplier=43, longer=True),
    Variant(multiplier=47),
)


class CountingReference:
    """What the counting model does, one series and one step at a time, in plain Python."""

    def __init__(self, variant: Variant = PLAIN) -> None:
        self.variant = variant
        self.count, self.missing, self.last, self.before = 0, 0, 0, 0
        self.hash = 1000 if variant.longer else 0

    def step(self, x: Sequence[float], ts: int) -> list[list[float]]:
        """Returns [horizon][quantiles]."""
        self.count += 1
        self.missing += sum(math.isnan(v) for v in x)
        self.before, self.last = self.last, ts // 1000 % MODULUS
        digest = self.hash * self.variant.multiplier + self.last
        if self.variant.longer:
            digest += self.before
        for weight, v in enumerate(x, start=7):
            digest += weight * (5 if math.isnan(v) else int(v))
        self.hash = int(math.fmod(digest, MODULUS))
        return (OFFSETS + np.float32(self.hash + 3 * self.count)).tolist()

    @property
    def state(self) -> list[float]:
        if self.variant.longer:
            return [float(v) for v in (self.count, self.missing, self.hash, self.last, self.before)]
        return [float(v) for v in (self.count, self.missing, self.last, self.hash)]


def counting_graph(features: int = 2, diagnostics: int = 2, variant: Variant = PLAIN) -> onnx.ModelProto:
    """The graph without its spec."""
    size = len(variant.initial_state)
    constants = {
        "zero": np.float32(0),
        "one": np.float32(1),
        "five": np.float32(5),
        "three": np.float32(3),
        "multiplier": np.float32(variant.multiplier),
        "modulus": np.float32(MODULUS),
        "thousand": np.int64(1000),
        "modulus_int": np.int64(MODULUS),
        "weights": np.arange(7, 7 + features, dtype=np.float32),
        "last_axis": np.array([1], dtype=np.int64),
        "first_feature": np.array([0], dtype=np.int64),
        "poison_state": np.float32(POISON_STATE),
        "poison_forecast": np.float32(POISON_FORECAST),
        "infinity": np.float32(np.inf),
        "nan": np.float32(np.nan),
        "offsets": OFFSETS.reshape(1, HORIZON, 1, len(QUANTILES)),
        "to_y": np.array([-1, 1, 1, 1], dtype=np.int64),
        "parts": np.ones(size, dtype=np.int64),
    }

    def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), outputs.split(), **attributes)

    if variant.longer:
        parts, next_parts = "count missing hash last before", "new_count new_missing new_hash clock last"
        clocks = [node("Add", "clock last", "clocks")]
    else:
        parts, next_parts = "count missing last hash", "new_count new_missing clock new_hash"
        clocks = [node("Identity", "clock", "clocks")]
    nodes = [
        node("Split", "state parts", parts, axis=1),
        node("IsNaN", "x", "is_nan"),
        node("Where", "is_nan five x", "filled"),
        node("Cast", "is_nan", "nan_float", to=TensorProto.FLOAT),
        node("ReduceSum", "nan_float last_axis", "nans", keepdims=1),
        node("Add", "missing nans", "new_missing"),
        node("Add", "count one", "new_count"),
        node("Div", "ts thousand", "seconds"),
        node("Mod", "seconds modulus_int", "clock_int"),
        node("Cast", "clock_int", "clock_float", to=TensorProto.FLOAT),
        node("Unsqueeze", "clock_float last_axis", "clock"),
        node("Mul", "filled weights", "weighted"),
        node("ReduceSum", "weighted last_axis", "mixed", keepdims=1),
        node("Mul", "hash multiplier", "hash_grown"),
        *clocks,
        node("Add", "hash_grown clocks", "hash_clock"),
        node("Add", "hash_clock mixed", "hash_all"),
        node("Mod", "hash_all modulus", "good_hash", fmod=1),
        node("Gather", "filled first_feature", "first", axis=1),
        node("Equal", "first poison_state", "poisoned"),
        node("Where", "poisoned infinity good_hash", "new_hash"),
        node("Concat", next_parts, "next_state", axis=1),
        node("Mul", "new_count three", "count3"),
        node("Add", "good_hash count3", "base"),
        node("Equal", "first poison_forecast", "muted"),
        node("Where", "muted nan base", "spoken"),
        node("Reshape", "spoken to_y", "centre"),
        node("Add", "centre offsets", "y"),
        # score: how many values were missing so far, and the earlier count, NaN at the first step
        node("Equal", "count zero", "is_first"),
        node("Where", "is_first nan count", "earlier"),
        node("Concat", "new_missing earlier" if diagnostics == 2 else "new_missing", "score", axis=1),
    ]

    def tensor(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        "counting",
        [tensor("x", features), tensor("ts", kind=TensorProto.INT64), tensor("state", size)],
        [
            tensor("y", HORIZON, 1, len(QUANTILES)),
            tensor("next_state", size),
            tensor("score", diagnostics),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def counting_spec(variant: Variant = PLAIN, **changes: object) -> ModelSpec:
    """The spec of the counting model, with its true self-test; the hash is filled in by `save`."""
    reference = CountingReference(variant)
    x: list[list[float | None]] = [[1.0, 2.0], [None, 4.0], [5.0, None]]
    ts = [START_MS + i * STEP_MS for i in range(len(x))]
    for row, t in zip(x, ts, strict=True):
        y = reference.step([math.nan if v is None else v for v in row], t)
    spec = ModelSpec(
        name="counting",
        hash="0" * 64,
        features=list(FEATURES),
        targets=list(TARGETS),
        horizon=HORIZON,
        step_ms=STEP_MS,
        quantiles=list(QUANTILES),
        state_size=len(variant.initial_state),
        state=variant.slices,
        initial_state=variant.initial_state,
        warmup_steps=3,
        diagnostics=[
            Diagnostic("missing", "surprise", "value", 1),
            Diagnostic("earlier", "absolute_error", "value", 1),
        ],
        training_data=TrainingData("0" * 64, START_MS, START_MS, 0),
        metrics={},
        self_test=SelfTest(x=x, ts=ts, y=[v for row in y for v in row]),
    )
    return msgspec.structs.replace(spec, **changes)


def save(directory: Path, graph: onnx.ModelProto, spec: ModelSpec) -> Path:
    """Write `model.onnx` with the spec in it, its content hash set; returns the directory."""
    hashed = msgspec.structs.replace(spec, hash=content_hash(graph.SerializeToString()))
    return save_text(directory, graph, msgspec.json.encode(hashed).decode())


def save_text(directory: Path, graph: onnx.ModelProto, spec: str | None) -> Path:
    """Write `model.onnx` with any text, or none, where the spec belongs."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    if spec is not None:
        helper.set_model_props(model, {METADATA_KEY: spec})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return directory


def publish(model: Path, place: Path) -> None:
    """As anybody should who publishes a model: written next to the old one, and moved to its place in one step."""
    place.mkdir(exist_ok=True)
    new = place / f"{MODEL_FILE}.new"
    shutil.copyfile(model / MODEL_FILE, new)
    new.replace(place / MODEL_FILE)


def counting_model(directory: Path, variant: Variant = PLAIN, **changes: object) -> Path:
    """A model directory with the counting model; `changes` are fields of its spec."""
    return save(directory, counting_graph(variant=variant), counting_spec(variant, **changes))


def counting_models(directory: Path, count: int) -> list[Path]:
    """A model directory for each of the first so many of SUCCESSORS."""
    return [counting_model(directory / str(i), variant) for i, variant in enumerate(SUCCESSORS[:count])]
