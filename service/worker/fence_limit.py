"""The limit on how often a named worker may be fenced."""

from __future__ import annotations

from collections.abc import Callable

from tidecast.service.errors import Fenced

# A pause longer than the session fences once or twice. So does another process with the same name, until it hears that
# this one is newer.
_MOST, _SECONDS = 5, 60.0


class FenceLimit:
    """For a worker that its group still knows by its name: only a process outside of the group fences it repeatedly."""

    def __init__(self, instance: str, clock: Callable[[], float]) -> None:
        self._instance, self._clock = instance, clock
        self._fenced_at: list[float] = []

    def add(self, reason: Fenced) -> None:
        """Count once more.

        Raises:
            Fenced: that was once too often.
        """
        now = self._clock()
        self._fenced_at = [at for at in self._fenced_at if now - at < _SECONDS] + [now]
        if len(self._fenced_at) >= _MOST:
            raise Fenced(
                f"fenced {_MOST} times within {_SECONDS:g} s: another process has the --instance {self._instance!r} "
                f"({reason.what})",
                do="Nothing is lost. Give every worker a name of its own.",
            )
