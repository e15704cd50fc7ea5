"""Java as a child that never outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from tidecast.service.errors import BrokerError

# Runs in the child before Java replaces it. The kernel then kills Java when the thread that started it ends, whatever
# ended it. An exec of our own instead of Popen's preexec_fn, which may deadlock in a process with threads.
EXEC_TIED_TO_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_tied(command: list[str], folder: Path, out: str) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`, what it prints going to the file `out` there.

    In a session of its own: a Ctrl-C in the terminal is for the worker, which still needs the broker. On Linux the
    kernel kills it when this process ends in whatever way; elsewhere a parent that is killed leaves it behind.

    Raises:
        BrokerError: it could not be started.
    """
    started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()
    tied = [sys.executable, "-I", "-S", "-c", EXEC_TIED_TO_PARENT, str(os.getpid()), *command]

    def own() -> None:  # the kernel ties the child to the thread that started it, so this one lives as long
        try:
            with (folder / out).open("wb") as file:
                process = subprocess.Popen(
                    tied,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.wait()

    threading.Thread(target=own, name="java", daemon=True).start()
    process = started.get()
    if isinstance(process, OSError):
        raise BrokerError(f"Java could not be started: {process}") from process
    return process
