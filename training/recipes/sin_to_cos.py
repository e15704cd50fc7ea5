"""`sin-to-cos`: the sine comes in, the cosine goes out.

No single value of the sine gives the cosine's sign, so the state must carry the direction. 100 windows of 10 steps,
each seen once and in order, the state carried: the network learns while the stream goes by. `fit.gif` shows it live.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tidecast.training.export.parity import Floats
from tidecast.training.recipes.parts.loop import fit
from tidecast.training.recipes.parts.serving import Names, deliver
from tidecast.training.recipes.parts.show import ACCENT, ACTUAL, DASHED, INK, Kit, Line, Outcome, canvas
from tidecast.training.recipes.parts.steps import Recurring

HIDDEN, WINDOW, WINDOWS, RATE = 32, 10, 100, 0.02
AFTER = 200  # steps served that come after the training


def run(kit: Kit) -> Outcome:
    """One pass over the stream, then serve all of it and what comes after."""
    torch.manual_seed(kit.seed)
    windows = kit.full(WINDOWS, 20)
    angle = torch.linspace(0, math.pi * windows, WINDOW * windows + 1)[:-1]  # half a turn in each window
    x, truth = angle.sin()[:, None], angle.cos()[:, None]  # [steps, 1]
    model = Recurring("rnn", 1, HIDDEN, (1, 1))

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(x), WINDOW):
            yield x[None, start : start + WINDOW], truth[None, start : start + WINDOW, None]

    live: list[Floats] = []  # what was answered at the time, window by window
    kit.progress.stage("sin-to-cos: training")
    trace = fit(model, pairs, F.mse_loss, updates=windows, learning_rate=RATE, carry=True, progress=kit.progress,
                watch=lambda update, out: live.append(out[0, :, 0, 0].numpy()))  # fmt: skip
    kit.progress.stage("sin-to-cos: serving")
    more = torch.cat([angle, angle[-1] + math.pi / WINDOW * torch.arange(1, AFTER + 1)])
    served = deliver(model, Names("sin-to-cos", ["sin"], ["cos"], []), more.sin()[None, :, None].numpy(),
                     kit.out / "model.onnx")  # fmt: skip
    error = served.y[0, :, 0, 0, 0] - more.cos().numpy()
    outcome = Outcome("sin-to-cos: RNN, hidden 32, 100 windows of 10, each seen once, lr 0.02", served=[served])
    outcome.lines += [
        Line("MSE of the first 10 windows, as they came", float(np.mean(trace.losses[:10])), "a plot"),
        Line("MSE of the last 10 windows, as they came", float(np.mean(trace.losses[-10:])), "a plot", at_most=0.01),
        Line(f"served MSE of the {AFTER} steps after the training", float(np.mean(error[-AFTER:] ** 2)), at_most=0.01),
    ]

    figure = canvas(11, 6)
    bands = figure.subplots(3, 1, height_ratios=(3, 2, 3))
    turns, then = angle.numpy() / math.pi, np.concatenate(live)
    for axis, shown, title in (
        (bands[0], slice(0, 20 * WINDOW), "The first 20 windows, answered while learning"),
        (
            bands[2],
            slice(-20 * WINDOW, None),
            "The last 20 windows: the state holds the direction that no single value shows",
        ),
    ):
        axis.plot(turns[shown], x.numpy()[shown, 0], color=ACCENT, lw=0.9, alpha=0.6, ls=":", label="sine, the input")
        axis.plot(turns[shown], truth.numpy()[shown, 0], color=ACTUAL, lw=1, ls=DASHED, label="cosine, the truth")
        axis.plot(turns[shown], then[shown], color=INK, lw=1.6, label="answer")
        axis.set_title(title)
        axis.set_ylim(-1.7, 1.7)
        axis.margins(x=0.01)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    bands[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98))
    bands[1].plot(np.arange(windows) + 0.5, trace.losses, color=INK)
    bands[1].set_yscale("log")
    bands[1].margins(x=0.01)
    bands[1].set_ylabel("MSE")
    bands[1].set_title("Mean squared error of each window, before it was learned from")
    bands[2].set_xlabel("window")
    kit.save(figure)
    _animate(kit, turns, truth.numpy()[:, 0], then)
    return outcome


def _animate(kit: Kit, turns: NDArray[Any], truth: Floats, then: Floats) -> None:
    """The fit as it happened: the last ten windows of each moment."""
    figure = canvas(8, 2.6)
    axis = figure.subplots()
    axis.plot(turns, truth, color=ACTUAL, lw=1, ls=DASHED)
    (line,) = axis.plot([], [], color=INK, lw=2)
    axis.set_ylim(-1.6, 1.6)
    axis.set_xlabel("window")
    windows = len(then) // WINDOW
    writer = PillowWriter(fps=12)
    with writer.saving(figure, str(kit.out / "fit.gif"), dpi=70):
        for window in range(1, windows + 1):
            line.set_data(turns[: window * WINDOW], then[: window * WINDOW])
            axis.set_xlim(max(0, window - 10), max(10, window))
            axis.set_title(f"window {window}: the cosine (dashed) and the answers")
            writer.grab_frame()
