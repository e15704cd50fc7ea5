"""What is not documented does not exist for its users: commands, settings, metrics and the training config."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec
import pytest

from tidecast.service import cli
from tidecast.service.config import settings
from tidecast.training.config import Config
from tidecast.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "metrics.md"])
def test_the_generated_pages_are_what_the_code_says(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == _generator().PAGES[name](), "run: python docs/generate.py"


def test_every_setting_is_on_its_page():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name in settings.FIELDS:
        assert f"`{settings.flag(name)}` | `{settings.variable(name)}`" in page


@pytest.mark.parametrize("command", sorted(cli.command_names()))
def test_every_command_is_in_the_readme_and_its_help_begins_with_an_example(command, capsys):
    assert f"| `tidecast {command}" in README
    assert cli.main([command, "--help"]) == 0
    first = capsys.readouterr().out.strip().splitlines()[0].strip()
    assert first.startswith(f"tidecast {command}")


def test_every_name_of_the_training_config_is_in_the_readme():
    for section in msgspec.structs.fields(Config):
        if section.name == "name":
            continue
        for field in msgspec.structs.fields(section.type):
            assert f"`{section.name}.{field.name}`" in README


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_section_with_its_command_and_its_figures(name):
    sections = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").split("\n## ")
    (found,) = [section for section in sections if section.startswith(f"`{name}`\n")]
    assert f"tidecast recipe {name}\n" in found
    assert re.search(r"^\|.*\| published \| ours \| to reach \|", found, re.M)


def test_every_file_that_the_readme_names_is_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


def test_no_file_names_a_package_index():
    tracked = [p for p in ROOT.iterdir() if p.is_file()] + list((ROOT / "deploy").rglob("*"))
    for path in tracked:
        if path.is_file() and path.suffix != ".png":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"https?://[^\s]*(pypi|pythonhosted|maven|registry\.npm|download\.pytorch)", text), (
                path
            )
