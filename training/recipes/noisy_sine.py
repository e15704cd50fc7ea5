"""`noisy-sine`: sin(0.01 i) + N(0, 0.2), the last four values -> the next, and on from there.

A 4-10-1 MLP and a many-to-one RNN over the same four values. No forecast of the next value can have an error below the
noise itself, 0.2. Further ahead, each is fed its own forecasts. Four noisy values say little about the slope. So a
third network, a GRU, is not limited to four values: it carries its state from message to message.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tidecast.training.export.parity import Floats
from tidecast.training.recipes.parts.loop import fit
from tidecast.training.recipes.parts.serving import Names, Served, deliver
from tidecast.training.recipes.parts.show import ACTUAL, BAND, COLOURS, DASHED, STYLES, Kit, Line, Outcome, canvas
from tidecast.training.recipes.parts.steps import Recurring, Step, Windowed

POINTS, TRAIN, WIDTH, NOISE = 1_000, 600, 4, 0.2
HORIZON = 12  # steps ahead; the graph holds each of them
HIDDEN, BATCH, RATE = 10, 32, 0.005


class ManyToOne(nn.Module):
    """An RNN over the window from an empty state, [n, width] -> [n, 1]: the answer after the last value."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again = nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Value by value."""
        hidden = torch.tanh(self.into(values[:, :1]))
        for place in range(1, values.shape[1]):
            hidden = torch.tanh(self.into(values[:, place : place + 1]) + self.again(hidden))
        return torch.as_tensor(self.head(hidden))


