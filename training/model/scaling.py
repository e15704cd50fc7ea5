"""From raw units to the model's and back: transform, mean and deviation, limits, and a series' own local units."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

SMALLEST_SCALE = 1e-6  # of a series that does not move
SMALLEST_LOG_SCALE = 0.01
FAR_BELOW = 10.0  # times smaller than all that was trained on: anything smaller counts as this
LIMIT = 1.0  # a value further outside the trained range than this many ranges is clipped


class Units(nn.Module):
    """Raw values are bent (`none`, `sqrt` or `log`; targets only), scaled by mean and deviation, and clipped."""

    floor: Tensor  # [features] the smallest value that has a logarithm here; only with `log`
    mean: Tensor  # [features], and so the others: bent units to scaled ones
    std: Tensor
    low: Tensor  # [features] scaled; what lies outside is clipped
    high: Tensor

    def __init__(self, targets: int, features: int, transform: Literal["none", "sqrt", "log"], local: bool) -> None:
        super().__init__()
        self.d, self.transform, self.local = targets, transform, local
        self.register_buffer("floor", torch.full((features,), 1e-6))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("low", torch.full((features,), -10.0))
        self.register_buffer("high", torch.full((features,), 10.0))

    def bend(self, x: Tensor) -> Tensor:
        """Targets as their logarithms or roots, where the model works in them; x [features, ...] raw."""
        if self.transform == "none":
            return x
        targets = x[: self.d]
        if self.transform == "log":
            bent = torch.log(torch.maximum(targets, self.floor[: self.d, None]))
        else:
            bent = torch.sqrt(torch.clamp(targets, min=0.0))
        return bent if len(x) == self.d else torch.cat([bent, x[self.d :]])

    def scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scaled and clipped, whether it was not clipped) of x [features, ...] raw; NaN stays NaN, with a False."""
        z = (self.bend(x) - self.mean[:, None]) / self.std[:, None]
        inside = torch.clamp(z, min=self.low[:, None], max=self.high[:, None])
        return inside, inside == z

    def unscale(self, scaled: Tensor) -> Tensor:
        """Raw units; [..., leads * targets, columns]."""
        leads = scaled.shape[-2] // self.d
        out = scaled * self.std[: self.d].repeat(leads)[:, None] + self.mean[: self.d].repeat(leads)[:, None]
        if self.transform == "log":
            return torch.exp(out)
        return torch.square(torch.clamp(out, min=0.0)) if self.transform == "sqrt" else out

    def limits(self) -> Tensor:
        """[features, 2] raw: the graph takes a value beyond them as the limit itself."""
        bent = torch.stack([self.low, self.high], dim=1).double() * self.std[:, None] + self.mean[:, None]
        raw = self.unscale(torch.stack([self.low, self.high], dim=1)[: self.d].double())
        return torch.cat([raw, bent[self.d :]])

    def small(self) -> Tensor:
        """[targets] raw: the scale for differences between two forecasts where both are near zero."""
        if self.transform == "log":
            return self.floor[: self.d] * FAR_BELOW  # the smallest that was trained on
        return torch.square(self.std[: self.d]) if self.transform == "sqrt" else self.std[: self.d]

    def locate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where the series' own recent past lies and how wide it is, [batch, targets] each: its local units.

        values [batch, steps, targets]. With one scale for all series these are 0 and 1. Otherwise series of any size
        look alike to the model (Kim et al. 2022, reversible instance normalisation).
        """
        if not self.local:
            return torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])
        center = values.mean(dim=1)
        deviation = (values - center[:, None]).abs().mean(dim=1) * 1.2533  # a normal's deviation
        least = SMALLEST_LOG_SCALE if self.transform == "log" else 0.01 * center.abs()
        return center, deviation + least + SMALLEST_SCALE
