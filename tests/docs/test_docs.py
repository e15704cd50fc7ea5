"""What is not documented does not exist for its users: commands, settings, metrics and the training config."""

from __future__ import annotations

import importlib.util
import re

import msgspec
import pytest

from tests.support.printed import ROOT
from tidecast.service import cli
from tidecast.service.config import settings
from tidecast.training.config import Config
from tidecast.training.recipes import RECIPES

README_LINES = 150  # at most


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "metrics.md"])
def test_the_generated_pages_are_what_the_code_says(name):
    assert page(f"docs/{name}") == _generator().PAGES[name](), "run: python docs/generate.py"


def test_every_setting_is_on_its_page():
    for name in settings.FIELDS:
        assert f"`{settings.flag(name)}` | `{settings.variable(name)}`" in page("docs/settings.md")


@pytest.mark.parametrize("command", sorted(cli.command_names()))
def test_every_command_is_on_its_page_and_its_help_begins_with_an_example(command, capsys):
    assert f"| `tidecast {command}" in page("docs/commands.md")
    assert cli.main([command, "--help"]) == 0
    first = capsys.readouterr().out.strip().splitlines()[0].strip()
    assert first.startswith(f"tidecast {command}")


def test_every_name_of_the_training_config_is_on_its_page():
    for section in msgspec.structs.fields(Config):
        if section.name == "name":
            continue
        if section.name == "input":  # the topic's own table
            assert "`[input]`" in page("docs/training.md")
            continue
        for field in msgspec.structs.fields(section.type):
            assert f"`{section.name}.{field.name}`" in page("docs/training.md")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_section_with_its_command_and_its_figures(name):
    sections = page("docs/recipes.md").split("\n## ")
    (found,) = [section for section in sections if section.startswith(f"`{name}`\n")]
    assert re.search(rf"^tidecast recipe {name}( --data \S+)?$", found, re.M)
    assert re.search(r"^\|.*\| published \| ours \| to reach \|", found, re.M)


def test_the_readme_is_short():
    assert len(page("README.md").splitlines()) <= README_LINES


def test_the_map_names_every_page():
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert path.name == "README.md" or f"]({path.name})" in page("docs/README.md"), path.name


def test_no_file_names_a_package_index():
    tracked = [p for p in ROOT.iterdir() if p.is_file()] + list((ROOT / "deploy").rglob("*"))
    for path in tracked:
        if path.is_file() and path.suffix != ".png":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"https?://[^\s]*(pypi|pythonhosted|maven|registry\.npm|download\.pytorch)", text), (
                path
            )
