"""Workers as processes in numbered slots: started, killed, stopped while they work, and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.worker_process import WorkerProcess

STOP_SECONDS = 60.0
AGAIN_SECONDS = 3.0  # until a worker that refused is started again
_SHARE = re.compile(r"partitions (?:assigned|revoked).* all=(\S*)")


class Worker(WorkerProcess):
    """One process. `doomed` = another has its name: one of the two must end, and soon."""

    def __init__(self, slot: int, log_file: Path, flags: Sequence[str]) -> None:
        super().__init__(*flags, f"--instance=slot-{slot}", log_file=log_file)
        self.slot, self.name = slot, log_file.name
        self.frozen = self.doomed = False
        self.rivals_since: float | None = None  # since when, both awake and both members of the group

    @property
    def share(self) -> set[int] | None:
        """The partitions it has, as its log says; None before it was assigned any."""
        found = _SHARE.findall(self.log)
        return {int(p) for p in found[-1].strip('"').split(",") if p} if found else None


class Router(Worker):
    """The same of `tidecast route`."""

    program = ("-m", "tidecast", "route")


@dataclass(slots=True)
class Fleet:
    """All workers of one group.

    Attributes:
        folder: for the logs.
        flags: what every worker gets.
        ended: what a worker did that it should not: how it ended by itself, with its last words.
        excuse: a worker whose last line has this, and exit code 1, ended rightly, and is only counted; None = nobody.
        refused: how many workers ended like that.
        kind: of the processes.
    """

    folder: Path
    flags: Sequence[str]
    workers: dict[int, Worker] = field(default_factory=dict)  # slot -> who is there now
    zombies: list[tuple[float, Worker]] = field(default_factory=list)  # when to wake it
    due: dict[int, float] = field(default_factory=dict)  # slot -> when to start
    ended: list[str] = field(default_factory=list)
    started: int = 0
    excuse: re.Pattern[str] | None = None
    refused: int = 0
    kind: type[Worker] = Worker

    def start(self, slot: int) -> Worker:
        """A new process in this slot; with a name of its slot's own."""
        self.due.pop(slot, None)
        self.started += 1
        log = self.folder / f"worker-{slot}-{self.started:03}.log"
        self.workers[slot] = self.kind(slot, log, self.flags)
        return self.workers[slot]

    @property
    def running(self) -> list[int]:
        """Slots whose worker can be hit."""
        return [slot for slot, w in self.workers.items() if not w.frozen and w.process.poll() is None]

    def kill(self, slot: int, again_in: float) -> None:
        """SIGKILL; a new one follows."""
        worker = self.workers.pop(slot)
        worker.kill()
        self.due[slot] = time.monotonic() + again_in

    def freeze(self, slot: int, seconds: float, *, replace: bool) -> None:
        """SIGSTOP, and SIGCONT later; with `replace`, another takes its name meanwhile."""
        worker = self.workers[slot]
        worker.process.send_signal(signal.SIGSTOP)
        worker.frozen = True
        self.zombies.append((time.monotonic() + seconds, worker))
        if replace:
            worker.doomed = True
            self.start(slot)

    def stop(self, slot: int) -> None:
        """SIGTERM, and wait until it has ended."""
        worker = self.workers.pop(slot)
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
        try:
            code = worker.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.show_stacks()
            worker.kill()
            code = -signal.SIGKILL
        if code not in (0, -signal.SIGTERM):  # in its first moments it has nothing to end in good order
            self._note(worker, f"exit code {code} after SIGTERM")

    def tend(self) -> None:
        """Wake whom it is time to wake, start what is due, and replace those that ended by themselves."""
        now = time.monotonic()
        for when, worker in list(self.zombies):
            if worker.process.poll() is None and now >= when:
                if worker.frozen:
                    worker.process.send_signal(signal.SIGCONT)
                    worker.frozen = False
                if worker.doomed and self._seconds_with_rival(worker, now) >= STOP_SECONDS:
                    self._note(worker, f"ran for {STOP_SECONDS:.0f} s with another of the same name in the group")
                    worker.kill()
            if worker.process.poll() is not None or not (worker.frozen or worker.doomed):
                self.zombies.remove((when, worker))
        for slot, worker in list(self.workers.items()):
            code = worker.process.poll()
            rival = next((z for _, z in self.zombies if z.slot == slot and z.doomed and z.process.poll() is None), None)
            if code is None or slot in self.due:
                continue
            if rival is not None:  # it was the one to go
                rival.doomed = False
                self.workers[slot] = rival
            elif code == 1 and self.excuse is not None and self.excuse.search(worker.last_words(1)):
                self.refused += 1
                self.due[slot] = now + AGAIN_SECONDS
            else:
                self._note(worker, f"ended by itself with exit code {code}")
                self.due[slot] = now + 1.0
        for slot, when in list(self.due.items()):
            if now >= when:
                self.start(slot)

    def _seconds_with_rival(self, worker: Worker, now: float) -> float:
        """Since when it and its namesake are both in the group: the newer replaces it once it has joined."""
        rival = self.workers.get(worker.slot)
        both = rival is not None and not rival.frozen and rival.process.poll() is None and rival.share and worker.share
        worker.rivals_since = (worker.rivals_since or now) if both else None
        return now - worker.rivals_since if worker.rivals_since is not None else 0.0

    @contextmanager
    def excused(self, sentence: str) -> Iterator[None]:
        """Meanwhile, workers may end with this regular expression in their last line."""
        self.excuse = re.compile(sentence)
        try:
            yield
        finally:
            self.excuse = None

    def settle(self, partitions: int, seconds: float = 90.0) -> None:
        """Wait until the partitions are shared out among all workers.

        Raises:
            TimeoutError: they never were.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tend()
            shares = [worker.share or set() for worker in self.workers.values()]
            if all(shares) and sorted(p for share in shares for p in share) == list(range(partitions)):
                return
            time.sleep(0.1)
        words = "\n".join(worker.last_words() for worker in self.workers.values())
        raise TimeoutError(f"the partitions were never shared out: {shares}\n{words}")

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for worker in [*self.workers.values(), *(worker for _, worker in self.zombies)]:
            worker.kill()

    def _note(self, worker: Worker, what: str) -> None:
        self.ended.append(f"{worker.name}: {what}\n{worker.last_words()}")
