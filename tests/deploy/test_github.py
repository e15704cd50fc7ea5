"""The workflows that GitHub would run, checked without GitHub: their schemas, what they call, and the release notes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.support.printed import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def steps(path):
    return [step for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_fits_the_schema(path):
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("actionlint"), reason="no actionlint")
def test_actionlint_finds_nothing():
    done = subprocess.run(["actionlint", "-shellcheck=", "-pyflakes=", *WORKFLOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_targets_and_files_that_a_workflow_runs_are_there(path):
    commands = "\n".join(step["run"] for step in steps(path) if "run" in step)
    for target in re.findall(r"^make ([a-z-]+)$", commands, re.M):
        assert re.search(rf"^{target}:.*##", MAKEFILE, re.M), target
    named = re.findall(r"(?<![\w/])((?:\.ci|\.github|deploy)/[\w./]+)", commands)
    assert all((ROOT / name).is_file() for name in named), named


def test_ci_runs_everything_on_the_oldest_and_the_newest_python_and_some_on_macos_and_arm():
    jobs = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert jobs["all"]["steps"][-1]["run"] == "bash .ci/run"
    assert jobs["without-kafka"]["strategy"]["matrix"]["os"] == ["macos-latest", "ubuntu-24.04-arm"]


def test_the_issue_templates_are_forms():
    for name in ("bug", "feature"):
        form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text("utf-8"))
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))
        assert {part["type"] for part in form["body"]} <= {"textarea", "input"}


def test_the_hooks_run_what_make_lint_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1]
    run = [line.strip().removeprefix("@").replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    assert [hook["entry"] for hook in repo["hooks"]] == [command.removesuffix(" .") for command in run]


# ---------------------------------------------------------------------- release notes


@pytest.fixture(scope="module")
def notes():
    spec = importlib.util.spec_from_file_location("release_notes", GITHUB / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notes


CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [1.1.0] - 2026-12-01\n\n- new\n\n## [1.0.0]\n\n- old\n"


def test_the_notes_of_a_release_are_its_section_of_the_changelog(notes):
    assert notes("v1.1.0", "1.1.0", CHANGELOG) == "- new\n"
    assert notes("v1.0.0", "1.0.0", CHANGELOG) == "- old\n"


@pytest.mark.parametrize(
    ("tag", "version", "what"),
    [("v1.2.0", "1.1.0", "the tag is v1.2.0"), ("v1.2.0", "1.2.0", "no text under"), ("v1.1", "1.1", "no text under")],
)
def test_a_release_whose_tag_version_and_changelog_differ_is_refused(notes, tag, version, what):
    with pytest.raises(SystemExit, match=what):
        notes(tag, version, CHANGELOG)
