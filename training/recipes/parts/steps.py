"""Stateful steps that keep the graph's contract: `y, next_state, score = step(x, ts, state)`, raw units, flat state.

Each can also `roll` over whole windows, which is how it is trained; the export gate holds the two against each other.
Scaling is inside; a missing value counts as the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import StateSlice
from tidecast.training.model.recurrent import Recurrent

Outputs = Sequence[int]  # (horizon, targets) of a forecaster, (classes,) of a classifier


class Step(nn.Module):
    """The base class: subclasses define `advance`, one step in scaled units, and `roll`."""

    x_mean: Tensor  # [features]
    x_std: Tensor
    y_mean: Tensor  # [targets]
    y_std: Tensor

    def __init__(self, features: int, outputs: Outputs, state: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.features, self.outputs = features, tuple(outputs)
        self.classifier = len(self.outputs) == 1
        self.slices: list[StateSlice] = []
        for name, shape in state.items():
            self.slices.append(StateSlice(name, self.state_size, shape))
        self.register_buffer("x_mean", torch.zeros(features))
        self.register_buffer("x_std", torch.ones(features))
        self.register_buffer("y_mean", torch.zeros(self.outputs[-1]))
        self.register_buffer("y_std", torch.ones(self.outputs[-1]))

    @property
    def state_size(self) -> int:
        """Numbers in the packed state."""
        return sum(math.prod(part.shape) for part in self.slices)

    def initial_state(self) -> Tensor:
        """[state], all zeros."""
        return torch.zeros(self.state_size)

    def scale_to(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take means and deviations from training data: x [..., features], y [..., targets]."""
        for name, values in (("x", x), ("y", y)):
            if values is not None:
                flat = values.reshape(-1, values.shape[-1])
                getattr(self, f"{name}_mean").copy_(flat.mean(dim=0))
                getattr(self, f"{name}_std").copy_(flat.std(dim=0).clamp(min=1e-6))

    def scaled(self, x: Tensor) -> Tensor:
        """Zero mean, unit variance; missing = the mean."""
        z = (x - self.x_mean) / self.x_std
        return torch.where(torch.isnan(z), torch.zeros_like(z), z)

    def unscaled(self, out: Tensor) -> Tensor:
        """A forecaster's outputs in raw units [..., horizon, targets]; a classifier's logits [..., classes]."""
        out = out.reshape(*out.shape[:-1], *self.outputs)
        return out if self.classifier else out * self.y_std + self.y_mean

    def answer(self, out: Tensor) -> Tensor:
        """What is served: [..., horizon, targets, 1 quantile], or probabilities [..., classes]."""
        return torch.softmax(out, dim=-1) if self.classifier else out[..., None]

    def advance(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step in scaled units: z [batch, features], state [batch, state]."""
        raise NotImplementedError

    def forward(self, x: Tensor, ts: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: x [batch, features] raw, ts [batch] ms, state [batch, state]; the score has no columns."""
        out, after = self.advance(self.scaled(x), state)
        return self.answer(self.unscaled(out)), after, x[:, :0]

    def roll(self, x: Tensor, state: Tensor | None = None, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Many steps: x [n, steps, features], state [n, state] or None.

        Returns raw outputs [n, steps, *outputs] (logits of a classifier), at the last step only if `last`, and the
        state after.
        """
        raise NotImplementedError

    def window(self, x: Tensor, ts: Tensor) -> Tensor:
        """What is served over whole stretches from the initial state."""
        return self.answer(self.roll(x)[0])


class Recurring(Step):
    """A recurrent cell and a linear head: many-to-many, or many-to-one where only the last answer is used."""

    def __init__(self, kind: str, features: int, hidden: int, outputs: Outputs) -> None:
        cell = Recurrent(kind, features, hidden, 1)
        super().__init__(features, outputs, {"hidden": cell.state_shape})
        self.cell, self.head = cell, nn.Linear(hidden, math.prod(outputs))

    def advance(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the cell, then the head."""
        top, after = self.cell(z, state)
        return self.head(top), after

    def roll(self, x: Tensor, state: Tensor | None = None, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """By torch's fused kernel."""
        before = None if state is None else state.reshape(-1, *self.cell.state_shape)
        tops, after = self.cell.roll(self.scaled(x), before)
        return self.unscaled(self.head(tops[:, -1:] if last else tops)), after.flatten(1)


class EncoderDecoder(Step):
    """N messages in, then M values out: one GRU reads, another writes from what the first has understood.

    With N = 1 it is one-to-many. It writes after every message, as if it were the last; training uses the last.
    """

    def __init__(self, features: int, hidden: int, horizon: int) -> None:
        encoder = Recurrent("gru", features, hidden, 1)
        super().__init__(features, (horizon, 1), {"hidden": encoder.state_shape})
        self.encoder, self.decoder = encoder, Recurrent("gru", 1, hidden, 1)
        self.head = nn.Linear(hidden, 1)

    def write(self, top: Tensor) -> Tensor:
        """The decoder, fed its own last value: [batch, hidden] -> [batch, horizon]."""
        hidden, value, values = top, torch.zeros_like(top[:, :1]), []
        for _ in range(self.outputs[0]):
            above, hidden = self.decoder(value, hidden)
            value = self.head(above)
            values.append(value)
        return torch.cat(values, dim=1)

    def advance(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Read one message, then write."""
        top, after = self.encoder(z, state)
        return self.write(top), after

    def roll(self, x: Tensor, state: Tensor | None = None, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Read all, write after each message, or after the last."""
        before = None if state is None else state.reshape(-1, *self.encoder.state_shape)
        tops, after = self.encoder.roll(self.scaled(x), before)
        tops = tops[:, -1:] if last else tops
        return self.unscaled(self.write(tops.flatten(0, 1)).reshape(*tops.shape[:2], -1)), after.flatten(1)


class Windowed(Step):
    """The last `width` values of one series through `body` [n, width] -> [n, 1]; further ahead on its own forecasts."""

    def __init__(self, body: Callable[[Tensor], Tensor], width: int, horizon: int) -> None:
        super().__init__(1, (horizon, 1), {"values": (width - 1,)})
        self.body, self.width = body, width

    def ahead(self, values: Tensor) -> Tensor:
        """[n, width] -> [n, horizon]"""
        for _ in range(self.outputs[0]):
            values = torch.cat([values, self.body(values[:, -self.width :])], dim=1)
        return values[:, self.width :]

    def advance(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state is the values before this one."""
        values = torch.cat([state, z], dim=1)
        return self.ahead(values), values[:, 1:]

    def roll(self, x: Tensor, state: Tensor | None = None, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """All windows side by side."""
        before = self.initial_state().expand(len(x), -1) if state is None else state
        values = torch.cat([before, self.scaled(x)[..., 0]], dim=1)  # [n, width - 1 + steps]
        windows = values.unfold(1, self.width, 1)  # [n, steps, width]
        windows = windows[:, -1:] if last else windows
        out = self.ahead(windows.flatten(0, 1)).reshape(*windows.shape[:2], -1)
        return self.unscaled(out), values[:, values.shape[1] - self.width + 1 :]


class Memoryless(Step):
    """One-to-one: each answer from its own message; the contract needs a state, so it counts the messages."""

    def __init__(self, features: int, hidden: int, outputs: Outputs) -> None:
        super().__init__(features, outputs, {"messages": (1,)})
        self.body = nn.Sequential(
            nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, math.prod(outputs)),
        )  # fmt: skip

    def advance(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is remembered but the count."""
        return self.body(z), torch.clamp(state + 1, max=1e6)

    def roll(self, x: Tensor, state: Tensor | None = None, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """All messages side by side."""
        before = self.initial_state().expand(len(x), -1) if state is None else state
        out = self.body(self.scaled(x[:, -1:] if last else x))
        return self.unscaled(out), torch.clamp(before + x.shape[1], max=1e6)
