"""`sine-windows`: what carrying the state from window to window buys.

A sine is cut into 95 windows of 5 values; each value is answered with the next. One network carries its state from
window to window (without its gradient), its twin begins each window with an empty state. One value of a sine does not
show whether it rises or falls, so the twin must guess at the start of every window.

The rate is 0.01 at its highest and falls to 0: held at 0.01, the loss with the state carried jumps up now and then.
`epochs.csv` has the total loss of every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tidecast.training.recipes.parts.loop import Trace, fit
from tidecast.training.recipes.parts.serving import Names, deliver
from tidecast.training.recipes.parts.show import ACCENT, ACTUAL, DASHED, INK, Kit, Line, Outcome, canvas
from tidecast.training.recipes.parts.steps import Recurring

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
    for epoch in sorted({1, 2, epochs // 20, epochs // 10, epochs // 5, epochs // 2, epochs} - {0}):
        ours, theirs = with_state.totals[epoch - 1], without.totals[epoch - 1]
        outcome.lines.append(Line(f"total loss of epoch {epoch}", f"{ours:.4f}  (stateless {theirs:.4f})"))
    table = "".join(
        f"{n},{a:.6g},{b:.6g}\n" for n, (a, b) in enumerate(zip(with_state.totals, without.totals, strict=True), 1)
    )
    (kit.out / "epochs.csv").write_text("epoch,carried,stateless\n" + table, "utf-8")  # the total loss of each
    gain = float(np.mean(cut**2) / np.mean(carried**2))
    outcome.lines += [
        Line("served MSE, state carried", float(np.mean(carried**2))),
        Line("served MSE, stateless", float(np.mean(cut**2))),
        Line("what carrying buys: stateless / carried", gain, at_least=10.0, unit=" ×"),
    ]

    figure = canvas(11, 6.4)
    axes = figure.subplot_mosaic([["loss", "place"], ["answers", "answers"]], width_ratios=(3, 2))
    left, right, axis = axes["loss"], axes["place"], axes["answers"]
    for trace, label, colour, style in ((without, "stateless", ACCENT, "--"), (with_state, "state carried", INK, "-")):
        left.plot(np.arange(1, epochs + 1), trace.totals, color=colour, ls=style, label=label)
    left.set_yscale("log")
    left.set_xlabel("epoch")
    left.set_ylabel("total loss (sum over 95 windows)")
    left.set_title("Carrying the state: the loss keeps falling")
    left.legend()
    place = np.arange(1, WINDOW + 1)
    right.plot(place, np.sqrt(np.mean(cut**2, axis=0)), "s--", color=ACCENT, label="stateless")
    right.plot(place, np.sqrt(np.mean(carried**2, axis=0)), "o-", color=INK, label="state carried")
    right.set_xticks(place)
    right.set_xlabel("place in the window")
    right.set_ylabel("served error, RMSE")
    right.set_yscale("log")
    right.set_title("Without it, each window begins blind")
    right.legend()
    shown = slice(-2 * PERIOD, None)
    at = np.arange(len(x))[shown]
    axis.plot(at, truth.numpy()[shown, 0], color=ACTUAL, lw=1, ls=DASHED, label="the next value")
    axis.plot(at, pieces.y.ravel()[shown], color=ACCENT, marker="s", ms=3, lw=1, label="stateless")
    axis.plot(at, whole.y.ravel()[shown], color=INK, marker=".", lw=1.2, label="state carried")
    for edge in range(int(at[0]) // WINDOW * WINDOW, len(x) + 1, WINDOW):
        axis.axvline(edge - 0.5, color=ACTUAL, lw=0.4, alpha=0.4)
    axis.set_xlabel("message (grey lines: where a window ends)")
    axis.set_ylabel("answer")
    axis.margins(x=0.01)
    axis.set_title("What the worker answers")
    axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    kit.save(figure)
    return outcome
