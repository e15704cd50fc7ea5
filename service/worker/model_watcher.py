"""Watches the model file: a newer one is loaded and checked beside the loop, and waits for it to be taken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from tidecast.service.config.settings import Settings
from tidecast.service.errors import ModelError
from tidecast.service.model.compatibility import check_successor
from tidecast.service.model.session import MODEL_FILE, Model

log = logging.getLogger("tidecast.swap")

_Look = tuple[int, int, int]  # mtime in ns, bytes, inode


class ModelWatcher:
    """Loads the model, and what replaces it later.

    A publisher writes a file beside it and renames that: so the file is whole at any time. One that is written in
    place is looked at again once it has stopped to change.

    Args:
        settings: where the model lies, and how often to look.

    Attributes:
        model: the newest that was accepted.
        refused: called for each file that is refused.
    """

    refused: Callable[[], None]

    def __init__(self, settings: Settings) -> None:
        self._settings, self.refused = settings, lambda: None
        path = Path(settings.model)
        self._file = path / MODEL_FILE if path.is_dir() else path
        self._loaded = self._last = self._look()
        self.model = self._load()
        self._waiting: Model | None = None
        self._nudges: SimpleQueue[None] = SimpleQueue()  # an Event may not be set in a handler, see `StopFlag`
        self._ended = False

    def start(self) -> None:
        """Look every `model_watch_seconds`, in a thread; with 0, only when told to by `now`."""
        threading.Thread(target=self._run, name="model-watch", daemon=True).start()

    def now(self) -> None:
        """Look at once, whether the file looks new or not. Safe in a signal handler."""
        self._loaded = None
        self._nudges.put(None)

    def stop(self) -> None:
        """Look no more."""
        self._ended = True
        self._nudges.put(None)

    def take(self) -> Model | None:
        """A newer model, once; for the loop."""
        model, self._waiting = self._waiting, None
        return model

    def look(self) -> None:
        """Look once; what is new and good waits to be taken, what is bad is refused with a line in the log."""
        found = self._look()
        if found is None or found == self._loaded:
            return
        settled, self._last = found == self._last, found
        if not settled and self._loaded is not None:
            return  # it may be changing still: the next look will tell
        self._loaded = found
        try:
            model = self._load()
            if model.sha256 == self.model.sha256:
                return
            check_successor(self.model.spec, model.spec)
        except ModelError as error:
            self.refused()
            log.error("the new model is refused, the old one goes on", extra={"reason": str(error)})
            return
        self.model = self._waiting = model

    def _run(self) -> None:
        while not self._ended:
            seconds = self._settings.model_watch_seconds
            with suppress(Empty):
                self._nudges.get(timeout=seconds if seconds > 0 else None)
            if not self._ended:
                self.look()

    def _look(self) -> _Look | None:
        try:
            found = self._file.stat()
        except OSError:
            return None  # between two files, or taken away: the model in memory goes on
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> Model:
        s = self._settings
        return Model.load(
            self._file,
            max_bytes=s.model_max_bytes,
            intra_op_threads=s.intra_op_threads,
            sha256=s.model_sha256 or None,
        )
