"""The files of this tree, in a folder of their own: for commands that write into it, or want to be run in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.printed import ROOT


def tracked() -> list[str]:
    """The names of the files that git tracks, or would if they were added, sorted."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if name})


def copy_tree(folder: Path) -> Path:
    """Copy what git tracks, or would if it were added, as it is now; returns the folder."""
    for name in tracked():
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder
