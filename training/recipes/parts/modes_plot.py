"""The plot of the modes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tidecast.training.export.parity import Floats
from tidecast.training.recipes.parts.serving import Served
from tidecast.training.recipes.parts.show import ACTUAL, BAND, COLOURS, DASHED, INK, MARKERS, canvas


def draw_modes(tasks: list[tuple[str, str]], panels: list[tuple[Floats, Floats, Served]]) -> Figure:
    """One panel for each (mode, task) with its (x, truth, served), and one that says what the modes are."""
    figure = canvas(11.5, 7.2)
    one, wave, last, every, coded, drawing = figure.subplots(2, 3).ravel()
    for axis, (mode, what) in zip((one, wave, last, every, coded), tasks, strict=True):
        axis.set_title(f"{mode}\n{what}", fontsize=10)

    x, truth, served = panels[0]
    order = np.argsort(x, axis=None)
    one.plot(x.ravel()[order], truth.ravel()[order], color=ACTUAL, lw=1, ls=DASHED, label="truth")
    one.plot(x.ravel()[order][::9], served.y.ravel()[order][::9], ".", ms=3, color=INK, label="served")
    one.set_ylim(-2.1, 0.8)
    one.set_xlabel("message")
    one.set_ylabel("answer")
    one.legend(loc="lower center", ncols=2, fontsize=9)

    x, truth, served = panels[1]
    for row, colour, marker in zip((int(x.argmin()), 0, int(x.argmax())), COLOURS, MARKERS, strict=False):
        wave.plot(np.arange(1, truth.shape[2] + 1), truth[row, 0, :, 0], color=ACTUAL, lw=1, ls=DASHED)
        wave.plot(np.arange(1, truth.shape[2] + 1), served.y[row, 0, :, 0, 0], marker, ms=4, color=colour,
                  label=f"{x[row, 0, 0]:.2f}")  # fmt: skip
    wave.set_ylim(-2.1, 1.15)
    wave.set_xlabel("place in the one answer")
    wave.legend(title="frequency, the message (dashed: truth)", title_fontsize=9, fontsize=9, ncols=3,
                loc="lower center")  # fmt: skip

    x, truth, served = panels[2]
    at = np.arange(1, x.shape[1] + 1)
    wrong = 100 * np.mean((served.y[..., 1] > 0.5) != truth, axis=0)  # [messages]
    last.plot(at, wrong, "o-", color=BAND, label="before: does not count")
    last.plot(at[-1], wrong[-1], "o", ms=8, color=INK, label=f"after the last message: {wrong[-1]:.1f} %")
    last.axhline(50, color=ACTUAL, lw=1, ls=DASHED, label="a coin: 50 %")
    last.set_xlabel("messages so far")
    last.set_ylabel("wrong answers (%)")
    last.set_ylim(-3, 80)
    last.legend(fontsize=9, loc="lower left")

    x, truth, served = panels[3]
    every.bar(at, x[0, :, 0], color=BAND, alpha=0.6, label="message")
    every.plot(at, truth[0, :, 0, 0], color=ACTUAL, lw=1, ls=DASHED, label="truth")
    every.plot(at, served.y[0, :, 0, 0, 0], ".", color=INK, label="served")
    every.set_xlabel("message number")
    every.legend(fontsize=9, ncols=3, loc="upper center")
    every.set_ylim(0, 1.25 * float(truth[0].max()))

    x, truth, served = panels[4]
    read, write = x.shape[1], truth.shape[2]
    for row, colour, marker in zip(range(2), COLOURS, MARKERS, strict=False):
        coded.plot(np.arange(1, read + 1), x[row, :, 0], f"{marker}-", ms=4, lw=0.8, color=colour, alpha=0.5)
        out = np.arange(read + 1, read + write + 1)
        coded.plot(out, truth[row, 0, :, 0], color=ACTUAL, lw=1, ls=DASHED)
        coded.plot(out, served.y[row, -1, :, 0, 0], marker, ms=6, color=colour)
    coded.axvspan(read + 0.5, read + write + 0.5, color=BAND, alpha=0.2, lw=0)
    coded.text(read + 0.7, 1.06, "written (line: truth)", fontsize=9)
    coded.text(1, 1.06, "read", fontsize=9)
    coded.set_xlim(0.5, read + write + 0.5)
    coded.set_ylim(-0.05, 1.15)
    coded.set_xlabel("place in the sequence")

    _shapes(drawing, [mode for mode, _ in tasks])
    return figure


def _shapes(axis: Axes, modes: list[str]) -> None:
    """Which messages there are (below) and which answers count (above), for each mode."""
    axis.axis("off")
    axis.set_title("messages (light, below) and\nanswers that count (dark, above)", fontsize=10)
    for row, (mode, ins, outs) in enumerate(
        zip(modes, ([0], [0], range(4), range(4), range(4)), ([0], range(4), [3], range(4), range(4, 7)), strict=True)
    ):
        level = -2.2 * row
        axis.text(-0.6, level, mode, ha="right", va="center", fontsize=9)
        axis.plot(list(ins), [level - 0.5] * len(ins), "s", color=BAND, ms=8)
        axis.plot(list(outs), [level + 0.5] * len(outs), "s", color=INK, ms=8)
    axis.set_xlim(-4.5, 7.5)
