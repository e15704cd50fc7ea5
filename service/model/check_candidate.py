"""The other process of `candidate`: it reads a model file from stdin, loads it within its limits, and says why not.

Exit codes: 0 = accepted; 1 = refused, stdout has [what, what to do] as JSON; OUT_OF_MEMORY. A signal ends it where the
file makes onnxruntime crash, or where its time is used up.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tidecast.service.errors import ModelError
from tidecast.service.model.candidate import OUT_OF_MEMORY

_LONGEST = 500  # characters of a sentence: it becomes one line of a log
_ROWS = 256  # a wave of readings: it uses the session for many rows
_ALLOCATION_FAILED = re.compile("bad_alloc|allocat.*memory|memory.*allocat", re.IGNORECASE)


def main() -> None:
    """Check what comes from stdin, and end."""
    parent, cpu_seconds, room, threads = map(int, sys.argv[1:])
    _limit(parent, cpu_seconds)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread would reserve memory
    from tidecast.service.model.session import Model

    _limit_memory(room)
    code = 0
    try:
        Model.from_bytes(sys.stdin.buffer.read(), "", threads).try_batch(_ROWS)
    except MemoryError:
        code = OUT_OF_MEMORY
    except ModelError as error:
        code = OUT_OF_MEMORY if _ALLOCATION_FAILED.search(str(error.got)) else 1
        what = error.what if error.got is None else f"{error.what}, got {error.got!r}"
        if code == 1:
            sys.stdout.write(json.dumps([_short(what), error.do]))
            sys.stdout.flush()
    os._exit(code)  # onnxruntime's own end takes a while


def _limit(parent: int, cpu_seconds: int) -> None:
    """Die with the parent, be the first that the kernel kills for memory, end by SIGXCPU, leave no core dump."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        with suppress(OSError):  # where /proc is read-only
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        os._exit(1)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, cpu_seconds)


def _limit_memory(room: int) -> None:
    """Allow so many bytes more than now. Not on macOS, where the kernel ignores the limit."""
    if sys.platform == "linux":
        found = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        limit = room + (int(found[1]) << 10 if found else 0)
        _lower(resource.RLIMIT_DATA, limit)


def _lower(kind: int, limit: int) -> None:
    """Set this limit, unless a lower one is in force already."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
