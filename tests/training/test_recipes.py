"""Every recipe runs, in a reduced form, and the worker serves what torch computes."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.printed import printed
from tidecast.service.errors import DataError, ModelError, UsageError
from tidecast.service.model.session import Model
from tidecast.training.commands import recipe
from tidecast.training.export.parity import TOLERANCE, torch_step
from tidecast.training.progress import Progress
from tidecast.training.recipes import RECIPES, SUMMARIES, gradients
from tidecast.training.recipes.parts import serving
from tidecast.training.recipes.parts.loop import fit
from tidecast.training.recipes.parts.serving import Names, deliver
from tidecast.training.recipes.parts.show import Line, Outcome
from tidecast.training.recipes.parts.steps import EncoderDecoder, Memoryless, Recurring, Windowed


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    recipe.configure(parser)
    return parser.parse_args(list(words))


TRAINED = {name: module for name, module in RECIPES.items() if name != "nab"}  # that one is tests/training/test_nab.py


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A file like MNIST's with a few noisy stripes in it: the real one is not ours to ship."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 500)
    images = generator.integers(0, 60, (500, 28, 28)).astype(np.uint8)
    images[np.arange(500), 2 * labels + 3] = 255
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x_train=images[:400], y_train=labels[:400], x_test=images[400:], y_test=labels[400:])
    return path


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_exports_and_serves_what_torch_computes(name, digits, tmp_path, capsys):
    assert recipe.run(parsed(name, "--quick", "--quiet", "--out", str(tmp_path), "--data", str(digits))) == 0
    out = tmp_path / name
    printed = capsys.readouterr().out
    assert name in printed
    assert "Each answer was compared with" in printed
    assert all(str(path) in printed for path in out.iterdir())  # the plot, the models, the figures
    assert (out / "plot.png").stat().st_size > 10_000
    found = json.loads((out / "figures.json").read_text())
    assert found["figures"]
    assert all(0 <= served["difference_from_torch"] <= TOLERANCE for served in found["served"])
    models = list(out.glob("*.onnx"))
    assert len(models) == len(found["served"])
    for path in models:
        Model.load(path)  # as the worker does, its self-test and all
    if name == "sine-windows":  # the total loss of every epoch
        first, *epochs = (out / "epochs.csv").read_text().splitlines()
        assert first == "epoch,carried,stateless"
        assert [line.split(",")[0] for line in epochs] == ["1", "2", "3", "4"]
        assert all(float(total) > 0 for line in epochs for total in line.split(",")[1:])


@pytest.mark.parametrize("name", ["recipe-running-sum"])
@pytest.mark.long
def test_a_printed_recipe_reaches_its_figure_and_ends_with_0(name, tmp_path):
    env = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-ec", printed(name)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("build/recipes/*/figures.json")
    assert any(figure["ours"] <= 0.01 for figure in json.loads(path.read_text())["figures"])


@pytest.mark.parametrize(
    ("losses", "clip", "reached"),
    [([1.0, 2e30], math.inf, None), ([1.0, math.nan], math.inf, None), ([0.01], 1.0, True), ([math.nan], 1.0, False)],
)
def test_an_explosion_without_clipping_is_no_failure_whether_or_not_it_overflows(losses, clip, reached):
    assert gradients.ending("a name", losses, clip).reached is reached


def test_no_recipe_trains_or_exports_by_a_way_of_its_own():
    for module in TRAINED.values():
        source = Path(importlib.import_module(module).__file__).read_text(encoding="utf-8")
        called = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
        assert not called & {"optim", "zero_grad", "onnx", "export"}, module
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert {"fit", "deliver"} <= names, module
        if module != "tidecast.training.recipes.gradients":  # where the lesson is the loop
            assert "backward" not in called, module


STEPS = {
    "recurring": lambda: Recurring("lstm", 2, 5, (3, 2)),
    "classifier": lambda: Recurring("gru", 2, 5, (4,)),
    "encoder-decoder": lambda: EncoderDecoder(2, 6, 3),
    "windowed": lambda: Windowed(torch.nn.Linear(4, 1), 4, 3),
    "memoryless": lambda: Memoryless(2, 5, (1, 1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_window_carried_on_equals_the_steps_one_by_one(name):
    torch.manual_seed(0)
    model = STEPS[name]().eval()
    x = torch.randn(3, 9, model.features)
    x[0, 4] = float("nan")
    with torch.no_grad():
        first, state = model.roll(x[:, :4])
        then, after = model.roll(x[:, 4:], state)
        whole = model.answer(torch.cat([first, then], dim=1)).numpy()
        last = model.answer(model.roll(x, last=True)[0]).numpy()
    step, carried = torch_step(model), np.tile(model.initial_state().numpy(), (3, 1))
    for t in range(9):
        y, carried, score = step(x[:, t].numpy(), np.zeros(3, np.int64), carried)
        np.testing.assert_allclose(whole[:, t], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[:, 0], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.numpy(), carried, rtol=1e-5, atol=1e-6)
    assert score.shape == (3, 0)


def test_what_is_served_is_really_compared_with_torch(tmp_path, monkeypatch):
    honest = serving.answers_of_worker

    def wrong(*args):
        y, warm = honest(*args)
        y[0, -1] *= 1.001
        return y, warm

    monkeypatch.setattr(serving, "answers_of_worker", wrong)
    x = np.ones((2, 3, 1), np.float32)
    with pytest.raises(ModelError, match="differs from torch"):
        deliver(Recurring("rnn", 1, 4, (2,)), Names("wrong", ["value"], [], ["a", "b"]), x, tmp_path / "m.onnx")


def test_an_answer_is_warm_after_the_last_message_and_not_before(tmp_path):
    x = np.ones((2, 5, 1), np.float32)
    names = Names("warm", ["value"], [], ["a", "b"])
    served = deliver(Recurring("rnn", 1, 4, (2,)), names, x, tmp_path / "model.onnx", warmup=5, gate_steps=20)
    assert served.warm.tolist() == [[False] * 4 + [True]] * 2


def test_the_state_is_carried_from_window_to_window_only_when_asked_for():
    seen = []

    class Spy(Recurring):
        def roll(self, x, state=None, *, last=False):
            seen.append(state)
            return super().roll(x, state, last=last)

    pairs = [(torch.ones(1, 2, 1), torch.ones(1, 2, 1, 1))] * 3
    for carry in (False, True):
        trace = fit(Spy("rnn", 1, 4, (1, 1)), lambda epoch: pairs, torch.nn.functional.mse_loss, updates=6, epochs=2,
                    learning_rate=0.01, carry=carry, progress=Progress(quiet=True))  # fmt: skip
    assert [state is None for state in seen] == [True] * 6 + [True, False, False] * 2
    assert not any(state.requires_grad for state in seen if state is not None)
    assert len(trace.totals) == 2
    assert sum(trace.totals) == pytest.approx(sum(trace.losses))


def test_a_missed_figure_is_a_failure_and_a_text_is_none():
    assert Line("loss", 0.2, at_most=0.1).reached is False
    assert Line("accuracy", 97.4, at_least=97.4).reached is True
    assert Line("sums", "[1, 2]", at_most=0.1).reached is None
    assert [line.what for line in Outcome("all", [Line("a", 1.0), Line("b", float("nan"), at_most=1)]).missed] == ["b"]


def test_without_a_name_the_recipes_are_listed(capsys):
    assert recipe.run(parsed()) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed and SUMMARIES[name] in listed for name in RECIPES)


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(UsageError, match="Did you mean running-sum"):
        recipe.run(parsed("runing-sum"))


def test_a_file_without_digits_is_refused_in_words(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="does not hold the MNIST digits"):
        recipe.run(parsed("mnist-rows", "--data", str(path), "--out", str(tmp_path), "--quick", "--quiet"))
