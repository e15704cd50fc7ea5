"""`gradients`: how they vanish and explode, and which cell remembers across a long gap.

Three lessons: how much of the gradient of the last answer still reaches a message k steps back; what clipping does
where it explodes; and a task that needs the gradient of a distant message: say at the end which number came first,
after a gap of noise. "Long gates" begin with time constants up to the gap's (Tallec and Ollivier 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tidecast.training.export.parity import Floats
from tidecast.training.recipes.parts.loop import Trace, fit
from tidecast.training.recipes.parts.serving import Names, Served, deliver
from tidecast.training.recipes.parts.show import ACTUAL, COLOURS, DASHED, MARKERS, Kit, Line, Outcome, canvas
from tidecast.training.recipes.parts.steps import Recurring

KINDS, HIDDEN, DISTANCE = ("rnn", "gru", "lstm"), 32, 100
GAPS, LANES, UPDATES, RATE = (10, 30, 60), 32, 400, 0.01
FORGOTTEN, REMEMBERED = 0.9, 0.05  # squared error relative to the variance
STRETCH, WILD = 1.4, 40  # how much an RNN's recurrent weights stretch, and the steps it looks back


def remembering(model: Recurring, steps: int) -> Recurring:
    """Gates that forget with time constants between 1 and `steps` steps; an RNN has none, and stays as it is."""
    bias = model.cell.net.get_parameter("bias_hh_l0")
    keep = torch.log(1 + (steps - 2) * torch.rand(HIDDEN))
    with torch.no_grad():
        if model.cell.kind == "gru":
            bias[HIDDEN : 2 * HIDDEN] = keep
        elif model.cell.kind == "lstm":
            bias[:HIDDEN], bias[HIDDEN : 2 * HIDDEN] = -keep, keep
    return model


def reach_back(model: Recurring, seed: int) -> Floats:
    """Norm of d(last hidden state) / d(message k steps back), [distance], relative to k = 0. The lesson is the loop."""
    x = torch.randn(16, DISTANCE + 1, 1, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    tops, _ = model.cell.roll(x, None)
    torch.autograd.backward(tops[:, -1].sum())
    assert x.grad is not None
    norms = x.grad[..., 0].abs().mean(dim=0).flip(0)  # newest first
    return np.asarray((norms / norms[0]).clamp(min=1e-30).numpy())


def wild(seed: int) -> Recurring:
    """An RNN whose recurrent weights stretch."""
    torch.manual_seed(seed)
    model = Recurring("rnn", 1, HIDDEN, (1, 1))
    nn.init.orthogonal_(model.cell.net.get_parameter("weight_hh_l0"), gain=STRETCH)
    return model


def explode(kit: Kit, clip: float) -> Trace:
    """Train the wild RNN by plain gradient descent to say the mean of what it has seen."""
    generator = torch.Generator().manual_seed(kit.seed)
    updates = kit.full(UPDATES, 30)

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(updates):
            x = 0.1 * torch.randn(LANES, WILD, 1, generator=generator) + torch.randn(LANES, 1, 1, generator=generator)
            yield x, x.mean(dim=1, keepdim=True)[..., None]

    kit.progress.stage(f"gradients: exploding, {'clipped' if math.isfinite(clip) else 'not clipped'}")
    return fit(wild(kit.seed), pairs, F.mse_loss, updates=updates, learning_rate=0.1, clip=clip, last=True,
               plain=True, progress=kit.progress)  # fmt: skip


def first_number(n: int, gap: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A number, then `gap` messages of noise: x [n, gap + 1, 1], and the number again [n, 1, 1, 1]."""
    x = 0.3 * torch.randn(n, gap + 1, 1, generator=generator)
    x[:, 0, 0] = 2 * torch.rand(n, generator=generator) - 1
    return x, x[:, :1, :, None].clone()


def across(kit: Kit, kind: str, gap: int) -> tuple[Recurring, float]:
    """Train one cell to remember across a gap; its squared error relative to the variance."""
    torch.manual_seed(kit.seed)
    generator = torch.Generator().manual_seed(kit.seed)
    model = remembering(Recurring(kind, 1, HIDDEN, (1, 1)), gap)
    updates = kit.full(UPDATES, 20)

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(updates):
            yield first_number(LANES, gap, generator)

    kit.progress.stage(f"gradients: {kind.upper()} across {gap} messages")
    fit(model, pairs, F.mse_loss, updates=updates, learning_rate=RATE, clip=1.0, decay=True, last=True,
        progress=kit.progress)  # fmt: skip
    x, number = first_number(1000, gap, generator)
    with torch.no_grad():
        return model, float(F.mse_loss(model.roll(x, last=True)[0], number) / number.var())


