"""The prior error of each linear expert, used before a series has readings, and the rate at which errors are forgotten.

Both come from validation rows: a series that changes needs a short memory, a noisy one a long memory.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tidecast.training.config import Config
from tidecast.training.linear.ridge import CHUNK_ROWS, Scaled, ahead, filled, windows
from tidecast.training.model.expert_mixture import FORGETTING, PRIOR_STEPS, error_of
from tidecast.training.model.forecaster import Forecaster

PRIOR_ROWS = 4_000  # that the prior is taken from
REHEARSED_SERIES, REHEARSED_STEPS = 64, 512  # that the rate is chosen on; steps before the validation rows


def set_expert_priors(model: Forecaster, stretches: list[Scaled], config: Config) -> None:
    """Set the experts' `prior` and `forgetting`."""
    model.experts.prior.copy_(_prior(model, stretches, config))
    model.experts.forgetting.fill_(_rate(model, stretches, config))


def _prior(model: Forecaster, stretches: list[Scaled], config: Config) -> Tensor:
    """Mean absolute error of each linear expert on validation rows, in the series' units: [experts, targets]."""
    total, count = torch.zeros(model.experts.count, model.d), 0
    thin = max(1, sum(len(s.ts) for s in stretches) // PRIOR_ROWS)
    for s in stretches:
        at = np.flatnonzero((s.ts >= config.train_until_ms) & (s.ts < config.validate_until_ms))[::thin]
        if len(at) == 0:
            continue
        said, truth = _expert_forecasts(model, s, at, config.validate_until_ms)
        whole = torch.isfinite(truth).flatten(0, 1).all(dim=0)
        total, count = total + error_of(said[..., whole], truth[..., whole]).sum(dim=-1), count + int(whole.sum())
    return total / count if count else torch.ones_like(total)


def _rate(model: Forecaster, stretches: list[Scaled], config: Config) -> float:
    """The rate of forgetting whose mixture has the smallest mean absolute error on validation rows."""
    experts = model.experts
    rates = torch.tensor(FORGETTING)  # [rates]
    total = torch.zeros(len(rates))
    for s in stretches[:: max(1, len(stretches) // REHEARSED_SERIES)]:
        first = max(0, int((s.ts < config.train_until_ms).sum()) - REHEARSED_STEPS)
        rows = np.arange(first, int((s.ts < config.validate_until_ms).sum()))
        if len(rows) <= experts.hindsight:
            continue
        said, truth = _expert_forecasts(model, s, rows, config.validate_until_ms)
        errors = error_of(said[:, : experts.hindsight], truth[: experts.hindsight])  # [count, targets, rows]
        running = experts.prior[..., None].expand(-1, -1, len(rates))  # [count, targets, rates]
        for i, row in enumerate(rows):
            if (told := i - experts.hindsight) >= 0:
                rate = torch.clamp(rates, min=1 / (told + PRIOR_STEPS))
                running = running + (rate * (errors[..., told, None] - running)).nan_to_num()
            if s.ts[row] >= config.train_until_ms:
                mixed = experts.mix(said[..., i, None], running)  # [horizon * targets, rates]
                total += (mixed - truth[..., i].reshape(-1, 1)).abs().nanmean(dim=0).nan_to_num()
    return FORGETTING[int(total.argmin())] if total.any() else FORGETTING[len(FORGETTING) // 2]


def _expert_forecasts(model: Forecaster, s: Scaled, rows: NDArray[np.int64], until: int) -> tuple[Tensor, Tensor]:
    """Forecasts of all experts at some rows [count, horizon, targets, rows], and the truth before `until` (ms).

    Both in the series' units; a truth [horizon, targets, rows] that is missing is NaN.
    """
    z, covariates = filled(s)
    future = ahead(np.where((s.ts < until)[:, None], s.z, np.nan), model.h)  # [steps, horizon, targets]
    past = windows(z, model.history + model.hindsight)  # [steps, history + hindsight, targets]
    forecasts, truths = [], []
    for start in range(0, len(rows), CHUNK_ROWS):
        at = rows[start : start + CHUNK_ROWS]
        values, truth, known = (torch.from_numpy(part[at].astype(np.float32)) for part in (past, future, covariates))
        center, scale = (part[:, None] for part in model.units.locate(values[:, model.hindsight :]))
        local = ((values - center) / scale).flatten(1)
        products = model.experts(local, local)
        slots = model.calendar(torch.from_numpy(s.ts[at]))[1]
        forecasts.append(model.experts.finish(products.now, known.T, slots))
        truths.append(((truth - center) / scale).movedim(0, -1))
    return torch.cat(forecasts, dim=-1), torch.cat(truths, dim=-1)
