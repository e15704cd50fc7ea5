"""How far each linear expert is trusted before a series has said anything, and how soon its errors are forgotten.

Both come from validation rows: a series that changes its ways wants a short memory, a noisy one a long memory.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import Config
from training.experts import FORGETTING, PRIOR_STEPS, error_of
from training.forecaster import Forecaster
from training.linear import CHUNK_ROWS, Scaled, ahead, filled, windows

PRIOR_ROWS = 4_000  # that the prior is taken from
REHEARSED_SERIES, REHEARSED_STEPS = 64, 512  # that the rate is chosen on; steps before the validation rows


def set_trust(model: Forecaster, stretches: list[Scaled], config: Config) -> None:
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
        said, truth = _said(model, s, at, config.validate_until_ms)
        whole = torch.isfinite(truth).all(dim=2).all(dim=1)
        total, count = total + error_of(said[whole], truth[whole]).sum(dim=0), count + int(whole.sum())
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
        said, truth = _said(model, s, rows, config.validate_until_ms)
        errors = error_of(said[:, :, : experts.hindsight], truth[:, : experts.hindsight])  # [rows, count, targets]
        running = experts.prior.expand(len(rates), -1, -1)  # [rates, count, targets]
        for i, row in enumerate(rows):
            if (told := i - experts.hindsight) >= 0:
                rate = torch.clamp(rates, min=1 / (told + PRIOR_STEPS))[:, None, None]
                running = running + (rate * (errors[told] - running)).nan_to_num()
            if s.ts[row] >= config.train_until_ms:
                mixed = experts.mix(said[i].expand(len(rates), -1, -1, -1), running)  # [rates, horizon, targets]
                total += (mixed - truth[i]).abs().nanmean(dim=(1, 2)).nan_to_num()
    return FORGETTING[int(total.argmin())] if total.any() else FORGETTING[len(FORGETTING) // 2]


def _said(model: Forecaster, s: Scaled, rows: NDArray[np.int64], until: int) -> tuple[Tensor, Tensor]:
    """What all experts forecast at some rows [rows, count, horizon, targets], and what came before `until` (ms).

    Both in the series' units; a truth that is missing is NaN.
    """
    z, covariates = filled(s)
    future = ahead(np.where((s.ts < until)[:, None], s.z, np.nan), model.h)  # [steps, horizon, targets]
    past = windows(z, model.history)  # [steps, history, targets]
    forecasts, truths = [], []
    for start in range(0, len(rows), CHUNK_ROWS):
        at = rows[start : start + CHUNK_ROWS]
        values, truth, known = (torch.from_numpy(part[at].astype(np.float32)) for part in (past, future, covariates))
        center, scale = (part[:, None] for part in model.units.locate(values))
        forecasts.append(model.experts((values - center) / scale, known, torch.from_numpy(s.ts[at])))
        truths.append((truth - center) / scale)
    return torch.cat(forecasts), torch.cat(truths)
