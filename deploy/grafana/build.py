"""Writes the boards' JSON: python deploy/grafana/build.py [FOLDER]. A test compares what is committed."""

from __future__ import annotations

import sys
from pathlib import Path

import operations
import quality
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = {"operations": operations.build, "forecast-quality": quality.build}


def main() -> None:
    """One file for each board."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, build in BOARDS.items():
        board = build().build()
        for number, panel in enumerate(board.panels or [], start=1):
            panel.id_val = number  # the same in every browser, for links to one panel
        text = JSONEncoder(sort_keys=True, indent=2).encode(board)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
