"""What every thread is doing, on stderr; also on SIGUSR1.

The signal not by `faulthandler.register`: that walks the stacks from within the signal, while other threads change
them, and now and then it crashes the process that somebody wants to look at. A thread that waits for the signal holds
the interpreter's lock while it looks.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading


def show() -> None:
    """Write the stack of every thread to stderr, the latest call first."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()


def dump_on_signal() -> None:
    """Start listening; call it before any other thread is started, as they inherit that the signal is not theirs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_listen, name="stacks", daemon=True).start()


def _listen() -> None:
    while True:
        signal.sigwait({signal.SIGUSR1})
        show()
