"""No page, comment, message or name of a test uses the words that readers had to decode."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import tracked
from tests.support.printed import ROOT

STRUCK = re.compile(
    r"\b(?:go(?:es|ing)? on|went on|(?:is|are|was|were|be|been) told|eaten|mend(?:s|ed|ing)?|of late|takes? us in|be it"
    r"|dear(?:er|est)?|beside|for want of|cannot be had|whatever dies|thereby|wherein|puts? out|lets? go of"
    r"|(?:comes?|came|coming) to nothing|st(?:ands?|ood) still|in (?:the|its) midst)\b",
    re.I,
)
FOLDERS = ("docs/", "service/", "training/", "deploy/", "benchmarks/", "tests/", "tidecast/", ".github/", ".ci/")
READ = {".py", ".md", ".yml", ".yaml", ".toml", ".sh", ".js", ".css", ".html", ".json", ""}


def struck(text: str) -> list[str]:
    """The lines with such a word; in names underscores count as spaces, and a line's end as one."""
    plain = re.sub(r"\n[ \t]*(?:#|//|\*|-)?[ \t]*", "\n", text.replace("_", " "))
    found = STRUCK.finditer(re.sub(r"\s", " ", plain))
    return [f"line {plain.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in found]


def texts() -> list[Path]:
    names = [name for name in tracked() if name.startswith(FOLDERS) or "/" not in name]
    paths = [ROOT / name for name in names if name != "LICENSE"]
    return [path for path in paths if path.suffix in READ and path.is_file() and path != Path(__file__)]


def test_none_of_the_struck_words_is_left():
    assert [f"{p.relative_to(ROOT)}: {found}" for p in texts() for found in struck(p.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "text", ["The worker goes on.", "def test_a_worker_goes_on():", "# what it\n    # mends", "Beside it"]
)
def test_a_struck_word_is_found(text):
    assert struck(text)


def test_an_ordinary_sentence_is_not():
    assert struck("The worker continues; it is notified in the middle of a batch. Recommended: put it outside.") == []
