"""What a person sees while a model is trained: a bar with loss and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_WIDE = 110  # columns; a narrower terminal shows a shorter bar, no training loss and no time that has passed

EpochDone = Callable[[int, float, float, float], None]


class Progress:
    """Writes to stderr; use it as a context."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr)
        self.live = self.console.is_terminal and not quiet
        self.bars = Bars(
            # No wider than this where a terminal has 80 columns: what does not fit is cut off.
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=None if self.console.width < _WIDE else 40),
            TextColumn("{task.fields[count]}"),
            *([] if self.console.width < _WIDE else [TimeElapsedColumn()]),
            TextColumn("{task.fields[left]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,  # training that ends early would leave "16/40, left 0:00:40" above its table
            disable=not self.live,
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def stage(self, text: str) -> None:
        """A new stage begins."""
        if self.live:
            self._stage = self._show(text)
        else:
            self.say(text)

    def fraction(self, done: float) -> None:
        """How much of the stage is done, 0 to 1."""
        if self._stage is not None:
            self._done(self._stage, round(100 * done), 100)

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def epochs(self, name: str, total: int) -> EpochDone:
        """Begin to count epochs; call what it returns with (epoch, train loss, validation loss, best so far)."""
        task = self._show(name) if self.live else None

        def done(epoch: int, train: float, validation: float, best: float) -> None:
            loss, held = f"loss {train:.4f}", f"validation {validation:.4f}  best {best:.4f}"
            if task is None:
                self.say(f"{name}: epoch {epoch}/{total}  {loss}  {held}")
                return
            text = f"{name}  {loss}  {held}" if self.console.width >= _WIDE else f"{name}  {held}"
            self._done(task, epoch, total)
            self.bars.update(task, description=text)

        return done

    def _show(self, text: str) -> TaskID:
        """Replace the bar with a new one; it pulses until its progress is known."""
        for earlier in self.bars.task_ids:
            self.bars.update(earlier, visible=False)
        return self.bars.add_task(text, total=None, count="", left="")

    def _done(self, task: TaskID, completed: int, total: int) -> None:
        self.bars.update(task, completed=completed, total=total, count=f"{completed}/{total}", left="left")
