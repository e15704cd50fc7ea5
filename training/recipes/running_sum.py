"""`running-sum`: an LSTM that adds each number to the one before it, [a, b, c, d] -> [a, a+b, b+c, c+d]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tidecast.training.recipes.parts.loop import fit
from tidecast.training.recipes.parts.serving import Names, deliver
from tidecast.training.recipes.parts.show import ACCENT, ACTUAL, DASHED, GREEN, INK, Kit, Line, Outcome, canvas
from tidecast.training.recipes.parts.steps import Recurring

HIDDEN, LENGTH, STEPS = 10, 4, 900
LANES, RATE, CLIP = 64, 0.03, 1.0
PUBLISHED_MSE, REACH = 0.886, 0.01
ASKED = ([1, 2, 3, 4], [4, 5, 6, 7])
PUBLISHED = ([0.87, 2.79, 5.31, 7.30], [4.07, 9.08, 11.94, 12.94])


def sums(numbers: Tensor) -> Tensor:
    """[n, steps, 1] -> [n, steps, 1, 1]: each number and the one before it."""
    return (numbers + F.pad(numbers[:, :-1], (0, 0, 1, 0)))[..., None]


def run(kit: Kit) -> Outcome:
    """Train for 900 updates, serve fresh sequences and the two published examples."""
    generator = torch.Generator().manual_seed(kit.seed)
    torch.manual_seed(kit.seed)

    def draw(n: int) -> Tensor:
        return 10 * torch.rand(n, LENGTH, 1, generator=generator)  # any numbers from 0 to 10

    model = Recurring("lstm", 1, HIDDEN, (1, 1))
    sample = draw(1000)
    model.scale_to(sample, sums(sample)[..., 0])
    updates = kit.full(STEPS, 60)

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(updates):
            x = draw(LANES)
            yield x, sums(x)

    kit.progress.stage("running-sum: training")
    trace = fit(model, pairs, F.mse_loss, updates=updates, learning_rate=RATE, clip=CLIP, decay=True,
                progress=kit.progress)  # fmt: skip
    kit.progress.stage("running-sum: serving")
    x = torch.cat([torch.tensor(ASKED, dtype=torch.float32)[..., None], draw(kit.full(500, 20))])
    served = deliver(model, Names("running-sum", ["value"], ["sum"], []), x.numpy(), kit.out / "model.onnx")

    y, truth = served.y[..., 0, 0, 0], sums(x)[..., 0, 0].numpy()  # [series, steps]
    outcome = Outcome(
        f"running-sum: LSTM, hidden 10, 900 updates of {LANES} fresh sequences; numbers from 0 to 10", served=[served]
    )
    outcome.lines.append(Line("MSE on numbers never seen", float(np.mean((y[2:] - truth[2:]) ** 2)), f"{PUBLISHED_MSE}",
                              at_most=REACH))  # fmt: skip
    for row, (asked, published) in enumerate(zip(ASKED, PUBLISHED, strict=True)):
        got = ", ".join(f"{v:.2f}" for v in y[row])
        wanted = ", ".join(f"{v:g}" for v in truth[row])
        outcome.lines.append(Line(f"{asked} → [{wanted}]", f"[{got}]", f"[{', '.join(f'{v:.2f}' for v in published)}]"))

    figure = canvas(11, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 3))
    left.plot(trace.losses, color=INK, lw=1)
    for level, what, colour in ((PUBLISHED_MSE, "published", ACCENT), (REACH, "to reach", GREEN)):
        left.axhline(level, color=colour, lw=1, ls="--")
        left.annotate(f"{what} after {STEPS}: {level:g}", (0.99, level), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", color=colour, fontsize=9)  # fmt: skip
    left.set_yscale("log")
    left.set_xlabel("update")
    left.set_ylabel("mean squared error")
    below = int(np.argmax(np.array(trace.losses) < PUBLISHED_MSE))
    left.set_title(f"Below the published error after {below} updates" if below else "Mean squared error of each update")
    right.axhline(0, color=ACTUAL, lw=0.8, ls=DASHED)
    right.plot(
        truth[2:].ravel(), (y - truth)[2:].ravel(), ".", ms=2.5, color=INK, alpha=0.35, label="numbers never seen"
    )
    for row, (published, marker) in enumerate(zip(PUBLISHED, ("^", "s"), strict=True)):
        what = f"[{', '.join(map(str, ASKED[row]))}]"
        right.plot(truth[row], published - truth[row], marker, color=ACCENT, label=f"{what}, published")
        right.plot(truth[row], (y - truth)[row], marker, color=INK, mfc="white", label=f"{what}, ours")
    right.set_xlabel("true sum")
    right.set_ylabel("answer − true sum")
    right.set_title("What the worker answers: how far off")
    right.legend(fontsize=9)
    kit.save(figure)
    return outcome
