"""`tidecast tune`: what it may see, what it keeps, and what it hands over."""

from __future__ import annotations

import argparse
import csv

import optuna
import pytest

from tests.support.daily import write_daily
from tidecast.service.errors import UsageError
from tidecast.service.timestamps import parse_time
from tidecast.training import tune as module
from tidecast.training.commands import tune as command
from tidecast.training.config import read_config
from tidecast.training.data.dataset import load_dataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A daily file with a config of one epoch; cells stay small."""
    path = write_daily(tmp_path)
    config = path.with_suffix(".toml")
    config.write_text(config.read_text().replace("epochs = 2", "epochs = 1"))
    return tmp_path


def run(folder, out="tune", *flags: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    given = [str(folder / "daily.toml"), "--out", str(folder / out), "--minutes", "1", *flags]
    return command.run(parser.parse_args(given))


@pytest.fixture
def losses(fitted, monkeypatch):
    """Nothing is trained: trials get these losses, one after the other; an exception among them is raised."""
    given = []

    def loss(*_):
        found = given.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(module, "fit", lambda *_: (fitted.model, fitted.history))
    monkeypatch.setattr(module, "validation_loss", loss)
    return given


def trials_of(folder, out="tune"):
    study = optuna.load_study(study_name=module.STUDY, storage=f"sqlite:///{folder / out / 'study.db'}")
    return [(t.params, t.value) for t in study.trials]


def test_changing_test_rows_changes_nothing(folder, capsys):
    run(folder, "before", "--trials", "1")
    config = read_config(folder / "daily.toml")
    with (folder / "daily.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    changed, until = 0, config.validate_until_ms
    for row in rows:
        if parse_time(row[0]) >= until:
            row[2], row[3] = "-12345", "777"
            changed += 1
    assert changed > 100
    with (folder / "daily.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    run(folder, "after", "--trials", "1")
    assert trials_of(folder, "before") == trials_of(folder, "after")
    mark = module.fingerprint(config, module.without_test_rows(load_dataset(config, folder / "daily.csv"), until))
    study = optuna.load_study(study_name=module.STUDY, storage=f"sqlite:///{folder / 'before' / 'study.db'}")
    assert study.user_attrs["fingerprint"] == mark  # so the search before can be continued
    capsys.readouterr()


def test_validation_rows_do_change_the_loss(fitted, config, dataset):
    seen = module.without_test_rows(dataset, config.validate_until_ms)
    assert max(int(s.ts[-1]) for s in seen.stretches) < config.validate_until_ms
    loss = module.validation_loss(fitted.model, config, seen)
    assert 0 < loss < 0.5  # in standard deviations
    for s in seen.stretches:
        s.x[s.ts >= config.train_until_ms, 0] += 5
    try:
        assert module.validation_loss(fitted.model, config, seen) > 1.2 * loss
    finally:  # the arrays are shared with other tests
        for s in seen.stretches:
            s.x[s.ts >= config.train_until_ms, 0] -= 5


def test_it_continues_where_it_ended_and_writes_a_config_that_loads(folder, capsys, losses):
    losses += [0.5, 0.3, 0.2, 0.4]
    run(folder, "tune", "--trials", "2")
    first = trials_of(folder)
    capsys.readouterr()
    run(folder, "tune", "--trials", "2")
    printed = capsys.readouterr()
    assert "continuing after 2 trials" in printed.err
    assert max(map(len, printed.out.splitlines()[:-1])) <= 120
    trials = trials_of(folder)
    assert trials[:2] == first
    assert len({str(params) for params, _ in trials}) == 4  # the same is not tried again
    own = read_config(folder / "daily.toml")
    assert trials[0][0]["fit.learning_rate"] == own.fit.learning_rate  # the config itself is what others must beat
    best = read_config(folder / "tune" / "best.toml")
    params = min(trials, key=lambda t: t[1])[0]
    assert best.model.hidden == params["model.hidden"]
    assert best.fit.window == params["fit.window"]
    assert load_dataset(best, folder / "tune" / str(best.data.path)).readings > 0
    assert best.fit.max_minutes == own.fit.max_minutes


def test_ctrl_c_keeps_what_was_found(folder, capsys, losses):
    losses += [0.5, KeyboardInterrupt()]
    assert run(folder) == 0
    assert (folder / "tune" / "best.toml").exists()
    assert "keeping what was found" in capsys.readouterr().err
    assert [value is None for _, value in trials_of(folder)] == [False, True]


def test_a_trial_that_the_end_cut_short_is_not_held_against_its_values(folder, capsys, monkeypatch):
    clock = iter(range(6))  # then the time is over: while the second trial runs

    class Time:
        @staticmethod
        def monotonic() -> float:
            return float(next(clock, 1e6))

    losses = iter([0.5, 0.9])
    monkeypatch.setattr(module, "time", Time)
    monkeypatch.setattr(module, "_run", lambda *_: next(losses))
    assert run(folder) == 0
    assert [value for _, value in trials_of(folder)] == [0.5, None]
    assert "time ran out" in capsys.readouterr().err


def test_another_config_in_the_same_folder_is_refused(folder, capsys, losses):
    losses.append(0.5)
    run(folder, "tune", "--trials", "1")
    config = folder / "daily.toml"
    config.write_text(config.read_text().replace("horizon = 3", "horizon = 2"))
    with pytest.raises(UsageError, match="another config"):
        run(folder, "tune", "--trials", "1")
    capsys.readouterr()


def test_a_trial_that_cannot_be_trained_ends_no_search(folder, capsys, losses):
    losses += [RuntimeError("out of memory"), 0.5]
    assert run(folder, "tune", "--trials", "2") == 0
    assert [value is None for _, value in trials_of(folder)] == [True, False]
    assert "out of memory" in capsys.readouterr().err


def test_a_poor_trial_is_stopped_after_some_epochs(config, monkeypatch):
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(1, 2))
    good = study.ask()
    for epoch in range(1, 7):
        good.report(0.1, epoch)
    study.tell(good, 0.1)
    task = module.PrunableProgress(study.ask()).epochs("training", 6)
    task(1, 0.9, 0.9, 0.9)
    with pytest.raises(optuna.TrialPruned):
        for epoch in range(2, 7):
            task(epoch, 0.9, 0.9, 0.9)


@pytest.mark.parametrize("flags", [("--minutes", "0"), ("--minutes", "-1")])
def test_a_search_needs_time(folder, flags):
    with pytest.raises(UsageError, match="above 0"):
        run(folder, "tune", *flags)
