"""`sine-windows`: what carrying the state from window to window buys.

A sine is cut into 95 windows of 5 values; each value is answered with the next. One network goes on from window to
window with the state that the last one left (without its gradient), its twin begins each window knowing nothing. One
value of a sine does not say whether it rises or falls: the twin must guess at the start of every window, for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.recipes.parts.loop import Trace, fit
from training.recipes.parts.serving import Names, deliver
from training.recipes.parts.show import ACCENT, ACTUAL, INK, Kit, Line, Outcome, canvas
from training.recipes.parts.steps import Recurring

HIDDEN, WINDOW, WINDOWS, EPOCHS, RATE = 10, 5, 95, 100, 0.01
PERIOD = 40  # values


def run(kit: Kit) -> Outcome:
    """Train both, serve both: the twin's windows are series of their own."""
    values = torch.sin(2 * math.pi / PERIOD * torch.arange(WINDOW * WINDOWS + 1))
    x, truth = values[:-1, None], values[1:, None]  # [values, 1]
    epochs = kit.full(EPOCHS, 4)

    def train(carry: bool) -> tuple[Recurring, Trace]:
        torch.manual_seed(kit.seed)  # twins: the same first weights
        model = Recurring("rnn", 1, HIDDEN, (1, 1))

        def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for window in range(0, len(x), WINDOW):
                yield x[None, window : window + WINDOW], truth[None, window : window + WINDOW, None]

        kit.progress.stage(f"sine-windows: {'state carried' if carry else 'stateless'}")
        trace = fit(model, pairs, F.mse_loss, updates=epochs * WINDOWS, epochs=epochs, learning_rate=RATE,
                    carry=carry, clip=1.0, decay=True, progress=kit.progress)  # fmt: skip
        return model, trace

    stateful, with_state = train(carry=True)
    stateless, without = train(carry=False)
    kit.progress.stage("sine-windows: serving")
    names = Names("sine-windows", ["value"], ["next"], [])
    whole = deliver(stateful, names, x.numpy()[None], kit.out / "model.onnx")  # one series, 475 messages
    pieces = deliver(stateless, names, x.numpy().reshape(WINDOWS, WINDOW, 1), kit.out / "stateless.onnx")

    wanted = truth.numpy().reshape(WINDOWS, WINDOW)
    carried = whole.y.reshape(WINDOWS, WINDOW) - wanted  # [windows, place in the window]
    cut = pieces.y.reshape(WINDOWS, WINDOW) - wanted
    outcome = Outcome(
        "sine-windows: RNN, hidden 10, 95 windows of 5, Adam 0.01 falling to 0, 100 epochs", served=[whole, pieces]
    )
    for epoch in sorted({1, epochs // 10, epochs // 2, epochs} - {0}):
        ours, theirs = with_state.totals[epoch - 1], without.totals[epoch - 1]
        outcome.lines.append(Line(f"total loss of epoch {epoch}", f"{ours:.4f}  (stateless {theirs:.4f})", "no figure"))
    gain = float(np.mean(cut**2) / np.mean(carried**2))
    outcome.lines += [
        Line("served MSE, state carried", float(np.mean(carried**2))),
        Line("served MSE, stateless", float(np.mean(cut**2))),
        Line("what carrying buys: stateless / carried", gain, at_least=10.0, unit=" ×"),
    ]

    figure = canvas(11, 6.4)
    axes = figure.subplot_mosaic([["loss", "place"], ["answers", "answers"]], width_ratios=(3, 2))
    left, right, axis = axes["loss"], axes["place"], axes["answers"]
    for trace, label, colour in ((without, "stateless", ACCENT), (with_state, "state carried", INK)):
        left.plot(np.arange(1, epochs + 1), trace.totals, color=colour, label=label)
    left.set_yscale("log")
    left.set_xlabel("epoch")
    left.set_title("total loss of each epoch (sum over 95 windows)")
    left.legend()
    place = np.arange(1, WINDOW + 1)
    right.bar(place - 0.2, np.sqrt(np.mean(cut**2, axis=0)), 0.4, color=ACCENT, label="stateless")
    right.bar(place + 0.2, np.sqrt(np.mean(carried**2, axis=0)), 0.4, color=INK, label="state carried")
    right.set_xlabel("place in the window")
    right.set_title("served error (RMSE): the start is where it hurts")
    right.legend()
    shown = slice(-2 * PERIOD, None)
    at = np.arange(len(x))[shown]
    axis.plot(at, truth.numpy()[shown, 0], color=ACTUAL, lw=1, ls=(0, (3, 1.5)), label="the next value")
    axis.plot(at, pieces.y.ravel()[shown], color=ACCENT, marker=".", lw=1, label="stateless")
    axis.plot(at, whole.y.ravel()[shown], color=INK, marker=".", lw=1.2, label="state carried")
    for edge in range(int(at[0]) // WINDOW * WINDOW, len(x) + 1, WINDOW):
        axis.axvline(edge - 0.5, color=ACTUAL, lw=0.4, alpha=0.4)
    axis.set_title("what the worker answers; lines are where a window ends")
    axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    kit.save(figure)
    return outcome
