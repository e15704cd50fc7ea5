"""`tidecast tune`: what it may see, what it keeps, and what it hands over."""

from __future__ import annotations

import argparse
import csv

import msgspec
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


def trials_of(folder, out="tune"):
    study = optuna.load_study(study_name=module.STUDY, storage=f"sqlite:///{folder / out / 'study.db'}")
    return [(t.params, t.value) for t in study.trials]


def test_changing_test_rows_changes_nothing(folder, capsys):
    run(folder, "before", "--trials", "2")
    config = read_config(folder / "daily.toml")
    with (folder / "daily.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    changed = 0
    for row in rows:
        if parse_time(row[0]) >= config.validate_until_ms:
            row[2], row[3] = "-12345", "777"
            changed += 1
    assert changed > 100
    with (folder / "daily.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    run(folder, "after", "--trials", "2")
    assert trials_of(folder, "before") == trials_of(folder, "after")
    assert run(folder, "before", "--trials", "1") == 0  # nor does it stop the search from going on
    capsys.readouterr()


def test_validation_rows_do_change_the_loss(folder, config, dataset):
    from tidecast.training.fit.loop import fit
    from tidecast.training.progress import Progress

    seen = module.without_test_rows(dataset, config.validate_until_ms)
    assert max(int(s.ts[-1]) for s in seen.stretches) < config.validate_until_ms
    small = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, epochs=1))
    model, _ = fit(small, seen, Progress(quiet=True))
    loss = module.validation_loss(model, small, seen)
    assert 0 < loss < 0.5  # in standard deviations
    for s in seen.stretches:
        s.x[s.ts >= config.train_until_ms, 0] += 5
    try:
        assert module.validation_loss(model, small, seen) > 1.2 * loss
    finally:  # the arrays are shared with other tests
        for s in seen.stretches:
            s.x[s.ts >= config.train_until_ms, 0] -= 5


def test_it_goes_on_where_it_ended_and_hands_over_a_config_that_loads(folder, capsys):
    run(folder, "tune", "--trials", "2")
    first = trials_of(folder)
    capsys.readouterr()
    run(folder, "tune", "--trials", "2")
    printed = capsys.readouterr()
    assert "going on after 2 trials" in printed.err
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


def test_ctrl_c_keeps_what_was_found(folder, capsys, monkeypatch):
    real, calls = module.fit, []

    def interrupted(config, dataset, progress):
        calls.append(config)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(config, dataset, progress)

    monkeypatch.setattr(module, "fit", interrupted)
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
    assert "time was over" in capsys.readouterr().err


def test_another_config_in_the_same_folder_is_refused(folder, capsys):
    run(folder, "tune", "--trials", "1")
    config = folder / "daily.toml"
    config.write_text(config.read_text().replace("horizon = 3", "horizon = 2"))
    with pytest.raises(UsageError, match="another config"):
        run(folder, "tune", "--trials", "1")
    capsys.readouterr()


def test_a_trial_that_cannot_be_trained_ends_no_search(folder, capsys, monkeypatch):
    real, calls = module.fit, []

    def broken(config, dataset, progress):
        calls.append(config)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return real(config, dataset, progress)

    monkeypatch.setattr(module, "fit", broken)
    assert run(folder, "tune", "--trials", "2") == 0
    assert [value is None for _, value in trials_of(folder)] == [True, False]
    assert "out of memory" in capsys.readouterr().err


def test_a_poor_trial_is_stopped_after_some_epochs(config, monkeypatch):
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(1, 2))
    good = study.ask()
    for epoch in range(1, 7):
        good.report(0.1, epoch)
    study.tell(good, 0.1)
    task = module._Watched(study.ask()).epochs("training", 6)
    task(1, 0.9, 0.9, 0.9)
    with pytest.raises(optuna.TrialPruned):
        for epoch in range(2, 7):
            task(epoch, 0.9, 0.9, 0.9)


@pytest.mark.parametrize("flags", [("--minutes", "0"), ("--minutes", "-1")])
def test_a_search_needs_time(folder, flags):
    with pytest.raises(UsageError, match="above 0"):
        run(folder, "tune", *flags)
