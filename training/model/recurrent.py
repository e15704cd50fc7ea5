"""Recurrent layers that can be rolled over a window by torch's fused kernels, or stepped once with the same weights.

Equations: torch.nn.GRU, LSTM and RNN (tanh); Cho et al. 2014, Hochreiter and Schmidhuber 1997, Elman 1990.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS: dict[str, type[nn.GRU] | type[nn.LSTM] | type[nn.RNN]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
GATES = {"gru": 3, "lstm": 4, "rnn": 1}


class Recurrent(nn.Module):
    """`step(input, hidden) -> (top, hidden)`; hidden holds 2 parts for an LSTM, each [layers, hidden], flat."""

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind, self.layers = kind, layers
        between = dropout if layers > 1 else 0.0
        self.net: nn.GRU | nn.LSTM | nn.RNN = KINDS[kind](
            inputs, hidden, num_layers=layers, batch_first=True, dropout=between
        )
        self.state_shape = (2 if kind == "lstm" else 1, layers, hidden)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step: inputs [batch, inputs], hidden [batch, parts * layers * hidden]; the top layer's h comes first."""
        parts, layers, size = self.state_shape
        states = [hidden] if parts * layers == 1 else list(hidden.split_with_sizes([size] * parts * layers, dim=1))
        below = inputs
        for layer in range(layers):
            states[layer::layers] = self._cell(layer, below, states[layer::layers])
            below = states[layer]
        return below, states[0] if len(states) == 1 else torch.cat(states, dim=1)

    def _cell(self, layer: int, inputs: Tensor, states: list[Tensor]) -> list[Tensor]:
        """One layer, one step: states [batch, hidden], h first.

        One matrix for each gate, so that nothing has to be cut; what both inputs and h are summed in, is one product.
        """
        w_in, w_re, b_in, b_re = (
            getattr(self.net, f"{n}_l{layer}").chunk(GATES[self.kind])
            for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = states[0]
        both = torch.cat([inputs, h], dim=1)

        def gate(k: int) -> Tensor:
            return F.linear(both, torch.cat([w_in[k], w_re[k]], dim=1), b_in[k] + b_re[k])

        if self.kind == "rnn":
            return [torch.tanh(gate(0))]
        if self.kind == "gru":
            reset, keep = torch.sigmoid(gate(0)), torch.sigmoid(gate(1))
            new = torch.tanh(F.linear(inputs, w_in[2], b_in[2]) + reset * F.linear(h, w_re[2], b_re[2]))
            return [new + keep * (h - new)]
        c = torch.sigmoid(gate(1)) * states[1] + torch.sigmoid(gate(0)) * torch.tanh(gate(2))
        return [torch.sigmoid(gate(3)) * torch.tanh(c), c]

    def roll(self, inputs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """A window: inputs [n, steps, inputs]; hidden [n, *state_shape], None = zeros. Tops are [n, steps, hidden]."""
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
    """From the cell's top [..., inputs] to the outputs: a linear map plus one hidden layer; all -0.5 at first."""

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
