"""`modes`: the five shapes of sequence learning, each on a small task that needs it.

| mode | task |
|---|---|
| one-to-one | x -> sin(3x) x: each message answered from itself alone |
| one-to-many | one frequency -> the 12 values of that wave |
| many-to-one | 8 numbers -> which came first, the largest or the smallest; the class after the last message |
| many-to-many | each number answered with the sum of the last three |
| encoder-decoder | 6 numbers in, then the last 4 out, backwards |

The worker sees each as one message after another. The last three are compared with a fit that sees only the
message it answers. One-to-one is the only one that needs no memory, inside or between messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tidecast.training.export.parity import Floats
from tidecast.training.recipes.parts.loop import fit
from tidecast.training.recipes.parts.modes_plot import draw_modes
from tidecast.training.recipes.parts.serving import Names, Served, deliver
from tidecast.training.recipes.parts.show import Kit, Line, Outcome
from tidecast.training.recipes.parts.steps import EncoderDecoder, Memoryless, Recurring, Step

LANES, RATE = 128, 0.01
NUMBERS, WAVE, READ, WRITE, SPAN = 8, 12, 6, 4, 3


@dataclass(frozen=True, slots=True)
class Task:
    """One mode: the network, and n examples of what it must answer; `last` = only after the last message."""

    mode: str
    what: str
    make: Callable[[], Step]
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    steps: int  # updates
    last: bool = True


def _one_to_one(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 4 * torch.rand(n, 4, 1, generator=generator) - 2
    return x, (torch.sin(3 * x) * x)[..., None]


def _one_to_many(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    frequency = 0.2 + 0.8 * torch.rand(n, 1, 1, generator=generator)  # radians a step
    return frequency, torch.sin(frequency * torch.arange(1, WAVE + 1))[..., None]


def _many_to_one(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, NUMBERS, 1, generator=generator)
    return x, (x.argmin(dim=1) < x.argmax(dim=1)).long()  # [n, 1] 1 = the smallest came first


def _many_to_many(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, NUMBERS, 1, generator=generator)
    return x, F.pad(x[..., 0], (SPAN - 1, 0)).unfold(1, SPAN, 1).sum(dim=2)[..., None, None]


def _encoder_decoder(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, READ, 1, generator=generator)
    return x, x[:, READ - WRITE :].flip(1)[:, None]  # [n, 1, horizon, 1]


TASKS = (
    Task("one-to-one", "x → x · sin(3x)", lambda: Memoryless(1, 32, (1, 1)), _one_to_one, 1500, last=False),
    Task("one-to-many", f"a frequency → {WAVE} values of its wave", lambda: EncoderDecoder(1, 32, WAVE),
         _one_to_many, 1500),
    Task("many-to-one", f"{NUMBERS} numbers → largest or smallest first?",
         lambda: Recurring("lstm", 1, 32, (2,)), _many_to_one, 3000),
    Task("many-to-many", f"each number → the sum of the last {SPAN}", lambda: Recurring("lstm", 1, 24, (1, 1)),
         _many_to_many, 1500, last=False),
    Task("encoder-decoder", f"{READ} numbers → the last {WRITE}, backwards", lambda: EncoderDecoder(1, 48, WRITE),
         _encoder_decoder, 2500),
)  # fmt: skip


def run(kit: Kit) -> Outcome:
    """All five, one after the other."""
    outcome = Outcome("modes: squared error relative to the variance, on examples never seen")
    panels: list[tuple[Floats, Floats, Served]] = []
    for task in TASKS:
        x, truth, served = _learn(kit, task)
        outcome.served.append(served)
        answers = served.y[:, -1, 1] if served.spec.classes else (served.y[:, -1:] if task.last else served.y)[..., 0]
        panels.append((x, truth, served))
        what, bound = (f"{task.what} (% wrong)", 3.0) if served.spec.classes else (task.what, 0.01)
        outcome.lines.append(Line(f"{task.mode}: {what}", _error(answers, truth), at_most=bound))
        if task.mode not in ("one-to-one", "one-to-many"):
            outcome.lines.append(Line("    least squares on that one message", _error(_forgetful(x, truth), truth)))
    kit.save(draw_modes([(task.mode, task.what) for task in TASKS], panels))
    return outcome


def _error(answers: Floats, truth: Floats) -> float:
    """Per cent of wrong classes, or the squared error relative to the variance."""
    if truth.dtype == np.int64:
        return 100 * float(np.mean((answers > 0.5) != truth[:, 0]))
    return float(np.mean((answers - truth) ** 2) / np.var(truth))


def _forgetful(x: Floats, truth: Floats) -> Floats:
    """Least squares on powers of the answered message alone: nothing is remembered."""
    last = x[:, -truth.shape[1] :].reshape(-1, 1)
    powers = last ** np.arange(5)
    wanted = truth.reshape(len(last), -1)
    found = powers @ np.linalg.lstsq(powers, wanted, rcond=None)[0]
    return np.asarray(found[:, 0] if truth.dtype == np.int64 else found.reshape(truth.shape))


def _learn(kit: Kit, task: Task) -> tuple[Floats, Floats, Served]:
    torch.manual_seed(kit.seed)
    generator = torch.Generator().manual_seed(kit.seed)
    model, updates = task.make(), kit.full(task.steps, 30)
    x, truth = task.draw(1000, generator)
    model.scale_to(x, None if model.classifier else truth.flatten(0, -2))

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(updates):
            yield task.draw(LANES, generator)

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(out[:, -1], wanted[:, 0]) if model.classifier else F.mse_loss(out, wanted)

    kit.progress.stage(f"modes: {task.mode}")
    fit(model, pairs, loss, updates=updates, learning_rate=RATE, clip=1.0, decay=True, last=task.last,
        progress=kit.progress)  # fmt: skip
    x, truth = task.draw(kit.full(500, 20), generator)
    classes = ["largest first", "smallest first"] if model.classifier else []
    names = Names(task.mode, ["value"], [] if model.classifier else ["answer"], classes)
    served = deliver(model, names, x.numpy(), kit.out / f"{task.mode}.onnx", warmup=x.shape[1] if task.last else 1,
                     gate_steps=100)  # fmt: skip
    return x.numpy(), truth.numpy(), served
