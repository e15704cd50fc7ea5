"""What the docs print to be typed: fenced blocks with their marks, and commands inside of sentences.

A block of commands has a mark on the line above it, which readers of the rendered page do not see:

    <!-- run: NAME -->           a test runs it as it is printed: the one that calls `printed("NAME")`
    <!-- not run: REASON -->     no test can: the reason says what it would need
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL = ("sh", "bash")
_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>run|not run): (?P<mark>[^\n]+?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.M | re.S
)
_SPAN = re.compile(r"`([^`]+)`")
_SEPARATOR = re.compile(r'\s*(?:&&|\|\||[;|&])\s*(?=(?:[^"]*"[^"]*")*[^"]*$)')  # not inside of quotes
_KEYWORDS = ("do", "until", "while", "if", "then")  # of the shell, before a command


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str  # path from the root
    line: int  # of the opening fence, from 1
    language: str
    text: str
    name: str | None  # of `<!-- run: NAME -->`
    reason: str | None  # of `<!-- not run: REASON -->`

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page for people: the Markdown files of the root, docs and of the code's folders."""
    folders = ("docs", "deploy", "training", "service", "tests", "benchmarks", ".github")
    return [*sorted(ROOT.glob("*.md")), *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.md")))]


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of one page."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        name, reason = (match["mark"] if match["kind"] == kind else None for kind in ("run", "not run"))
        found.append(Block(page, line, match["language"], match["text"], name, reason))
    return found


def blocks() -> list[Block]:
    """The fenced blocks of all pages."""
    return [block for path in pages() for block in blocks_of(str(path.relative_to(ROOT)), path.read_text("utf-8"))]


def printed(name: str) -> str:
    """The commands of the one block that has the mark `run: NAME`."""
    (found,) = [block for block in blocks() if block.name == name]
    return found.text


def spans() -> Iterator[tuple[str, str]]:
    """(page, text) of all that stands in backticks inside of sentences and tables, in one line each."""
    for path in pages():
        prose = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
        for match in _SPAN.finditer(prose):
            yield str(path.relative_to(ROOT)), " ".join(match[1].split())


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a piece of shell; comments, pipes, `> FILE` and keywords are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in _SEPARATOR.split(re.sub(r"(^|\s)#.*|\s>\s\S+", "", line)):
            words = shlex.split(part)
            while words and words[0] in _KEYWORDS:
                words = words[1:]
            if words:
                yield words
