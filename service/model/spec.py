"""The model's own description of itself: the JSON under `tidecast.spec` in the ONNX file's metadata.

Written by `training.export.export`, read by `service.model.session`; both share these structs, so they always
agree.
"""

from __future__ import annotations

import msgspec

CONTRACT = 1
METADATA_KEY = "tidecast.spec"


class StateSlice(msgspec.Struct, frozen=True):
    """A named part of the packed state: `state[start : start + prod(shape)]`."""

    name: str
    start: int
    shape: tuple[int, ...]


class Diagnostic(msgspec.Struct, frozen=True):
    """One column of `score`.

    `kind` is absolute_error, naive_error, inside (0 or 1), surprise, clipped or alarm (1 or NaN), anomaly (0 to 1), or
    anomaly_view (a part of that, with a sign).
    """

    name: str
    kind: str
    target: str
    horizon: int
    level: float | None = None  # of an interval: 0.9 is the 90 % interval


class SelfTest(msgspec.Struct, frozen=True):
    """Readings to run from the initial state, and the expected last forecast (row-major y, batch 1)."""

    x: list[list[float | None]]  # [steps][features], None = missing
    ts: list[int]  # [steps], ms
    y: list[float]  # [horizon * targets * quantiles]
    rtol: float = 1e-3


class TrainingData(msgspec.Struct, frozen=True):
    """The training data: sha256 of the file, and the period of its training rows (ms, UTC)."""

    sha256: str
    start: int
    end: int
    rows: int


class ModelSpec(msgspec.Struct, frozen=True):
    """All that is needed to run the graph. Features and targets are in the user's own units."""

    name: str
    hash: str  # sha256 over the graph without this metadata
    features: list[str]
    targets: list[str]
    horizon: int  # steps
    step_ms: int  # 0 = irregular
    quantiles: list[float]
    state_size: int
    state: list[StateSlice]
    initial_state: list[float]  # [state_size]
    warmup_steps: int
    diagnostics: list[Diagnostic]
    training_data: TrainingData
    metrics: dict[str, float]
    self_test: SelfTest
    kind: str = "forecaster"  # or "classifier"
    classes: list[str] = []
    contract: int = CONTRACT
    units: dict[str, str] = {}

    @property
    def id(self) -> str:
        """The field `model` of forecasts: the name and the start of the content hash."""
        return f"{self.name}@{self.hash[:12]}"


def quantile_name(quantile: float) -> str:
    """0.05 -> "p5", 0.5 -> "p50", 0.975 -> "p97.5"."""
    return f"p{quantile * 100:.6g}"
