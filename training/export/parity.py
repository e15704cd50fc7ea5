"""The parity gate: no graph leaves the trainer unless the window, the folded step and onnxruntime agree.

For long carried sequences, one series at a time and many together, with missing values:
torch's window pass = torch's folded steps = onnxruntime's folded steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tidecast.service.errors import ModelError
from tidecast.service.model.session import open_session
from tidecast.training.data.dataset import Dataset
from tidecast.training.model.forecaster import Forecaster

STEPS = 600
BATCHES = (1, 64)
MISSING = 0.1
TOLERANCE = 1e-4

Floats = NDArray[np.float32]
Times = NDArray[np.int64]
Step = Callable[[Floats, Times, Floats], tuple[Floats, Floats, Floats]]  # (x, ts, state) -> (y, next_state, score)


class Stateful(Protocol):
    """A torch module that keeps the graph's contract: one step, and the state it starts from."""

    def __call__(self, x: Tensor, ts: Tensor, state: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """One step: y, next_state, score."""

    def initial_state(self) -> Tensor:
        """[state]"""


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest relative difference seen for one batch size, over all carried steps."""

    batch: int
    steps: int
    window_to_fold: float  # torch against torch
    fold_to_onnx: float  # torch against onnxruntime


def sequences(model: Forecaster, dataset: Dataset, batch: int, seed: int) -> tuple[Floats, Times]:
    """Real readings with some values made missing: x [batch, STEPS, features], ts [batch, STEPS] ms."""
    generator = np.random.default_rng(seed)
    x = np.empty((batch, STEPS, model.d + model.c), np.float32)
    ts = np.empty((batch, STEPS), np.int64)
    for row in range(batch):
        stretch = dataset.stretches[int(generator.integers(len(dataset.stretches)))]
        at = (int(generator.integers(len(stretch.ts))) + np.arange(STEPS)) % len(stretch.ts)  # a short stretch repeats
        x[row] = stretch.x[at]
        gap = model.step_ms or int(np.median(np.diff(stretch.ts))) if len(stretch.ts) > 1 else 1000
        ts[row] = stretch.ts[at[0]] + np.arange(STEPS) * gap
    x[generator.random(x.shape) < MISSING] = np.nan
    return x, ts


def fold(step: Step, initial: Floats, x: Floats, ts: Times) -> Floats:
    """Forecasts y [batch, steps, horizon, targets, quantiles] of a step carried over x [batch, steps, features]."""
    state = np.tile(initial, (len(x), 1))  # [batch, state]
    out = []
    for t in range(x.shape[1]):
        y, state, _ = step(np.ascontiguousarray(x[:, t]), np.ascontiguousarray(ts[:, t]), state)
        out.append(y)
    return np.stack(out, axis=1)


def torch_step(model: Stateful) -> Step:
    """The module's own step over numpy arrays."""

    def step(x: Floats, ts: NDArray[np.int64], state: Floats) -> tuple[Floats, Floats, Floats]:
        with torch.no_grad():
            y, after, score = model(torch.from_numpy(x), torch.from_numpy(ts), torch.from_numpy(state))
        return y.numpy(), after.numpy(), score.numpy()

    return step


def onnx_step(data: bytes) -> Step:
    """onnxruntime's step of a serialised graph."""
    session = open_session(data)

    def step(x: Floats, ts: NDArray[np.int64], state: Floats) -> tuple[Floats, Floats, Floats]:
        y, after, score = session.run(("y", "next_state", "score"), {"x": x, "ts": ts, "state": state})
        return y, after, score

    return step


def difference(a: Floats, b: Floats, scale: Floats) -> float:
    """Largest |a - b| relative to |b|, or to the target's own deviation where b is near zero; infinite with a NaN."""
    worst = np.abs(a - b) / np.maximum(np.abs(b), scale)
    return float("inf") if np.isnan(worst).any() else float(worst.max())


def check_parity(model: Forecaster, graph: bytes, dataset: Dataset, seed: int = 0) -> list[Parity]:
    """Compare the three ways to run the model.

    Raises:
        ModelError: any two differ by more than TOLERANCE, relative.
    """
    model.eval()
    scale = model.units.small().numpy()[:, None]
    runtime = onnx_step(graph)
    return [
        check_parity_of(model, model.window, runtime, *sequences(model, dataset, batch, seed + batch), scale)
        for batch in BATCHES
    ]


def check_parity_of(
    model: Stateful,
    window: Callable[[Tensor, Tensor], Tensor] | None,
    runtime: Step,
    x: Floats,
    ts: Times,
    scale: Floats,
) -> Parity:
    """Compare the three ways over x [batch, steps, features], ts [batch, steps] ms; `scale` is a target's deviation.

    A model that is not trained has no `window`: then only the folded steps are compared.

    Raises:
        ModelError: any two differ by more than TOLERANCE, relative.
    """
    initial = model.initial_state().numpy()
    folded = fold(torch_step(model), initial, x, ts)
    whole = folded
    if window is not None:
        with torch.no_grad():
            whole = window(torch.from_numpy(x), torch.from_numpy(ts)).numpy()
    served = fold(runtime, initial, x, ts)
    batch, steps = ts.shape
    found = Parity(batch, steps, difference(folded, whole, scale), difference(served, folded, scale))
    for pair, worst in (("torch's window pass and folded steps", found.window_to_fold),
                        ("torch's and onnxruntime's folded steps", found.fold_to_onnx)):  # fmt: skip
        if not worst <= TOLERANCE:
            raise ModelError(
                f"the export is wrong: {pair} differ over {steps} carried steps at batch {batch}",
                got=f"{worst:.2e} relative, at most {TOLERANCE:.0e} is allowed",
                do="No model was written. Report this with the training config; it is a fault of the trainer.",
            )
    return found
