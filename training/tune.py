"""Search for a better config by the validation loss alone: `tidecast tune`.

Test rows are cut off before anything else is done, so no trial can see them. The loss is the CRPS of the forecasts of
validation rows (`training.evaluation.metrics.crps`), each series in units of its training rows' standard deviation, so
that
trials with other lags or another past still compare. Every trial is kept in DIR/study.db as it ends; the same command
continues from there. Sampler: tree-structured Parzen estimators (Bergstra et al. 2011), by optuna; a trial whose
validation loss by epoch is worse than most others' at that epoch is stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from tidecast.service.errors import TidecastError, UsageError
from tidecast.training.config import Config, check, write_config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.stretch import Stretch
from tidecast.training.evaluation.baselines import Scales
from tidecast.training.evaluation.metrics import crps, mean
from tidecast.training.fit.loop import CONTEXT_STEPS, fit
from tidecast.training.linear.ridge import DENSE_HISTORY, ahead
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.progress import EpochDone, Progress

STUDY = "tidecast"
WARMUP_EPOCHS, WARMUP_TRIALS = 4, 5  # no trial is stopped before so many epochs, nor before so many trials ended
SEARCHED = (
    "model.cell", "model.hidden", "model.layers", "model.dropout", "model.history",
    "fit.learning_rate", "fit.weight_decay", "fit.window", "fit.lanes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Search:
    """What a search is made of."""

    config: Config
    dataset: Dataset  # without test rows
    data: Path
    out: Path
    minutes: float
    trials: int | None = None  # at most so many more


def without_test_rows(dataset: Dataset, until: int) -> Dataset:
    """Readings before `until` (ms) only."""
    kept = []
    for s in dataset.stretches:
        steps = int((s.ts < until).sum())
        if steps:
            kept.append(Stretch(s.series, s.ts[:steps], s.x[:steps], s.rows[:steps]))
    return dataclasses.replace(dataset, stretches=kept)


def search(wanted: Search, say: Callable[[str], None]) -> optuna.Study:
    """Run trials until the time is over or Ctrl-C; what ended is kept either way.

    Raises:
        UsageError: the folder holds a search over another config or other data.
    """
    optuna.logging.set_verbosity(logging.ERROR)
    study = _open(wanted)
    ends = time.monotonic() + 60 * wanted.minutes
    before = len(study.trials)
    if before == 0:
        study.enqueue_trial(own_values(wanted.config))  # the config as it is: what others must beat
    else:
        say(f"continuing after {before} trials in {wanted.out / 'study.db'}")
    count = 0
    while time.monotonic() < ends and (wanted.trials is None or count < wanted.trials):
        trial = study.ask()
        count += 1
        try:
            config = limited(suggest(trial, wanted.config), (ends - time.monotonic()) / 60)
            loss = _run(config, wanted.dataset, trial)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            say(f"trial {trial.number}: stopped early  {_short(trial.params)}")
        except KeyboardInterrupt:
            study.tell(trial, state=TrialState.FAIL)
            say("Interrupted: keeping what was found.")
            break
        except (TidecastError, ArithmeticError, RuntimeError) as error:  # one that cannot be trained ends no search
            study.tell(trial, state=TrialState.FAIL)
            say(f"trial {trial.number}: failed, {error}")
        else:
            cut = time.monotonic() >= ends  # by the end of the search: it counts only if it leads all the same
            if cut and any(loss >= float(t.value or 0.0) for t in finished(study)):
                study.tell(trial, state=TrialState.FAIL)
                say(f"trial {trial.number}: the time ran out before it ended")
                break
            study.tell(trial, loss)
            best = f"best {study.best_value:.5f}, trial {study.best_trial.number}"
            say(f"trial {trial.number}: {loss:.5f}  {_short(trial.params)}  ({best})")
    return study


def _open(wanted: Search) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{(wanted.out / 'study.db').resolve()}")
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(WARMUP_TRIALS, WARMUP_EPOCHS),
    )
    seed = wanted.config.fit.seed + len(study.trials)  # a continued search must not try the same values again
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    mark = fingerprint(wanted.config, wanted.dataset)
    held = study.user_attrs.get("fingerprint")
    if held is not None and held != mark:
        raise UsageError(
            "the folder holds a search over another config or other data",
            got=str(wanted.out),
            do="Give another --out, or delete study.db in it.",
        )
    study.set_user_attr("fingerprint", mark)
    for trial in study.trials:  # what a killed process left
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def fingerprint(config: Config, dataset: Dataset) -> str:
    """The same for the same config over the same training and validation readings."""
    digest = sha256(msgspec.json.encode([config.model, config.fit, config.targets, config.data.covariates]))
    digest.update(f"{config.step_ms} {config.train_until_ms} {config.validate_until_ms}".encode())
    for s in dataset.stretches:
        digest.update(s.ts.tobytes() + np.nan_to_num(s.x, nan=-1e30).tobytes())
    return digest.hexdigest()


def own_values(config: Config) -> dict[str, Any]:
    """The config's own values of all that is searched, under optuna's names."""
    return {name: _get(config, name) for name in SEARCHED}


def _get(config: Config, name: str) -> Any:
    section, field = name.split(".")
    return config.history if name == "model.history" else getattr(getattr(config, section), field)


def suggest(trial: Trial, config: Config) -> Config:
    """The config with what the trial asks for; the config's own values are always inside of the bounds."""
    own = own_values(config)
    least = max(max(config.lag_steps, default=0) + 1, *config.score_horizons, 24)
    longest = max(least, min(2 * least, DENSE_HISTORY))
    values = {
        "model.cell": trial.suggest_categorical("model.cell", ["gru", "lstm", "rnn"]),
        "model.hidden": trial.suggest_categorical(
            "model.hidden", _with([16, 32, 48, 64, 96, 128], own["model.hidden"])
        ),
        "model.layers": trial.suggest_categorical("model.layers", _with([1, 2], own["model.layers"])),
        "model.dropout": trial.suggest_float("model.dropout", 0.0, max(0.5, own["model.dropout"])),
        "model.history": trial.suggest_categorical(
            "model.history", _with([least, (least + longest) // 2, longest], own["model.history"])
        ),
        "fit.window": trial.suggest_categorical("fit.window", _with([24, 48, 96, 192, 336], own["fit.window"])),
        "fit.lanes": trial.suggest_categorical("fit.lanes", _with([8, 16, 32, 64], own["fit.lanes"])),
    }
    for name, low, high in (("fit.learning_rate", 3e-4, 2e-2), ("fit.weight_decay", 1e-4, 0.5)):
        mine = own[name]
        values[name] = trial.suggest_float(name, min(low, mine or low), max(high, mine), log=True)
    return changed(config, values)


def _with(choices: list[int], own: int) -> list[int]:
    return sorted({*choices, own})


def changed(config: Config, values: dict[str, Any]) -> Config:
    """The config with other values, under optuna's names; checked."""
    for section in ("model", "fit"):
        fields = {name.split(".")[1]: value for name, value in values.items() if name.startswith(f"{section}.")}
        config = msgspec.structs.replace(
            config, **{section: msgspec.structs.replace(getattr(config, section), **fields)}
        )
    check(config)
    return config


def limited(config: Config, minutes: float) -> Config:
    """The config with a time limit, so that no trial runs past the end of the search."""
    own = config.fit.max_minutes
    limit = max(min(own, minutes) if own else minutes, 1e-3)
    return msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, max_minutes=limit))


