"""The page's files: our own, and the chart library from its installed package."""

from __future__ import annotations

import hashlib
from importlib import resources

from tidecast.service.errors import TidecastError

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# uPlot 1.6.31 as its author publishes it. One person maintains the package around it, so other bytes are refused.
CHART = {
    "uplot.js": ("uplot.iife.min.js", "2d27e8ad3d228164525ce213f9dc716f39b4e3aee0cc773fb3491c96cf4921a2"),
    "uplot.css": ("uplot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
}


def load() -> dict[str, tuple[bytes, str]]:
    """`name -> (content, content type)` of every file that the page consists of.

    Raises:
        TidecastError: the installed chart library is not the known one.
    """
    found = {}
    for file in (resources.files("tidecast.service.watch") / "static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in TYPES:
            found[file.name] = (file.read_bytes(), f"{TYPES[suffix]}; charset=utf-8")
    vendor = resources.files("youplot") / "vendor"
    for name, (inside, digest) in CHART.items():
        content = (vendor / inside).read_bytes()
        got = hashlib.sha256(content).hexdigest()
        if got != digest:
            raise TidecastError(
                f"the installed youplot contains another {inside}", got=got, do="Run: pip install 'tidecast[watch]'"
            )
        found[name] = (content, f"{TYPES[name[name.rfind('.') :]]}; charset=utf-8")
    return found
