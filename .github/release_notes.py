"""Print the section of CHANGELOG.md for a tag: python .github/release_notes.py v0.1.0

Exit code 1 if the tag is not the version in tidecast/__init__.py, or the changelog has no section for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """The text below the version's heading. SystemExit if there is none, or if tag and version differ."""
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, but tidecast/__init__.py says {version}: tag v{version}")
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.M | re.S)
    if found is None or not found[1].strip():
        raise SystemExit(f"CHANGELOG.md has no text under '## [{version}]': rename the section Unreleased")
    return found[1].strip() + "\n"


if __name__ == "__main__":
    code = (ROOT / "tidecast" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', code, re.M)
    sys.stdout.write(notes(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
