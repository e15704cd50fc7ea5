"""A model file on trial: another process loads it first, within limits of time and memory, and runs its self-test.

What a file can do to onnxruntime (compute without end, use all memory, crash) happens there, not in the worker. The
bytes are read once: those that were checked are those that are loaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import tidecast
from tidecast.service.errors import ModelError
from tidecast.service.memory_limit import memory_limit
from tidecast.service.model.model_file import ModelFile

_SOURCE = Path(tidecast.__file__).resolve().parent.parent  # also works without an installation
_RUN = f"import sys; sys.path.append({str(_SOURCE)!r}); from tidecast.service.model.check_candidate import main; main()"
_MB = 1 << 20
OUT_OF_MEMORY = 3  # exit code of the other process
_OWN_BYTES = 80 * _MB  # what the other process needs without a model: Python, numpy, onnxruntime
_LEAST_BYTES, _LEAST_PER_BYTE = 32 * _MB, 5  # for a model, and for each byte of its file: two sessions, and copies
_RETRAIN = "Train a smaller model, or export this one again with `tidecast train`"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the check may use. A file of 1 MB takes 1 s of CPU time and 10 MB, one of 60 MB 2 s and 300 MB."""

    cpu_seconds: int = 10
    seconds: float = 60.0  # on a busy machine 10 s of CPU take long
    memory_bytes: int = 1024 * _MB  # in addition to `_OWN_BYTES`; less where the container has less left


class Candidate:
    """A model file that another process checks.

    Args:
        file: what to check.
        intra_op_threads: as for `Model.load`.
        limits: what the check may use.
    """

    def __init__(self, file: ModelFile, intra_op_threads: int = 1, limits: Limits | None = None) -> None:
        self.file = file
        self._threads, self._limits = intra_op_threads, limits or Limits()
        self._verdict: SimpleQueue[ModelError | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._cancelled = False
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Begin the check, once."""
        # The kernel ties the process to the thread that started it, so this one lives as long.
        threading.Thread(target=self._check, name="model-check", daemon=True).start()

    def wait(self) -> None:
        """Wait for the end of the check, once.

        Raises:
            ModelError: the file is refused.
        """
        if (error := self._verdict.get()) is not None:
            raise error

    def cancel(self) -> None:
        """End the check, if it still runs."""
        with self._lock:
            self._cancelled = True
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _check(self) -> None:
        try:
            self.run()
        except ModelError as error:
            self._verdict.put(error)
        except Exception as bug:
            self._verdict.put(ModelError(f"the model could not be checked: {type(bug).__name__}: {bug}"))
        else:
            self._verdict.put(None)

    def run(self) -> None:
        """Check it now, and wait.

        Raises:
            ModelError: the file is refused.
        """
        limits, room = self._limits, self._room()
        numbers = (os.getpid(), limits.cpu_seconds, room, self._threads)
        command = [sys.executable, "-P", "-c", _RUN, *map(str, numbers)]
        try:
            with self._lock:
                if self._cancelled:
                    raise ModelError("the check of the model was ended")
                self._process = process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C in the terminal is for the worker
                )
        except OSError as error:
            raise ModelError(
                f"the process that checks the model could not be started: {error}",
                do="Check the limits of processes and memory of this worker",
            ) from None
        with process:
            try:
                said, _ = process.communicate(self.file.data, timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                raise ModelError(
                    f"the check of the model did not end within {limits.seconds:g} s",
                    do=f"{_RETRAIN}; if the machine is busy, send SIGHUP to the worker to check it again",
                ) from None
            finally:
                process.kill()  # nothing happens to one that has ended
        _judge(process.returncode, said, limits, room)

    def _room(self) -> int:
        """Bytes that the check may use for the model, so that the container does not run out of memory."""
        limit, needed = memory_limit(), _LEAST_BYTES + _LEAST_PER_BYTE * len(self.file.data)
        left, most = limit.left(), max(self._limits.memory_bytes, needed)
        if left is None:
            return most
        room = left - _OWN_BYTES
        if room < needed:
            raise ModelError(
                f"too little memory is left to check the model: {max(left, 0) // _MB} MB of the container's "
                f"{limit.bytes // _MB} MB, {(needed + _OWN_BYTES) // _MB} MB are needed",
                do="Raise the container's memory limit, or lower --max-series",
            )
        return min(room, most)


def _judge(code: int, said: bytes, limits: Limits, room: int) -> None:
    """Raises ModelError unless the process has accepted the model."""
    if code == 0:
        return
    if code == 1 and said:
        what, do = json.loads(said)
        raise ModelError(what, do=do)
    if code == OUT_OF_MEMORY:
        raise ModelError(f"the model needs more memory than the {room // _MB} MB that its check may use", do=_RETRAIN)
    if code == -signal.SIGXCPU:
        raise ModelError(f"the check of the model used more than {limits.cpu_seconds} s of CPU time", do=_RETRAIN)
    if code == -signal.SIGKILL:
        raise ModelError(
            "the check of the model was killed, most likely because the container has no memory left",
            do="Raise the container's memory limit, or lower --max-series",
        )
    if code < 0:
        name = signal.Signals(-code).name
        raise ModelError(f"the model makes onnxruntime crash: its check was ended by {name}", do=_RETRAIN)
    raise ModelError(f"the process that checks the model ended with exit code {code}", do=_RETRAIN)