def run(kit: Kit) -> Outcome:
    """Train on 600 points, serve all 1,000, score forecasts of the last 400."""
    clean = np.sin(0.01 * np.arange(POINTS)).astype(np.float32)
    noisy = clean + np.random.default_rng(kit.seed).normal(0, NOISE, POINTS).astype(np.float32)
    values = torch.from_numpy(noisy[:TRAIN])
    windows = values.unfold(0, WIDTH + 1, 1)  # [n, window and the next]
    x, truth = windows[:, :WIDTH, None], windows[:, WIDTH:, None, None]
    horizon = kit.full(HORIZON, 3)
    ahead = values.unfold(0, horizon, 1)[None, 1:, :, None]  # [1, steps, horizon, 1]
    epochs, shuffled = kit.full(100, 3), torch.Generator().manual_seed(kit.seed)

    def cut(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=shuffled)
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            yield x[rows], truth[rows]

    torch.manual_seed(kit.seed)
    served: dict[str, Served] = {}
    mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    for name, body in (("MLP 4-10-1", mlp), ("RNN over 4 values", ManyToOne())):
        kit.progress.stage(f"noisy-sine: {name}")
        models = [Windowed(body, WIDTH, steps) for steps in (1, horizon)]  # trained on the next, served on and on
        for model in models:
            model.scale_to(values[:, None], values[:, None])
        fit(models[0], cut, F.mse_loss, updates=epochs * -(-len(x) // BATCH), epochs=epochs, learning_rate=RATE,
            last=True, decay=True, progress=kit.progress)  # fmt: skip
        served[name] = _serve(kit, models[1], name, noisy)
    name = "GRU, state carried"
    kit.progress.stage(f"noisy-sine: {name}")
    carried = Recurring("gru", 1, HIDDEN, (horizon, 1))
    carried.scale_to(values[:, None], values[:, None])
    whole = [(values[None, : ahead.shape[1], None], ahead)]
    fit(carried, lambda epoch: whole, F.mse_loss, updates=3 * epochs, epochs=3 * epochs, learning_rate=2 * RATE,
        clip=1.0, decay=True, progress=kit.progress)  # fmt: skip
    served[name] = _serve(kit, carried, name, noisy)
    return _judge(kit, served, noisy, clean)


def _serve(kit: Kit, model: Step, name: str, noisy: Floats) -> Served:
    model_name = name.split()[0].strip(",").lower()
    names = Names(f"noisy-sine-{model_name}", ["value"], ["value"], [])
    return deliver(model, names, noisy[None, :, None], kit.out / f"{model_name}.onnx", warmup=WIDTH, gate_steps=100)


def _judge(kit: Kit, served: dict[str, Served], noisy: Floats, clean: Floats) -> Outcome:
    horizon = next(iter(served.values())).y.shape[2]
    origins = np.arange(TRAIN - 1, POINTS - horizon)  # each forecast is of test rows only
    targets = origins[:, None] + np.arange(1, horizon + 1)  # [origins, horizon]
    forecasts = {name: one.y[0, origins, :, 0, 0] for name, one in served.items()}
    forecasts["last value"] = np.repeat(noisy[origins, None], horizon, axis=1)
    floor = np.sqrt(np.mean((noisy - clean)[targets] ** 2, axis=0))  # [horizon] nobody can do better
    errors = {name: np.sqrt(np.mean((y - noisy[targets]) ** 2, axis=0)) for name, y in forecasts.items()}
    outcome = Outcome(
        f"noisy-sine: RMSE on the {POINTS - TRAIN} test points, none of them seen in training; the noise is {NOISE}",
        served=[*served.values()],
    )
    for label, lead in (("one step ahead", 1), (f"{horizon} steps ahead", horizon)):
        outcome.lines.append(Line(f"{label}: noise floor, in these rows", float(floor[lead - 1])))
        for name, error in errors.items():
            outcome.lines.append(Line(f"{label}: {name}", float(error[lead - 1])))

    _plot(kit, served, noisy, clean, errors, floor)
    return outcome


def _plot(
    kit: Kit, served: dict[str, Served], noisy: Floats, clean: Floats, errors: dict[str, Floats], floor: Floats
) -> None:
    horizon = len(floor)
    figure = canvas(11, 7)
    axes = figure.subplot_mosaic([["forecasts", "forecasts"], ["leads", "next"]], height_ratios=(5, 4))
    axis, left, right = axes["forecasts"], axes["leads"], axes["next"]
    at = np.arange(TRAIN, POINTS)
    axis.plot(at, noisy[TRAIN:], ".", ms=3.5, color=BAND, label="what is seen")
    axis.plot(at, clean[TRAIN:], color=ACTUAL, lw=1, ls=DASHED, label="the sine under it")
    for (name, one), colour in zip(served.items(), COLOURS, strict=False):
        for number, origin in enumerate(range(TRAIN, POINTS - horizon + 1, 25)):
            axis.plot(np.arange(origin, origin + horizon), one.y[0, origin - 1, :, 0, 0], color=colour, lw=2.2,
                      label=name if number == 0 else None)  # fmt: skip
    axis.set_title(
        f"Four noisy values do not tell where the sine is going: {horizon} steps ahead, from every 25th point"
    )
    axis.set_xlabel("point (training ended at 600)")
    axis.margins(x=0.01)
    axis.legend(loc="lower center", ncols=2, fontsize=9)
    leads = np.arange(1, horizon + 1)
    for (name, error), colour, style in zip(errors.items(), COLOURS, STYLES, strict=True):
        left.plot(leads, error, color=colour, ls=style, label=name)
    left.plot(leads, floor, color=ACTUAL, lw=1, ls=DASHED, label="noise floor")
    left.set_ylim(bottom=0)
    left.set_xlabel("steps ahead")
    left.set_ylabel("RMSE, test points")
    left.set_title("Fed their own forecasts, errors grow")
    left.legend(fontsize=9, ncols=2)
    for (name, one), colour, style in zip(served.items(), COLOURS, STYLES, strict=False):
        right.plot(at, one.y[0, TRAIN - 1 : -1, 0, 0, 0] - clean[TRAIN:], color=colour, ls=style, lw=1, label=name)
    right.axhline(0, color=ACTUAL, lw=0.8)
    right.set_xlabel("point")
    right.set_ylabel("forecast − sine")
    right.set_title("The next value: what is left of the noise")
    kit.save(figure)
