"""The demo's other processes: tidecast commands that always end before the demo does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import tidecast
from tidecast.service.broker.embedded.child_process import start_tied
from tidecast.service.errors import TidecastError

_SOURCE = Path(tidecast.__file__).resolve().parent.parent  # also works without an installation
_RUN = f"import sys; sys.path.insert(0, {str(_SOURCE)!r}); from tidecast.service.cli import main; sys.exit(main())"


def command(*args: str) -> list[str]:
    """The `tidecast` command with these arguments, run by this Python."""
    return [sys.executable, "-c", _RUN, *args]


class Child:
    """A running tidecast command; its output goes to `<name>.log` in the folder."""

    def __init__(self, name: str, folder: Path, *args: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = start_tied(command(*args), folder, self.log.name)

    @property
    def pid(self) -> int:
        """Process id; 0 once it was stopped."""
        return self._process.pid if self._process else 0

    def ended(self) -> bool:
        """True once it has ended without an error.

        Raises:
            TidecastError: it failed; the text contains the end of its log.
        """
        code = None if self._process is None else self._process.poll()
        if code:
            raise TidecastError(
                f"the {self.name} ended with exit code {code}; the end of {self.log}:\n{self.log_tail()}\n"
            )
        return code == 0

    def log_tail(self, lines: int = 12) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL for one that has not ended after `timeout_s`."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
