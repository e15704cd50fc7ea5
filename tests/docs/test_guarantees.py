"""docs/guarantees.md promises only what a test shows, and sends nobody to a command or flag that is not there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from service import cli, pulse, settings, watchdog
from service.broker import kafka_python_transactions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
SPANS = re.findall(r"`([^`\n]+)`", PAGE)
NAMED = sorted({span for span in SPANS if "::" in span})
COMMANDS = sorted({span for span in SPANS if span.startswith("tidecast ")})
FLAGS = sorted({span.split()[0] for span in SPANS if span.startswith("--")})


@cache
def names_in(path):
    """The test functions that pytest finds in a file, by name; those of classes too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_a_promise_names_is_there(named):
    path, _, name = named.partition("::")
    assert name in names_in(path)


@pytest.mark.parametrize("path", sorted({s for s in SPANS if re.match(r"(tests|service|docs)/[\w/.]*$", s)}))
def test_a_file_or_folder_that_is_named_is_there(path):
    assert (ROOT / path).exists()


def test_every_promise_and_every_refusal_names_a_test():
    last, rows = "", 0
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            last = ""
        elif not last:
            last, width = cells[-1], len(cells)
        elif last == "shown by" and set(cells[0]) != {"-"}:
            rows += 1
            assert len(cells) == width and "::test_" in cells[-1], line
    assert rows > 40


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_mends_something_can_be_run_as_written(line):
    _, name, *rest = line.split()
    command = cli.find(name)
    parser = cli.Parser(prog=f"tidecast {name}", command=command)
    command.configure(parser)
    parser.parse(rest)  # raises what the person would read


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_is_named_is_a_setting(flag):
    assert flag in {settings.flag(name) for name in settings.FIELDS}


def test_the_times_are_those_of_the_code():
    assert f"stands still for {pulse.STALLED_SECONDS:g} s" in PAGE
    assert f"goes on for {watchdog.END_SECONDS:g} s more" in PAGE
    assert f"aborts it after {kafka_python_transactions.TRANSACTION_TIMEOUT_MS / 1_000:g} s" in PAGE
