"""What each part of the forecaster is worth: the same training without it, scored on validation rows alone.

    python benchmarks/ablation.py [--set taxi --set ett24 --set machine] [--seeds 1]

Prints a row for each variant: z-scored MAE and MSE over all leads of the forecasts whose truth lies in the validation
rows, and the seconds of training. Protocols and data are those of benchmarks/accuracy.py; no test row is looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from accuracy import DATA, TASKS, with_options

from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset, load_dataset
from tidecast.training.fit.loop import fit
from tidecast.training.linear.ridge import ahead
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.progress import Progress


def linear_alone(model: Forecaster) -> None:
    model.calibration.share = lambda errors: torch.zeros(1, 1)  # type: ignore[method-assign]


def recurrent_alone(model: Forecaster) -> None:
    model.calibration.share = lambda errors: torch.ones(1, 1)  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    options: list[str] = field(default_factory=list)
    after: Callable[[Forecaster], None] | None = None  # what is changed once it is trained


VARIANTS = (
    Variant("as it is"),
    Variant("the linear path alone", after=linear_alone),
    Variant("the recurrent path always, not the better one", after=recurrent_alone),
    Variant("one ridge, no mixture of linear experts", ["model.experts=0"]),
    Variant("no day and week lags", ["model.lags=[]", "model.history=169"]),
    Variant("no calendar", ["model.calendar=[]"]),
    Variant("three members", ["fit.members=3"]),
    Variant("LSTM", ['model.cell="lstm"']),
    Variant("plain RNN", ['model.cell="rnn"']),
    Variant("hidden 16", ["model.hidden=16"]),
    Variant("weight decay 0.01", ["fit.weight_decay=0.01"]),
    Variant("no dropout", ["model.dropout=0.0"]),
)


def errors(model: Forecaster, config: Config, dataset: Dataset) -> tuple[float, float]:
    """(MAE, MSE), z-scored, of forecasts for validation rows."""
    absolute, square = [], []
    for s in dataset.stretches:
        x, ts = (torch.from_numpy(part[s.ts < config.validate_until_ms])[None] for part in (s.x, s.ts))
        with torch.no_grad():
            y = model.window(x, ts)[0, ..., model.calibration.center].numpy()  # [steps, horizon, targets]
        truth = x[0, :, : model.d].numpy().astype(np.float64)
        rows = ts[0].numpy() < config.train_until_ms
        deviation = np.nanstd(truth[rows], axis=0)
        error = (y - ahead(np.where(rows[:, None], np.nan, truth), model.h)) / deviation
        absolute.append(np.nanmean(np.abs(error)))
        square.append(np.nanmean(np.square(error)))
    return float(np.mean(absolute)), float(np.mean(square))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=TASKS, dest="names")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on [1]")
    parser.add_argument("--data-dir", type=Path, default=DATA, help="where the sets are")
    args = parser.parse_args()
    print("| set | variant | validation MAE | validation MSE | seconds |\n|---|---|---|---|---|")
    for name in args.names or ["taxi", "ett24", "machine"]:
        with tempfile.TemporaryDirectory() as temp:
            text, path = TASKS[name].make(args.data_dir, None, Path(temp))
            base = msgspec.convert(tomllib.loads(text), Config)
            dataset = load_dataset(base, path)
            for variant in VARIANTS:
                found, seconds = [], []
                for seed in range(args.seeds):
                    config = with_options(base, variant.options)
                    config = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, seed=seed))
                    with Progress(quiet=True) as progress:
                        model, history = fit(config, dataset, progress)
                    if variant.after:
                        variant.after(model)
                    found.append(errors(model, config, dataset))
                    seconds.append(history.seconds)
                mae, mse = np.mean(found, axis=0)
                print(f"| {name} | {variant.name} | {mae:.4f} | {mse:.4f} | {np.mean(seconds):.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
