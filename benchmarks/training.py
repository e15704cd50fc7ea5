"""What an epoch of `tidecast train` costs, compared with the same network in a plain torch loop, on the same data.

    python benchmarks/training.py [CONFIG] [--epochs 5] [--runs 3] [--json]
    python benchmarks/training.py --profile

After every epoch of the real fit (training and validation) the plain loop does one: `torch.nn`'s GRU or LSTM and the
same two layers after it, as large, with as much dropout, the same windows of the same lanes, quantile loss and AdamW,
inputs and truths laid out before the clock starts. It has none of what is around that: no average of the weights, no
states carried into validation, no local units. CPU time of this process with one thread, else wall time. The weather
sample is trained where no config is named.

`--profile` runs the epochs under torch's profiler instead, and prints how much of them is inside torch's own operators
(their self times: each second counts once), and the ten that took most. The profiler slows what is around them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from torch.profiler import ProfilerActivity, profile
from worker_process import ROOT, spread

from tidecast.training.config import Config, read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.fit import loop
from tidecast.training.fit.prepare import Prepared
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.model.recurrent import KINDS
from tidecast.training.progress import Progress

WEATHER = ROOT / "training" / "samples" / "weather.toml"


class Plain(nn.Module):
    """What a torch user would write: inputs [lanes, steps, inputs] to quantiles [lanes, steps, horizon, targets, q]."""

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        model = config.model
        self.shape = (model.horizon, len(config.targets), len(model.quantiles))
        self.net = KINDS[model.cell](inputs, model.hidden, num_layers=model.layers, batch_first=True)
        self.dropout = nn.Dropout(model.dropout)
        self.first = nn.Linear(model.hidden + inputs, model.hidden)
        self.last = nn.Linear(2 * model.hidden + inputs, self.shape[0] * self.shape[1] * self.shape[2])

    def forward(self, x: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """The quantiles cannot cross: each is the one below it and something positive."""
        top, hidden = self.net(x, hidden)
        both = torch.cat([self.dropout(top), x], dim=-1)
        raw = self.last(torch.cat([self.dropout(silu(self.first(both))), both], dim=-1))
        raw = raw.reshape(*raw.shape[:-1], *self.shape)
        return torch.cumsum(torch.cat([raw[..., :1], softplus(raw[..., 1:])], dim=-1), dim=-1), hidden


class PlainLoop:
    """Windows in, weights that have moved on out; and a validation."""

    def __init__(self, model: Forecaster, data: Prepared, config: Config) -> None:
        self.config, self.data = config, data
        training = torch.from_numpy(data.ts < config.train_until_ms)
        known = torch.from_numpy(data.ts < config.validate_until_ms)
        every = torch.arange(len(data.ts))
        linear = data.linear.reshape(-1, model.h, model.d)
        self.truth = (data.future(every, model.h, training) - linear) / model.spread[..., 0]
        self.later = (data.future(every, model.h, known & ~training) - linear) / model.spread[..., 0]
        self.level = torch.tensor(model.quantiles)
        self.net = Plain(config, data.inputs.shape[1])
        fit = config.fit
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)

    def epoch(self, lanes: list[list[tuple[int, int]]]) -> None:
        """One pass over these groups of lanes, then over what is to validate."""
        self.net.train()
        for group in lanes:
            hidden, longest = None, max(end - start for start, end in group)
            for begin in range(0, longest, self.config.fit.window):
                at, inside = loop.steps_of_window(group, begin, self.config.fit.window)
                out, hidden = self.net(self.data.inputs[at], hidden)
                hidden = tuple(h.detach() for h in hidden) if isinstance(hidden, tuple) else hidden.detach()
                self.optimizer.zero_grad()
                self.loss(out, torch.where(inside[..., None, None], self.truth[at], torch.nan)).backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), self.config.fit.clip)
                self.optimizer.step()
        self.net.eval()
        with torch.no_grad():
            for start, end in self.data.spans:
                begin, until = np.searchsorted(
                    self.data.ts[start:end], (self.config.train_until_ms, self.config.validate_until_ms)
                )
                first = start + max(0, int(begin) - self.config.model.horizon - loop.CONTEXT_STEPS)
                rows = slice(first, start + int(until))
                self.loss(self.net(self.data.inputs[None, rows], None)[0], self.later[None, rows]).item()

    def loss(self, out: Tensor, truth: Tensor) -> Tensor:
        """The mean quantile loss of what is known."""
        known = ~torch.isnan(truth)
        error = truth.nan_to_num()[..., None] - out
        each = torch.maximum(self.level * error, (self.level - 1) * error).mean(dim=-1)
        return (each * known).sum() / known.sum().clamp(min=1)


class Alternating:
    """Stands in for the fit's epoch and validation: times them, and has the plain loop do an epoch after each."""

    def __init__(self, threads: int) -> None:
        self._clock = time.process_time if threads == 1 else time.perf_counter
        self._epoch, self._validate, self._lanes = loop.run_epoch, loop.validate, loop.cut_into_lanes
        self._plain: PlainLoop | None = None
        self._cut: list[list[tuple[int, int]]] = []  # the lanes of the epoch under way
        self._spent = 0.0
        self.ours: list[float] = []  # s, of each epoch
        self.plain: list[float] = []

    def lanes(self, *given: Any) -> Iterator[list[tuple[int, int]]]:
        """Of the fit, noted."""
        self._cut = list(self._lanes(*given))
        return iter(self._cut)

    def epoch(self, model: Forecaster, member: int, parts: Any, average: Any, optimizer: Any, *rest: Any) -> float:
        """Of the fit, timed."""
        began = self._clock()
        loss = self._epoch(model, member, parts, average, optimizer, *rest)
        self._spent = self._clock() - began
        return loss

    def validate(self, model: Forecaster, member: int, data: Prepared, config: Config) -> float:
        """Of the fit, timed, and the other epoch."""
        began = self._clock()
        loss = self._validate(model, member, data, config)
        self.ours.append(self._spent + self._clock() - began)
        self._plain = self._plain or PlainLoop(model, data, config)
        before = torch.get_rng_state()  # the fit is not to notice
        began = self._clock()
        self._plain.epoch(self._cut)
        self.plain.append(self._clock() - began)
        torch.set_rng_state(before)
        return loss

    def fit(self, config: Config, dataset: Any) -> None:
        """The fit, with the plain loop in between."""
        loop.run_epoch, loop.validate, loop.cut_into_lanes = self.epoch, self.validate, self.lanes
        try:
            with Progress(quiet=True) as progress:
                loop.fit(config, dataset, progress)
        finally:
            loop.run_epoch, loop.validate, loop.cut_into_lanes = self._epoch, self._validate, self._lanes


