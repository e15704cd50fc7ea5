"""What the docs print can be typed: a test runs each block or its mark says why not; what commands name is there."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.support.printed import ROOT, SHELL, Block, blocks, blocks_of, commands, pages, spans
from tidecast.service import cli
from tidecast.service.config import settings
from tidecast.service.errors import UsageError

NOT_TYPED = {"text", "mermaid"}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
SCRIPTS = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.M))


def without_a_mark(found: list[Block]) -> list[str]:
    """The blocks of commands that no mark speaks of."""
    return [str(block) for block in found if block.language in SHELL and not (block.name or block.reason)]


def test_every_block_of_commands_is_run_by_a_test_or_says_why_not():
    assert without_a_mark(blocks()) == [], (
        "say above each what runs it or why nothing can: see tests/support/printed.py"
    )


@pytest.mark.parametrize("mark", ["", "<!-- run: -->\n", "<!-- run: a -->\n\n", "<!-- runs: a -->\n"])
def test_a_new_block_without_a_proper_mark_is_found(mark):
    text = f"Words.\n\n{mark}```sh\ntidecast demo\n```\n"
    assert without_a_mark(blocks_of("new.md", text)) == [f"new.md:{text[: text.index('```')].count(chr(10)) + 1}"]


@pytest.mark.parametrize("kind", ["run: a", "not run: needs a cluster"])
def test_a_block_with_a_mark_is_not_complained_of(kind):
    assert without_a_mark(blocks_of("new.md", f"<!-- {kind} -->\n```sh\nmake\n```\n")) == []


def test_no_fence_is_of_a_form_that_these_tests_do_not_see():
    """Such as one that is indented, made of tildes, or with more than a language behind it."""
    for path in pages():
        text = path.read_text("utf-8")
        fences = [line for line in text.splitlines() if line.lstrip("> \t").startswith(("```", "~~~"))]
        assert len(fences) == 2 * len(blocks_of(str(path), text)), path


def test_every_name_of_a_block_is_in_a_test_that_runs_printed_blocks():
    run = set(re.findall(r"<!-- run: ([a-z-]+) -->", (ROOT / ".ci" / "run").read_text("utf-8")))
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text("utf-8")
        run |= set(re.findall(r'"([a-z0-9-]+)"', text)) if "printed(" in text and path != Path(__file__) else set()
    assert {block.name for block in blocks() if block.name} <= run


def test_ci_runs_the_first_commands_of_the_readme():
    first = next(block for block in blocks() if block.page == "README.md")
    assert first.name == "first-commands"
    assert [words[:2] for words in commands(first.text)] == [["make", "demo"], ["make", "test"]]


def test_a_name_is_that_of_one_block():
    names = [block.name for block in blocks() if block.name]
    assert len(names) == len(set(names))


def test_blocks_that_are_no_commands_are_what_they_say_they_are():
    for block in blocks():
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "promql":  # each line is put to a Prometheus: tests/integration/test_dashboards.py
            assert block.page == "docs/runbook.md"
        else:
            assert block.language in {*SHELL, *NOT_TYPED}, f"{block}: what is {block.language!r}, and who checks it?"


# ---------------------------------------------------------------------- what commands name


@cache
def parser(command: str) -> cli.Parser:
    made = cli.Parser(prog=f"tidecast {command}")
    cli.find(command).configure(made)
    return made


def in_blocks(program: str) -> list[tuple[str, list[str]]]:
    """(where, words after the program) of each command in a block of commands, and in the examples of --help."""
    texts = [(str(block), block.text) for block in blocks() if block.language in SHELL]
    texts += [(f"tidecast {name} --help", cli.find(name).EXAMPLE) for name in cli.command_names()]
    return [(where, words[1:]) for where, text in texts for words in commands(text) if words[0] == program]


def in_sentences(program: str) -> list[tuple[str, list[str]]]:
    return [(page, text.split()[1:]) for page, text in spans() if text.startswith(f"{program} ")]


def test_every_printed_tidecast_command_is_one_that_it_takes():
    found = in_blocks("tidecast")
    assert len(found) > 40
    for where, words in found:
        try:
            parser(words[0]).parse(words[1:])
        except UsageError as error:
            pytest.fail(f"{where}: tidecast {' '.join(words)}: {error}")


def test_commands_in_sentences_are_there_and_take_the_words_that_follow():
    found = in_sentences("tidecast")
    assert len(found) > 40
    for page, words in found:
        assert words[0] in cli.command_names(), f"{page}: tidecast {words[0]}"
        if words[1:]:  # without any, a sentence speaks of the command
            parser(words[0]).parse(words[1:])


def test_flags_and_variables_that_stand_alone_in_sentences_are_there():
    parsers = [parser(name) for name in cli.command_names()]
    parsers += [action for each in parsers for action in each.actions.values()]
    known = SCRIPTS + "".join(each.format_help() for each in parsers)
    variables = {variable for name in settings.FIELDS for variable in settings.variables(name)}
    for page, text in spans():
        flag = re.match(r"--[a-z-]+", text)
        assert flag is None or re.search(rf"{flag[0]}(?![a-z-])", known), f"{page}: {flag[0]}"
        named = set(re.findall(r"TIDECAST_[A-Z0-9_]*[A-Z0-9]", text))
        assert named <= variables, f"{page}: {named - variables}"


def test_printed_make_commands_name_targets_and_variables_that_there_are():
    found = in_blocks("make") + in_sentences("make")
    assert {"demo", "test"} <= {word for _, words in found for word in words}
    for where, words in found:
        for word in words:
            name, is_variable, _ = word.partition("=")
            there = f"$({name})" in MAKEFILE if is_variable else name in TARGETS
            assert there, f"{where}: make {word}"


def test_printed_python_commands_name_scripts_and_flags_that_there_are():
    found = in_blocks("python") + in_sentences("python")
    assert len(found) > 10
    for where, words in found:
        assert (ROOT / words[0]).is_file(), f"{where}: python {words[0]}"
        text = SCRIPTS if words[0].startswith("benchmarks/") else (ROOT / words[0]).read_text("utf-8")
        for word in words[1:]:
            assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in text, f"{where}: {' '.join(words)}"


def test_printed_pip_commands_name_extras_that_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = in_blocks("pip") + in_sentences("pip")
    named = {
        extra
        for _, words in found
        for group in re.findall(r"\[([a-z,]+)\]", " ".join(words))
        for extra in group.split(",")
    }
    assert {"train", "broker", "watch", "fast"} <= named <= set(project["optional-dependencies"])


def test_printed_docker_and_kubectl_commands_name_files_that_there_are():
    named = []
    for _, words in in_blocks("docker") + in_blocks("kubectl"):
        named += [after for word, after in itertools.pairwise(words) if word in ("-f", "-k")]
    assert len(named) > 3
    for path in named:
        assert (ROOT / path).exists(), path
