"""Recurrent layers that can be rolled over a window by torch's fused kernels, or stepped once with the same weights.

Equations: torch.nn.GRU, LSTM and RNN (tanh); Cho et al. 2014, Hochreiter and Schmidhuber 1997, Elman 1990.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS: dict[str, type[nn.GRU] | type[nn.LSTM] | type[nn.RNN]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """`step(input, hidden) -> (top, hidden)`; hidden is [batch, parts, layers, hidden], 2 parts for an LSTM."""

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind, self.layers = kind, layers
        between = dropout if layers > 1 else 0.0
        self.net: nn.GRU | nn.LSTM | nn.RNN = KINDS[kind](
            inputs, hidden, num_layers=layers, batch_first=True, dropout=between
        )
        self.state_shape = (2 if kind == "lstm" else 1, layers, hidden)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step: inputs [batch, inputs], hidden [batch, parts, layers, hidden]; the top layer's h comes first."""
        below = inputs
        following = []
        for layer in range(self.layers):
            below, states = self._cell(layer, below, hidden[:, :, layer])
            following.append(states)
        return below, torch.stack(following, dim=2)

    def _cell(self, layer: int, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """One layer, one step: states [batch, parts, hidden]."""
        w_in, w_re, b_in, b_re = (
            getattr(self.net, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = states[:, 0]
        ours, past = F.linear(inputs, w_in, b_in), F.linear(h, w_re, b_re)
        if self.kind == "rnn":
            h = torch.tanh(ours + past)
            return h, h[:, None]
        if self.kind == "gru":
            r_in, z_in, n_in = ours.chunk(3, dim=1)
            r_re, z_re, n_re = past.chunk(3, dim=1)
            keep = torch.sigmoid(z_in + z_re)
            new = torch.tanh(n_in + torch.sigmoid(r_in + r_re) * n_re)
            h = new + keep * (h - new)
            return h, h[:, None]
        i, f, g, o = (ours + past).chunk(4, dim=1)
        c = torch.sigmoid(f) * states[:, 1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, torch.stack([h, c], dim=1)

    def roll(self, inputs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """A window: inputs [n, steps, inputs]; hidden as in `forward`, None = zeros. Tops are [n, steps, hidden]."""
        if hidden is None:
            tops, after = self.net(inputs)
        else:
            parts = tuple(
                hidden[:, p].transpose(0, 1).contiguous() for p in range(hidden.shape[1])
            )  # [layers, n, hidden]
            tops, after = self.net(inputs, parts if self.kind == "lstm" else parts[0])
        states = after if self.kind == "lstm" else (after,)
        return tops, torch.stack([s.transpose(0, 1) for s in states], dim=1)


class Head(nn.Module):
    """What the cell's top [..., inputs] comes to: a linear map beside one hidden layer; begins as all -0.5."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden + inputs, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., outputs]."""
        return self.last(torch.cat([self.dropout(F.silu(self.first(x))), x], dim=-1))  # type: ignore[no-any-return]