def show_profile(config: Config, dataset: Any) -> None:
    """Where the time of the fit's epochs goes; the first is not counted, for it warms caches up."""
    profiled = profile(activities=[ProfilerActivity.CPU], acc_events=True)
    wall, seen, plain_epoch = 0.0, 0, loop.run_epoch

    def epoch(*given: Any) -> float:
        nonlocal wall, seen
        seen += 1
        if seen == 1:
            return plain_epoch(*given)
        with profiled:
            began = time.perf_counter()
            loss = plain_epoch(*given)
            wall += time.perf_counter() - began
        return loss

    loop.run_epoch = epoch
    with Progress(quiet=True) as progress:
        loop.fit(config, dataset, progress)
    averages = profiled.key_averages()
    inside = sum(event.self_cpu_time_total for event in averages) / 1e6
    print(f"{seen - 1} epochs: {wall:.2f} s, inside torch's operators {inside:.2f} s = {inside / wall:.0%}")
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:10]:
        print(f"  {event.self_cpu_time_total / 1e6 / wall:6.1%}  {event.count:6d} calls  {event.key}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=WEATHER)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="torch's profiler over the fit's epochs instead")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    config = read_config(args.config)
    fit = msgspec.structs.replace(config.fit, epochs=args.epochs + 1, patience=args.epochs + 1)
    config = msgspec.structs.replace(config, fit=fit)
    dataset = load_dataset(config, args.config.parent / config.data.path)
    if args.profile:
        return show_profile(config, dataset)
    ours, plain = [], []
    for number in range(args.runs):
        pair = Alternating(config.fit.threads)
        pair.fit(config, dataset)
        ours += pair.ours[1:]  # the first of each warms caches up
        plain += pair.plain[1:]
        print(f"run {number + 1}: {len(pair.ours) - 1} epochs", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    print(f"{args.config.name}: s of one epoch, min / median / max of {len(ours)}\n")
    print("| tidecast train | plain torch | ratio |\n|---|---|---|")
    print(f"| {spread(ours, '.3f')} | {spread(plain, '.3f')} | {spread(ratios, '.2f')} |")
    if args.json:
        found = {"epoch_s": ours, "plain_epoch_s": plain, "ratio": ratios}
        print(json.dumps({name: round(float(np.median(values)), 4) for name, values in found.items()}))


if __name__ == "__main__":
    main()
