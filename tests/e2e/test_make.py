"""Every `make` target, with and without the variables that it takes: what it does, or what it passes on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import copy_tree
from tests.support.printed import ROOT

PHONY = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1].split()

# Not run here from start to end, and why. What some of them pass on is tested below all the same.
ELSEWHERE = {
    "demo": ".ci/run runs it as the README prints it; with SECONDS=20, test_readme.py does",
    "test": ".ci/run runs it, and it runs this test",
    "test-long": ".ci/run runs it",
    "test-fast": "a part of `make test`",
    "stress": "the whole suite several times: an hour",
    "lint": "`make test` runs it first",
    "types": "`make test` runs it first",
    "unit": "a part of `make test`",
    "integration": "a part of `make test`",
    "chaos": "hours; short storms are in `make test-long`, the rubbish and the long run in `make test`",
    "bench": "half an hour on a quiet machine",
    "compose-test": "needs Docker, or podman and stand-in images",
    "audit": "its answer changes with each new advisory; tests/deploy/test_audit.py tests what it makes of it",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this tree, with the environment that is there."""
    environment = Path(sys.prefix)
    if not (environment / ".dev").is_file():
        pytest.skip("needs the environment that `make setup` makes")
    folder = copy_tree(tmp_path_factory.mktemp("make") / "tidecast")
    (folder / ".venv").symlink_to(environment)
    return folder


def make(checkout, *words, code=0, **variables):
    """Run `make` with these words and nothing in the environment but PATH, HOME and `variables`."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    done = subprocess.run(
        ["make", *words], cwd=checkout, env=env, text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def passed_on(checkout, tmp_path):
    """`passed_on(words)`: the commands of .venv that make then runs, as [program, words]; they do nothing."""

    def run(*words, **variables):
        record = tmp_path / "record"
        record.write_text("")
        for program in ("python", "tidecast"):
            path = tmp_path / program
            path.write_text(f'#!/bin/sh\necho {program} "$@" >> {shlex.quote(str(record))}\n')
            path.chmod(0o755)
        make(checkout, *words, f"BIN={tmp_path}", **variables)
        return [line.split() for line in record.read_text().splitlines()]

    return run


def test_every_target_is_run_here_or_listed_with_its_reason():
    here = set(re.findall(r'\bmake\(checkout, "([a-z-]+)"', Path(__file__).read_text("utf-8")))
    assert {*here, *ELSEWHERE} == set(PHONY)


def test_help_lists_every_target(checkout):
    text = make(checkout, "help")
    assert text == make(checkout)
    assert set(re.findall(r"^  make (\S+)", text, re.MULTILINE)) == set(PHONY)


def test_setup_has_nothing_to_do_where_it_is_done(checkout):
    assert "installing" not in make(checkout, "setup")


def test_the_demo_lasts_as_long_as_its_command_says_unless_seconds_are_given(passed_on):
    assert passed_on("demo") == [["tidecast", "demo"]]
    assert passed_on("demo", "SECONDS=20") == [["tidecast", "demo", "--seconds", "20"]]
    assert passed_on("demo", SECONDS="20") == [["tidecast", "demo", "--seconds", "20"]]
    assert passed_on("demo", "SECONDS=") == [["tidecast", "demo"]]


@pytest.mark.parametrize(
    ("given", "storm"),
    [([], ["--seed", "1", "--storms", "10"]), (["SEED=7", "STORMS=2"], ["--seed", "7", "--storms", "2"])],
)
def test_chaos_passes_on_what_its_programs_take(passed_on, checkout, given, storm):
    programs = passed_on("chaos", *given)
    assert programs[0] == ["python", "-m", "tests.chaos.storm", *storm]
    scenarios = {"around", "route", "join", "promote"}
    for scenario in scenarios:
        storms = [words for words in programs if scenario in words]
        assert [words[words.index("--client") + 1] for words in storms] == ["confluent", "kafka-python"]
    assert len(programs) == 1 + 2 * len(scenarios) + 2
    for _, *words in programs:
        # The flags are read before --help is met: one without its value fails.
        done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_all_benchmarks_are_there_and_those_that_are_asked_for_are_run(passed_on):
    everything = [words[1] for words in passed_on("bench")]
    assert len(everything) > 10
    assert [path for path in everything if not (ROOT / path).is_file()] == []
    two = [["python", "benchmarks/engine.py"], ["python", "benchmarks/latency.py"]]
    assert passed_on("bench", "BENCHMARKS=engine latency") == two
    assert passed_on("bench", BENCHMARKS="engine latency") == two


def test_the_stack_is_tested_by_docker_or_by_its_substitute(passed_on):
    assert passed_on("compose-test")[0][:3] == ["python", "-m", "tests.compose"]


def test_the_fast_tests_are_those_of_files_that_there_are(passed_on):
    ((program, *words),) = passed_on("test-fast")
    paths = [word for word in words if word.startswith("tests/")]
    assert program == "python" and len(paths) > 2
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("given", "rounds"), [([], "5"), (["ROUNDS=2"], "2")])
def test_stress_runs_all_tests_five_times_or_as_often_as_rounds_says(passed_on, given, rounds):
    assert passed_on("stress", *given) == [["python", "-m", "tests.stress", "--rounds", rounds]]


@pytest.mark.parametrize(
    ("target", "folders"), [("unit", ["tests/unit", "tests/training"]), ("integration", ["tests/integration"])]
)
def test_parts_of_the_tests_are_those_of_folders_that_there_are(passed_on, target, folders):
    assert passed_on(target) == [["python", "-m", "pytest", *folders]]
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_format_fixes_what_lint_refuses(checkout):
    untidy = checkout / "benchmarks" / "untidy.py"
    untidy.write_text('"""Untidy."""\nimport sys\nimport os\nx = { 1:os , 2:sys }\n')
    make(checkout, "lint", code=2)
    make(checkout, "format")
    make(checkout, "lint")
    untidy.unlink()


def test_the_pins_are_those_of_pyproject_and_can_be_renewed(checkout):
    pins = checkout / "requirements.txt"
    before = pins.read_text()
    make(checkout, "pins")
    assert pins.read_text() == before, "run: make pins"
    make(checkout, "pins", "UPGRADE=1")
    assert len(pins.read_text().splitlines()) > 100


def test_python_says_which_interpreter_makes_the_environment(checkout, tmp_path):
    """Without PYTHON= it is made by `make demo` in .ci/run."""
    made = (f"VENV={tmp_path}/venv", f"PYTHON={sys.executable}", f"{tmp_path}/venv/bin/python")
    assert f"making {tmp_path}/venv with Python 3." in make(checkout, *made)
    assert (tmp_path / "venv/bin/python").exists()


def test_a_python_that_is_too_old_is_named(checkout, tmp_path):
    text = make(checkout, f"VENV={tmp_path}/venv", "PYTHON=/bin/false", f"{tmp_path}/venv/bin/python", code=2)
    assert "needs Python 3.11 or newer; /bin/false is not" in text


def test_clean_removes_what_was_built_and_keeps_models_and_the_pins(checkout):
    model = checkout / "build" / "weather" / "model.onnx"
    for path in (model, checkout / "build/lib/x", checkout / "service/__pycache__/x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(checkout, "clean")
    assert model.exists() and (checkout / "requirements.txt").exists()
    assert not any((checkout / gone).exists() for gone in (".venv", "build/lib", "service/__pycache__"))
