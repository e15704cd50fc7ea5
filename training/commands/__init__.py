"""Commands that need torch; `tidecast` finds them through the entry-point group `tidecast.commands`."""

from __future__ import annotations

from pathlib import Path

from tidecast.service.errors import UsageError


def folder(path: Path | str) -> Path:
    """The directory to write into, made where there is none yet.

    Raises:
        UsageError: it cannot be made.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the directory {directory}: {error.strerror or error}", do="Choose another directory."
        ) from None
    return directory
