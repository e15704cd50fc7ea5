"""`--model starter:step=1h&target=temp`: a model that is made when it is asked for, and kept in a cache.

The trainer makes it, in a process of its own: the service never imports it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl

from tidecast import __version__
from tidecast.service.errors import ModelError, UsageError
from tidecast.service.model.model_file import MODEL_FILE

log = logging.getLogger("tidecast.model")

SCHEME = "starter:"
_NAMES = ("step", "target", "features", "horizon", "quantiles", "alarm-rate", "name", "time", "series")
_NEEDED = ("step", "target")
_SECONDS = 600  # that making it may take


def local_model(model: str) -> str:
    """The directory of a `starter:` model, made now if it is not in the cache; any other model as it is.

    Raises:
        UsageError: it says something unknown, or not all that is needed.
        ModelError: the trainer is not installed, or cannot make it.
    """
    if not model.startswith(SCHEME):
        return model
    flags = _flags(model)
    words = [word for name, text in flags.items() for word in (f"--{name}", text)]
    digest = hashlib.sha256("\0".join([__version__, *words]).encode()).hexdigest()[:16]
    directory = _cache() / digest
    if not (directory / MODEL_FILE).is_file():
        log.info("making the starter: up to a minute, the first time only", extra={"directory": str(directory)})
        _make(words, directory)
    return str(directory)


def _flags(model: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(model.removeprefix(SCHEME), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    flags = dict(pairs)
    if len(flags) < len(pairs) or not set(_NEEDED) <= set(flags) <= set(_NAMES):
        raise UsageError(
            f"a model that begins with {SCHEME} says each of {', '.join(_NEEDED)} once, and at most "
            f"{', '.join(name for name in _NAMES if name not in _NEEDED)} too",
            got=model,
            do=f'Write it like "{SCHEME}step=5min&features=temperature,pressure&target=temperature&horizon=12h".',
        )
    return {name: flags[name] for name in _NAMES if name in flags}


def _make(words: list[str], directory: Path) -> None:
    """Make it in a directory of its own, which then takes its place in the cache at once."""
    command = "tidecast starter " + shlex.join(words)
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            "a starter is made by the trainer, which is not installed here",
            do=f"Run: pip install 'tidecast[train]'. Or run elsewhere: {command} --out DIR, and give --model that DIR",
        )
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        out = Path(work) / "starter"
        try:
            child = subprocess.run(
                [sys.executable, "-m", "tidecast", "starter", *words, "--out", str(out)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"making the starter took more than {_SECONDS} s", do=f"Try: {command} --out DIR"
            ) from None
        if child.returncode:
            last = child.stderr.strip().rpartition("\n")[2].removeprefix("tidecast: ")
            raise ModelError(f"the starter cannot be made: {last}", do=f"Try: {command} --out DIR")
        with suppress(OSError):  # another process was faster
            out.rename(directory)
        if not (directory / MODEL_FILE).is_file():
            raise ModelError(
                f"the starter cannot be put into {directory}", do="Set XDG_CACHE_HOME to another directory"
            )


def _cache() -> Path:
    """Where starters are kept: the user's cache, or the system's temporary directory where that cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    for directory in (Path(home) / "tidecast" / "starters", Path(tempfile.gettempdir()) / "tidecast-starters"):
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                return directory
    raise ModelError("there is no directory to keep a starter in", do="Set XDG_CACHE_HOME to one that can be written")
