"""Watches the model file: loads and checks a newer one in a thread, until the loop takes it."""

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

_Stat = tuple[int, int, int]  # mtime in ns, bytes, inode


class ModelWatcher:
    """Loads the model, and what replaces it later.

    A publisher writes another file and renames it, so the file is complete at any time. One that is written in place
    is loaded once it has stopped changing.

    Args:
        settings: where the model is, and how often to check.

    Attributes:
        model: the newest that was accepted.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        path = Path(settings.model)
        self._file = path / MODEL_FILE if path.is_dir() else path
        self._loaded = self._last = self._stat()
        self.model = self._load()
        self._newer: Model | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event may not be set in a handler, see `StopFlag`
        self._ended = False

    def start(self, on_refused: Callable[[], None]) -> None:
        """Check every `model_watch_seconds`, in a thread; with 0, only after `check_now`."""
        threading.Thread(target=self._run, args=(on_refused,), name="model-watch", daemon=True).start()

    def check_now(self) -> None:
        """Check at once, even if the file looks unchanged. Safe in a signal handler."""
        self._loaded = None
        self._wake.put(None)

    def stop(self) -> None:
        """Check no more."""
        self._ended = True
        self._wake.put(None)

    def take_newer(self) -> Model | None:
        """A newer model, once; for the loop."""
        model, self._newer = self._newer, None
        return model

    def check(self, on_refused: Callable[[], None] = lambda: None) -> None:
        """Check once. A good new model waits for `take_newer`; a bad one is logged, and `on_refused` is called."""
        found = self._stat()
        if found is None or found == self._loaded:
            return
        unchanged, self._last = found == self._last, found
        if not unchanged and self._loaded is not None:
            return  # it may still be changing: the next check will tell
        self._loaded = found
        try:
            model = self._load()
            if model.sha256 == self.model.sha256:
                return
            check_successor(self.model.spec, model.spec)
        except ModelError as error:
            on_refused()
            log.error("the new model is refused, the old one stays in service", extra={"reason": str(error)})
            return
        self.model = self._newer = model

    def _run(self, on_refused: Callable[[], None]) -> None:
        while not self._ended:
            seconds = self._settings.model_watch_seconds
            with suppress(Empty):
                self._wake.get(timeout=seconds if seconds > 0 else None)
            if not self._ended:
                self.check(on_refused)

    def _stat(self) -> _Stat | None:
        try:
            found = self._file.stat()
        except OSError:
            return None  # between two files, or removed: the model in memory stays in service
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> Model:
        s = self._settings
        return Model.load(
            self._file,
            max_bytes=s.model_max_bytes,
            intra_op_threads=s.intra_op_threads,
            sha256=s.model_sha256 or None,
        )
