"""Writes the stacks of all threads to stderr; also on SIGUSR1.

`faulthandler.register` is not used for the signal: it walks the stacks inside the signal handler while other threads
change them, and sometimes crashes the process. A thread that waits for the signal holds the GIL while it walks them.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading


def dump() -> None:
    """Write the stack of every thread to stderr, the latest call first."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()


def dump_on_signal() -> None:
    """Start waiting for SIGUSR1. Call it before other threads are started: they inherit that the signal is blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_listen, name="stacks", daemon=True).start()


def _listen() -> None:
    while True:
        signal.sigwait({signal.SIGUSR1})
        dump()