class PrunableProgress(Progress):
    """Reports each epoch of a trial to optuna, which may stop it."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(quiet=True)
        self.trial, self.members = trial, 0

    def epochs(self, name: str, total: int) -> EpochDone:
        """One member begins."""
        self.members += 1
        member = self.members

        def done(epoch: int, train: float, validation: float, best: float) -> None:
            if member == 1:  # the first member decides: the others are like it
                self.trial.report(best, epoch)
                self.trial.set_user_attr("epochs", epoch)
                if self.trial.should_prune():
                    raise optuna.TrialPruned

        return done


def _run(config: Config, dataset: Dataset, trial: Trial) -> float:
    started = time.monotonic()
    model, history = fit(config, dataset, PrunableProgress(trial))
    if history.interrupted:  # Ctrl-C while it was fitting: half a trial says nothing
        raise KeyboardInterrupt
    loss = validation_loss(model, config, dataset)
    trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
    if not np.isfinite(loss):
        raise ArithmeticError("the validation loss is not finite")
    return loss


def validation_loss(model: Forecaster, config: Config, dataset: Dataset) -> float:
    """CRPS of the forecasts of validation rows, in standard deviations of each series' training rows."""
    scales = Scales(config, dataset)
    targets, levels = len(config.targets), config.model.quantiles
    losses = []
    for s in dataset.stretches:
        inside = (s.ts >= config.train_until_ms) & (s.ts < config.validate_until_ms)
        if not inside.any():
            continue
        first = max(0, int(np.flatnonzero(inside)[0]) - config.model.horizon)
        since = max(0, first - config.history - CONTEXT_STEPS)
        with torch.no_grad():
            y = model.window(torch.from_numpy(s.x[None, since:]), torch.from_numpy(s.ts[None, since:]))
        truth = ahead(np.where(inside[:, None], s.x[:, :targets].astype(np.float64), np.nan), config.model.horizon)
        middle, spread = scales[s.series]
        z = (truth[first:] - middle) / spread
        q = (y[0, first - since :].numpy().astype(np.float64) - middle[:, None]) / spread[:, None]
        losses.append([float(mean(crps(z[..., d], q[..., d, :], levels))) for d in range(targets)])
    return float(mean(mean(losses)))


def write_best(study: optuna.Study, wanted: Search) -> Path | None:
    """`best.toml`: the config with the best trial's values, ready for `tidecast train`. None before any trial ended."""
    done = finished(study)
    if not done:
        return None
    write_config(changed(wanted.config, done[0].params), wanted.data, wanted.out)
    return (wanted.out / "config.toml").replace(wanted.out / "best.toml")


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a loss, the best first."""
    done = [t for t in study.trials if t.state == TrialState.COMPLETE and t.value is not None]
    return sorted(done, key=lambda t: (float(t.value or 0.0), t.number))


def _short(params: dict[str, Any]) -> str:
    return "  ".join(f"{name.split('.')[1]} {shown(value)}" for name, value in params.items())


def shown(value: object) -> str:
    """A searched value for a person."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)
