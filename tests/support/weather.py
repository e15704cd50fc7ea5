"""A model of the weather sample, trained by the commands that the README prints: once in a run, for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.one_at_a_time import one_at_a_time
from tests.support.printed import ROOT, printed
from tidecast.service.broker.embedded import jars

EPOCHS = "epochs = 40", "epochs = 4"  # it needs no more to beat what is cheap; .ci/run trains on the sample as it is


def paste(commands: str, folder: Path, *within: str) -> subprocess.CompletedProcess[str]:
    """Run them in one shell, as a person would who has just logged in, stopping at the first that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name.endswith(("_NUM_THREADS", "JAVA_OPTIONS"))}
    return subprocess.run(
        [*within, "bash", "-emc", commands],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(jars.cache_dir().parents[1]), **kept},
        text=True,
        capture_output=True,
        timeout=1000,
        stdin=subprocess.DEVNULL,
    )


def trained(folder: Path) -> Path:
    """`folder`, with the sample and all that the printed commands leave; what they print is in `stdout`.

    Several processes may ask at once: the first one trains, the others wait.
    """
    with one_at_a_time(folder / "lock"):
        if not (folder / "stdout").exists():
            samples = folder / "training" / "samples"
            shutil.copytree(ROOT / "training" / "samples", samples, dirs_exist_ok=True)
            config = (samples / "weather.toml").read_text()
            assert EPOCHS[0] in config
            (samples / "weather.toml").write_text(config.replace(*EPOCHS))
            done = paste(printed("train"), folder)
            assert done.returncode == 0, done.stderr
            (folder / "stdout").write_text(done.stdout)
    return folder
