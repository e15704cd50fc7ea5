"""The one training loop of the recipes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tidecast.training.progress import Progress
from tidecast.training.recipes.parts.steps import Step

Pair = tuple[Tensor, Tensor]  # x [n, steps, features] and what the loss compares with
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class Trace:
    """What a training run went through."""

    losses: list[float] = field(default_factory=list)  # [updates]
    totals: list[float] = field(default_factory=list)  # [epochs] sum of the losses of an epoch's updates
    norms: list[float] = field(default_factory=list)  # [updates] of the gradient, before clipping
    seconds: float = 0.0


def fit(
    model: Step,
    pairs: Callable[[int], Iterable[Pair]],
    loss: Loss,
    *,
    updates: int,
    epochs: int = 1,
    learning_rate: float,
    progress: Progress,
    carry: bool = False,
    last: bool = False,
    clip: float = math.inf,
    decay: bool = False,
    plain: bool = False,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Trace:
    """Gradient descent over `pairs(epoch)`, by Adam unless `plain`.

    Args:
        model: trained in place.
        pairs: what an epoch consists of.
        loss: of (raw outputs [n, steps, *outputs], truth).
        updates: in all epochs together, for the schedule and the progress.
        epochs: over the pairs.
        learning_rate: the highest.
        progress: told how far it is.
        carry: the state is carried from pair to pair within an epoch, without its gradient.
        last: only the answer after the last step counts.
        clip: largest norm of the gradient.
        decay: the rate rises for a twentieth of the updates, then falls to 0 along a cosine; else it is constant.
        plain: no Adam, which would hide how large a gradient is.
        momentum: Adam's first; more of it averages the noise of small batches.
        weight_decay: AdamW's.
        watch: called with (update, outputs) after each update.
    """
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=learning_rate)
        if plain
        else torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True
        )
    )
    began, trace, update, every = time.perf_counter(), Trace(), 0, max(1, updates // 100)
    losses, norms = [], []
    model.train()
    for epoch in range(epochs):
        state: Tensor | None = None
        for x, truth in pairs(epoch):
            if decay:
                optimizer.param_groups[0]["lr"] = learning_rate * _schedule(update / updates)
            out, after = model.roll(x, state, last=last)
            state = after.detach() if carry else None
            error = loss(out, truth)
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip).detach())
            optimizer.step()
            losses.append(error.detach())
            if watch is not None:
                watch(update, out.detach())
            update += 1
            if update % every == 0:
                progress.fraction(update / updates)
        trace.totals.append(float(torch.stack(losses).sum()) - sum(trace.losses))
        trace.losses = torch.stack(losses).tolist()
    trace.norms = torch.stack(norms).tolist()
    trace.seconds = time.perf_counter() - began
    model.eval()
    return trace


def _schedule(done: float) -> float:
    return done / 0.05 if done < 0.05 else 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
