"""Where a command writes its data: stdout, or a file that appears only when it is complete."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tidecast.service.errors import UsageError


@contextlib.contextmanager
def open_output(name: str, do: str, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Stdout for "-", else a file that appears only when it is complete, so that nobody takes a part for all.

    A `private` one can be read by its owner only.

    Raises:
        UsageError: it cannot be written; `do` says what to give instead.
    """
    if name == "-":
        yield sys.stdout.buffer
        return
    path = Path(name)
    part = path if path.exists() and not path.is_file() else path.with_name(f"{path.name}.part")  # /dev/null, a pipe
    try:
        file = part.open("wb")
    except OSError as error:
        raise UsageError(f"cannot write {part}: {error.strerror}", do=do) from None
    try:
        with file:
            if private and part != path:
                os.fchmod(file.fileno(), 0o600)
            yield file
        if part != path:
            part.replace(path)
    except BaseException as error:
        if part != path:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise UsageError(f"cannot write {path}: {error.strerror}", do=do) from None
        raise