def run(kit: Kit) -> Outcome:
    """The three lessons; the cells of the longest gap are served."""
    outcome = Outcome("gradients: vanishing, exploding, and a gap that tells cells apart")
    curves: dict[str, Floats] = {}
    for kind in KINDS:
        torch.manual_seed(kit.seed)
        curves[kind.upper()] = reach_back(Recurring(kind, 1, HIDDEN, (1, 1)), kit.seed)
    for kind in KINDS[1:]:
        torch.manual_seed(kit.seed)
        curves[f"{kind.upper()}, long gates"] = reach_back(
            remembering(Recurring(kind, 1, HIDDEN, (1, 1)), DISTANCE), kit.seed
        )
    for name, curve in curves.items():
        outcome.lines.append(Line(f"gradient left after 50 steps: {name}", f"{curve[50]:.1e}"))
    clips = {"not clipped": math.inf, "clipped at 1": 1.0}
    traces = {name: explode(kit, clip) for name, clip in clips.items()}
    outcome.lines += [ending(name, trace.losses, clips[name]) for name, trace in traces.items()]
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for gap in GAPS:
            model, error = across(kit, kind, gap)
            errors[kind].append(error)
        x, _ = first_number(kit.full(200, 10), GAPS[-1], torch.Generator().manual_seed(kit.seed + 1))
        outcome.served.append(_serve(kit, model, kind, x))
        outcome.lines.append(Line(f"the number {GAPS[-1]} messages ago, relative error: {kind.upper()}", error,
                                  at_least=FORGOTTEN if kind == "rnn" else None,
                                  at_most=None if kind == "rnn" else REMEMBERED))  # fmt: skip
    _plot(kit, curves, traces, errors)
    return outcome


def ending(name: str, losses: Sequence[float], clip: float) -> Line:
    """The loss at the end. It must be small only with clipping: without, the line shows what clipping is for."""
    what, tail = f"exploding RNN, {name}: loss at the end", float(np.mean(losses[-50:]))
    if math.isfinite(clip):
        return Line(what, tail, at_most=0.1)
    lost = int(np.argmin(np.isfinite(losses)))  # 0 where all are finite: by processor it overflows or is only huge
    return Line(what, f"not a number from update {lost}" if lost else tail)


def _serve(kit: Kit, model: Recurring, kind: str, x: Tensor) -> Served:
    names = Names(f"gap-{kind}", ["value"], ["first"], [])
    return deliver(model, names, x.numpy(), kit.out / f"{kind}.onnx", warmup=x.shape[1])


def _plot(kit: Kit, curves: dict[str, Floats], traces: dict[str, Trace], errors: dict[str, list[float]]) -> None:
    figure = canvas(11.5, 7.4)
    axes = figure.subplot_mosaic([["back", "gap"], ["loss", "norm"]])
    back, across_gap, loss, norm = (axes[name] for name in ("back", "gap", "loss", "norm"))
    for (name, curve), colour in zip(curves.items(), (*COLOURS[:3], *COLOURS[1:3]), strict=True):
        back.plot(curve, color=colour, label=name, ls="--" if "long" in name else "-")
    back.set_yscale("log")
    back.set_ylim(1e-20, 100)
    back.set_title("Vanishing: what the last answer's gradient leaves of a message")
    back.set_xlabel("steps back")
    back.set_ylabel("norm, relative to the last message's")
    back.legend(fontsize=9, loc="lower left")
    for (kind, error), colour, marker in zip(errors.items(), COLOURS, MARKERS, strict=False):
        across_gap.plot(GAPS, error, f"{marker}-", color=colour, label=kind.upper())
    across_gap.axhline(1, color=ACTUAL, lw=0.8, ls=DASHED)
    across_gap.text(GAPS[-1], 1.1, "1: no idea", ha="right", va="bottom", fontsize=9)
    across_gap.set_yscale("log")
    across_gap.set_ylim(3e-4, 4)
    across_gap.set_xticks(GAPS)
    across_gap.set_title("A number to be remembered across noise: gates do it")
    across_gap.set_xlabel("messages of noise after it")
    across_gap.set_ylabel("squared error / variance")
    across_gap.legend(loc="lower right", ncols=3, fontsize=9)
    for (name, trace), colour, style in zip(traces.items(), (COLOURS[1], COLOURS[0]), ("--", "-"), strict=True):
        loss.plot(trace.losses, color=colour, lw=1.2, ls=style, label=name)
        norm.plot(trace.norms, color=colour, lw=1.2, ls=style, label=name)
    norm.axhline(1, color=ACTUAL, lw=0.8, ls=DASHED)
    loss.set_title("Exploding: an RNN that stretches, with and without clipping")
    loss.set_ylabel("loss")
    norm.set_title("Its gradient, before it is clipped")
    norm.set_ylabel("norm (dashed: where it is clipped)")
    for axis in (loss, norm):
        axis.set_yscale("log")
        axis.set_xlabel("update")
        axis.legend(fontsize=9)
    kit.save(figure)
