"""Whether a trained forecaster learns each series on while it is served: `model.adapt`.

"auto" is decided on validation rows: the exported graph is run over all rows up to their end, with and without.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np

from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.stretch import Stretch
from tidecast.training.evaluation.evaluate import tracks
from tidecast.training.export.export import build_graph
from tidecast.training.export.parity import onnx_step
from tidecast.training.model.forecaster import Forecaster

MOST_NUMBERS = 3_000  # more in the state for each target: so steps of a quarter of an hour and longer
ENOUGH = 0.995  # times the error: what gains less may be chance, and costs state and time all the same


def settle_adapt(model: Forecaster, config: Config, dataset: Dataset) -> tuple[Forecaster, Config, str | None]:
    """The forecaster and config with `model.adapt` decided, and a sentence that says how; None if it was not "auto"."""
    if config.model.adapt != "auto":
        return model, config, None
    still = _with(config, "none")
    if config.step_ms == 0:
        return model, still, "Readings are irregular, so the model does not learn on while it is served"
    online = _with(config, "online")
    adaptive = Forecaster(online)
    more = (adaptive.state_size - model.state_size) // model.d
    if more > MOST_NUMBERS:
        said = f"To learn on while it is served would take {more:,} numbers more for each series and target"
        return model, still, f"{said}, above {MOST_NUMBERS:,}: it does not learn on"
    adaptive.load_state_dict(model.state_dict())
    adaptive.experts.assemble()
    adaptive.eval()
    ratio = _error_ratio(adaptive, model, config, dataset)
    better = ratio < ENOUGH
    said = (
        f"On validation rows, the model that learns on while it is served has {ratio:.3f} times the error of the one "
    )
    said += f"that does not: it {'learns on' if better else 'does not learn on'}"
    return (adaptive, online, said) if better else (model, still, said)


def _with(config: Config, adapt: str) -> Config:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, adapt=adapt))


def _error_ratio(one: Forecaster, other: Forecaster, config: Config, dataset: Dataset) -> float:
    """The geometric mean over series and targets of the ratio of their mean absolute errors on validation rows."""
    data = msgspec.structs.replace(config.data, validate_until=config.data.train_until)
    before = msgspec.structs.replace(config, data=data)
    stretches = [_until(stretch, config.validate_until_ms) for stretch in dataset.stretches]
    cut = dataclasses.replace(dataset, stretches=[stretch for stretch in stretches if len(stretch.ts)])
    errors = []
    for model in (one, other):
        step = onnx_step(build_graph(model).SerializeToString())
        center = model.calibration.center
        found = tracks(step, model.initial_state().numpy(), before, cut)
        errors.append(np.array([np.nanmean(np.abs(t.y[..., center] - t.truth), axis=(0, 1)) for t in found]))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(errors[0] / errors[1])
    return float(np.exp(logs[np.isfinite(logs)].mean())) if np.isfinite(logs).any() else 1.0


def _until(stretch: Stretch, moment: int) -> Stretch:
    inside = stretch.ts < moment
    return Stretch(stretch.series, stretch.ts[inside], stretch.x[inside], stretch.rows[inside])
