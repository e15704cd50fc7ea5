"""The plot of the modes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.gate import Floats
from training.recipes.parts.serving import Served
from training.recipes.parts.show import ACCENT, ACTUAL, BAND, COLOURS, INK, canvas


def draw_modes(tasks: list[tuple[str, str]], panels: list[tuple[Floats, Floats, Served]]) -> Figure:
    """One panel for each (mode, task) with its (x, truth, served), and one that says what the modes are."""
    figure = canvas(11, 6.8)
    one, wave, last, every, coded, drawing = figure.subplots(2, 3).ravel()
    for axis, (mode, what) in zip((one, wave, last, every, coded), tasks, strict=True):
        axis.set_title(f"{mode}\n{what}", fontsize=9)

    x, truth, served = panels[0]
    order = np.argsort(x, axis=None)
    one.plot(x.ravel()[order], truth.ravel()[order], color=ACTUAL, lw=1, ls=(0, (3, 1.5)), label="truth")
    one.plot(x.ravel()[order][::9], served.y.ravel()[order][::9], ".", ms=3, color=INK, label="served")
    one.legend(loc="lower center", ncols=2, fontsize=8.5)

    x, truth, served = panels[1]
    for row, colour in zip((int(x.argmin()), 0, int(x.argmax())), COLOURS, strict=False):
        wave.plot(np.arange(1, truth.shape[2] + 1), truth[row, 0, :, 0], color=ACTUAL, lw=1, ls=(0, (3, 1.5)))
        wave.plot(
            np.arange(1, truth.shape[2] + 1), served.y[row, 0, :, 0, 0], ".-", color=colour, label=f"{x[row, 0, 0]:.2f}"
        )
    wave.set_ylim(-1.5, 1.15)
    wave.legend(title="frequency", fontsize=8.5, ncols=3, loc="lower center")

    x, truth, served = panels[2]
    for row in range(min(12, len(x))):
        colour = INK if truth[row, 0] else ACCENT
        last.plot(np.arange(1, x.shape[1] + 1), served.y[row, :, 1], color=colour, lw=0.9, alpha=0.7)
    last.set_xlabel("messages so far")
    last.set_ylabel("P(smallest first)")
    last.set_ylim(-0.02, 1.2)
    last.text(1, 1.1, "the smallest was first", color=INK, fontsize=8.5)
    last.text(x.shape[1], 1.1, "the largest was", color=ACCENT, fontsize=8.5, ha="right")

    x, truth, served = panels[3]
    at = np.arange(1, x.shape[1] + 1)
    every.bar(at, x[0, :, 0], color=BAND, alpha=0.6, label="number")
    every.plot(at, truth[0, :, 0, 0], color=ACTUAL, lw=1, ls=(0, (3, 1.5)), label="truth")
    every.plot(at, served.y[0, :, 0, 0, 0], ".", color=INK, label="served")
    every.legend(fontsize=8.5, ncols=3)
    every.set_ylim(0, 3.1)

    x, truth, served = panels[4]
    read, write = x.shape[1], truth.shape[2]
    for row, colour in zip(range(3), COLOURS, strict=False):
        coded.plot(np.arange(1, read + 1), x[row, :, 0], "o-", ms=3, lw=0.8, color=colour, alpha=0.5)
        out = np.arange(read + 1, read + write + 1)
        coded.plot(out, truth[row, 0, :, 0], color=ACTUAL, lw=1, ls=(0, (3, 1.5)))
        coded.plot(out, served.y[row, -1, :, 0, 0], "o", ms=4, color=colour)
    coded.axvspan(read + 0.5, read + write + 0.5, color=BAND, alpha=0.2, lw=0)
    coded.text(read + 0.7, 1.06, "written", fontsize=8.5)
    coded.text(1, 1.06, "read", fontsize=8.5)
    coded.set_ylim(-0.05, 1.15)

    _shapes(drawing, [mode for mode, _ in tasks])
    return figure


def _shapes(axis: Axes, modes: list[str]) -> None:
    """Which messages there are (below) and which answers count (above), for each mode."""
    axis.axis("off")
    axis.set_title("messages (below), answers that count (above)", fontsize=9)
    for row, (mode, ins, outs) in enumerate(
        zip(modes, ([0], [0], range(4), range(4), range(4)), ([0], range(4), [3], range(4), range(4, 7)), strict=True)
    ):
        level = -2.2 * row
        axis.text(-0.6, level, mode, ha="right", va="center", fontsize=9)
        axis.plot(list(ins), [level - 0.5] * len(ins), "s", color=BAND, ms=8)
        axis.plot(list(outs), [level + 0.5] * len(outs), "s", color=INK, ms=8)
    axis.set_xlim(-4.5, 7.5)
