"""What pages, comments and docstrings refer to is there: files, headings, modules, names in them, metrics, tests."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from tests.support.checkout import tracked
from tests.support.printed import ROOT, pages, spans

FOLDERS = r"docs|service|training|tests|deploy|benchmarks|tidecast|\.github|\.ci"
PATH = re.compile(rf"(?<![\w./~-])((?:{FOLDERS})/[\w./-]*\w/?)(?![\w*{{])")
# Files that a command writes or that are the user's own; they are in no checkout.
MADE = {"config.toml", "best.toml", "my.toml", "metrics.json", "MODEL_CARD.md"}
KAFKA_SCRIPT = re.compile(r"kafka-[a-z-]+\.sh")  # Kafka's own
NOT_MODULES = {"tidecast.spec", "tidecast.commands"}  # a key in a model file, a group of entry points
OUTSIDE = re.compile(r"\.\./shared|design\.md")


TRACKED = tracked()


def files(*folders: str, suffix: str = ".py") -> list[Path]:
    return [ROOT / name for name in TRACKED if name.startswith(folders) and name.endswith(suffix)]


def prose_of(path: Path) -> str:
    """The comments and docstrings of a Python file."""
    text = path.read_text("utf-8")
    found = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


@cache
def prose() -> dict[str, str]:
    """What people read in code and settings, by file; made by the first test that asks, as it takes seconds."""
    code = files("service/", "training/", "benchmarks/", "deploy/", "docs/", "tests/")
    found = {str(path.relative_to(ROOT)): prose_of(path) for path in code}
    for name in TRACKED:
        if name.endswith((".yml", ".yaml", ".toml", ".sh", "Dockerfile")) or name in ("Makefile", ".ci/run", ".env"):
            found[name] = "\n".join(re.findall(r"#.*", (ROOT / name).read_text("utf-8")))
    return found


def exists(name: str) -> bool:
    return (ROOT / name).exists()


# ---------------------------------------------------------------------- links


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


# ---------------------------------------------------------------------- files


def test_files_and_folders_that_pages_name_are_there():
    for page, text in spans():
        for name in PATH.findall(text):
            assert exists(name), f"{page}: {name}"
        if re.fullmatch(r"[\w.-]+\.(md|py|toml|yml|yaml|json|sh)", text) and not (
            text in MADE or KAFKA_SCRIPT.match(text)
        ):
            assert any(Path(each).name == text for each in TRACKED), f"{page}: {text}"


def test_files_that_comments_and_docstrings_name_are_there():
    for where, text in prose().items():
        for path in PATH.findall(text):
            assert exists(path) or exists(f"{Path(where).parent}/{path}"), f"{where}: {path}"


def test_no_comment_or_docstring_refers_to_what_is_outside_of_the_repository():
    assert [name for name, text in prose().items() if OUTSIDE.search(text)] == []


def test_no_page_refers_to_what_is_outside_of_the_repository():
    for page in pages():
        assert not OUTSIDE.search(page.read_text("utf-8")), page.name


# ---------------------------------------------------------------------- names in the code


def resolves(dotted: str) -> bool:
    """A module, or an attribute of one, by its path below tidecast or the root of the repository."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end]).removeprefix("tidecast/")
        if exists(f"{stem}.py") or exists(f"{stem}/__init__.py") or (end == len(parts) and (ROOT / stem).is_dir()):
            left = parts[end:]
            if not left:
                return True
            prefix = "" if parts[0] in ("tidecast", "tests") else "tidecast."
            found = importlib.import_module(prefix + ".".join(parts[:end]))
            for attribute in left:
                if not hasattr(found, attribute):
                    fields = getattr(found, "__annotations__", {})
                    return attribute in fields
                found = getattr(found, attribute)
            return True
    return False


@pytest.mark.parametrize("name", ["service.nothing", "service.worker.worker.Nothing", "tests.support.printed.nothing"])
def test_a_name_that_is_not_there_is_found(name):
    assert not resolves(name)
    assert resolves("service.worker.worker.Worker") and resolves("training.train")


DOTTED = re.compile(r"`((?:tidecast|service|training|tests)(?:\.\w+)+)(?:\(\))?`")


def test_modules_that_comments_and_docstrings_name_are_there():
    for where, text in prose().items():
        for dotted in DOTTED.findall(text):
            assert dotted in NOT_MODULES or dotted.endswith(".png") or resolves(dotted), f"{where}: {dotted}"


def test_modules_that_pages_name_are_there():
    for page, text in spans():
        for dotted in DOTTED.findall(f"`{text}`"):
            assert resolves(dotted), f"{page}: {dotted}"


def test_tests_that_pages_name_are_there():
    for page, text in spans():
        if "::" in text:
            path, _, name = text.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{page}: {text}"


# ---------------------------------------------------------------------- metrics


def metric_names() -> set[str]:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    return set(re.findall(r"^\| `(tidecast_\w+)`", page, re.M))


def test_metrics_that_pages_and_rules_name_are_there():
    known = metric_names()
    texts = {page.name: page.read_text("utf-8") for page in pages()}
    rules = [*files("deploy/", suffix=".yml"), *files("deploy/", suffix=".py"), *files("deploy/", suffix=".yaml")]
    texts |= {path.name: path.read_text("utf-8") for path in rules}
    for name, text in texts.items():
        for metric in re.findall(r"(?<![\w:/-])(tidecast_[a-z_]+)(?![\w:*-]|\.)", text):
            family = re.sub(r"_(sum|count|bucket)$", "", metric)
            assert {metric, family} & known, f"{name}: {metric}"
