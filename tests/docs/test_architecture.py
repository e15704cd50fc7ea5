"""The drawing of the packages in docs/architecture.md is what the code imports."""

from __future__ import annotations

import itertools
import re

import grimp
import pytest

from tests.support.printed import blocks

DRAWINGS = {
    match[1]: block.text
    for block in blocks()
    if block.page == "docs/architecture.md" and (match := re.search(r"subgraph (\w+)", block.text))
}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("tidecast")


def reachable(arrows, start):
    found, todo = set(), [start]
    while todo:
        for imported in arrows.get(todo.pop(), ()):
            if imported not in found:
                found.add(imported)
                todo.append(imported)
    return found


@pytest.mark.parametrize("half", ["service", "training"])
def test_every_import_between_packages_follows_arrows_and_no_arrow_is_too_many(half, graph):
    drawn: dict[str, set[str]] = {}
    for importer, imported in re.findall(r"(\w+)(?:\[\w+\])? --> (\w+)", DRAWINGS[half]):
        drawn.setdefault(importer.removeprefix("t_"), set()).add(imported.removeprefix("t_"))
    for importer, imported in itertools.permutations(graph.find_children(f"tidecast.{half}"), 2):
        names = importer.rpartition(".")[2], imported.rpartition(".")[2]
        imports = graph.direct_import_exists(importer=importer, imported=imported, as_packages=True)
        if imports:
            assert names[1] in reachable(drawn, names[0]), f"{importer} imports {imported}: draw an arrow"
        else:
            assert names[1] not in drawn.get(names[0], ()), f"{importer} does not import {imported}: remove the arrow"
