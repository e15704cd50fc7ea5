"""The pages that promise something promise only what a test shows."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tidecast.service.broker.kafka_python import transactions
from tidecast.service.config import settings
from tidecast.service.observability import http, liveness, watchdog

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("guarantees.md", "security.md")}
FEWEST = {"guarantees.md": 40, "security.md": 30}  # rows that promise something
SPANS = [span for page in PAGES.values() for span in re.findall(r"`([^`\n]+)`", page)]
NAMED = sorted({span for span in SPANS if "::" in span})


@cache
def names_in(path):
    """The test functions that pytest finds in a file, by name; those of classes too."""
    tree = ast.parse((ROOT / path).read_bytes())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_a_promise_names_is_there(named):
    path, _, name = named.partition("::")
    assert name in names_in(path)


@pytest.mark.parametrize("path", sorted({s for s in SPANS if re.match(r"(tests|service|docs)/[\w/.]*$", s)}))
def test_a_file_or_folder_that_is_named_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", PAGES)
def test_every_promise_and_every_refusal_names_a_test(name):
    last, rows = "", 0
    for line in PAGES[name].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            last = ""
        elif not last:
            last, width = cells[-1], len(cells)
        elif last == "shown by" and set(cells[0]) != {"-"}:
            rows += 1
            assert len(cells) == width and "::test_" in cells[-1], line
    assert rows > FEWEST[name]


def test_the_times_and_limits_are_those_of_the_code():
    page = PAGES["guarantees.md"]
    assert f"hangs for {liveness.STALLED_SECONDS:g} s" in page
    assert f"hangs for {watchdog.END_SECONDS:g} s more" in page
    assert f"aborts it after {transactions.TRANSACTION_TIMEOUT_MS / 1_000:g} s" in page
    page = PAGES["security.md"]
    assert f"{http.TOTAL_SECONDS:g} s is the most for a request" in page
    assert f"Of more connections than {http.MAX_CONNECTIONS} the oldest are dropped" in page
    assert f"`--model-max-bytes` ({settings.default('model_max_bytes') >> 20} MiB)" in page
