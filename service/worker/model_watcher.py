"""Watches the model files: another process checks a newer one, a thread loads it, and the loop takes it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tidecast.service.config.settings import Settings
from tidecast.service.errors import ModelError
from tidecast.service.model.candidate import Candidate
from tidecast.service.model.compatibility import check_successor
from tidecast.service.model.model_file import ModelFile, model_path, read_model_file

if TYPE_CHECKING:
    from tidecast.service.model.session import Model

log = logging.getLogger("tidecast.swap")

_Stat = tuple[int, int, int]  # mtime in ns, bytes, inode


class WatchedFile:
    """A model file, as it was when it was last read.

    Args:
        path: the file, or its directory.
        settings: limits.
        flag: which named it.
        sha256: if given, the file must have this hash (hex).
    """

    def __init__(self, path: str, settings: Settings, flag: str, sha256: str | None = None) -> None:
        self._path, self._settings, self._flag, self._sha256 = path, settings, flag, sha256
        self._loaded: _Stat | None = None
        self._last: _Stat | None = None

    def read(self) -> ModelFile:
        """What is in it.

        Raises:
            ModelError: it cannot be read, is too large, or is not the one of `sha256`.
        """
        limit = self._settings.model_max_bytes
        file = read_model_file(self._path, max_bytes=limit, sha256=self._sha256, flag=self._flag)
        self._loaded = self._last = _identity(file.stat)
        return file

    @property
    def there(self) -> bool:
        """Whether there is such a file."""
        return self._stat() is not None

    def forget(self) -> None:
        """Let it count as changed."""
        self._loaded = None

    def changed(self) -> bool:
        """Whether there is another file, which is complete: it was the same at the look before."""
        found = self._stat()
        if found is None or found == self._loaded:
            return False
        unchanged, self._last = found == self._last, found
        if not unchanged and self._loaded is not None:
            return False  # it may still be changing: the next look will tell
        self._loaded = found
        return True

    def _stat(self) -> _Stat | None:
        try:
            return _identity(model_path(self._path).stat())
        except OSError:
            return None  # not there yet, between two files, or removed: the model in memory stays in service


class ModelWatcher:
    """Loads the model and its shadows, and what replaces them later; each is first checked in another process.

    A publisher writes another file and renames it, so the file is complete at any time. One that is written in place
    is loaded once it has stopped changing. A shadow that is not there yet is waited for.

    Args:
        settings: where the models are, and how often to check.

    Attributes:
        model: the newest that was accepted, once `load` has returned.

    Raises:
        ModelError: the file cannot be read, is too large, or is not the one of `model_sha256`.
    """

    model: Model

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = WatchedFile(settings.model, settings, "--model", settings.model_sha256 or None)
        self._shadows = {path: WatchedFile(path, settings, "--shadow") for path in settings.shadows}
        self._shadow_models: dict[str, Model] = {}
        self._candidate: Candidate | None = self._begin(self._file.read())
        self._newer = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event may not be set in a handler, see `StopFlag`
        self._ended = False

    @property
    def shadows(self) -> list[Model]:
        """Those that are there, in the order of the settings."""
        return [self._shadow_models[path] for path in self._shadows if path in self._shadow_models]

    def load(self) -> Model:
        """The first model, once its check has ended. It began when this object was made: import what you need before.

        Raises:
            ModelError: a file breaks the contract in any way, or the models cannot run together.
        """
        assert self._candidate is not None
        self.model = self._accepted(self._candidate)
        for path, file in self._shadows.items():
            if file.there:  # one after the other: each check needs memory
                self._shadow_models[path] = self._checked(file.read())
        self._check_group(self.model, self.shadows)
        for path in self._shadows.keys() - self._shadow_models.keys():
            log.warning(
                "there is no model there yet: it becomes a shadow as soon as there is",
                extra={"shadow": path, "looked_for_every_seconds": self._settings.model_watch_seconds},
            )
        return self.model

    def start(self, on_refused: Callable[[], None]) -> None:
        """Check every `model_watch_seconds`, in a thread; with 0, only after `check_now`."""
        threading.Thread(target=self._run, args=(on_refused,), name="model-watch", daemon=True).start()

    def check_now(self) -> None:
        """Check at once, even if the files look unchanged. Safe in a signal handler."""
        for file in (self._file, *self._shadows.values()):
            file.forget()
        self._wake.put(None)

    def stop(self) -> None:
        """Check no more."""
        self._ended = True
        if (candidate := self._candidate) is not None:
            candidate.cancel()
        self._wake.put(None)

    def take_newer(self) -> list[Model] | None:
        """The model and its shadows, once, if one of them is new; for the loop."""
        newer, self._newer = self._newer, False
        return [self.model, *self.shadows] if newer else None

    def check(self, on_refused: Callable[[], None] = lambda: None) -> None:
        """Check once. Good new models wait for `take_newer`; a bad one is logged, and `on_refused` is called."""
        for path, file in {"": self._file, **self._shadows}.items():
            if not file.changed():
                continue
            try:
                model = self._accept(file, path)
            except ModelError as error:
                if self._ended:
                    return
                on_refused()
                log.error(
                    "the new model is refused, the old one stays in service",
                    extra={"reason": str(error)} | ({"shadow": path} if path else {}),
                )
                continue
            if model is None:
                continue
            if path:
                self._shadow_models[path] = model
            else:
                self.model = model
            self._newer = True

    def _accept(self, file: WatchedFile, path: str) -> Model | None:
        """What is new in a file, None where its content is not.

        Raises:
            ModelError: it is refused.
        """
        content, before = file.read(), self._shadow_models.get(path) if path else self.model
        if before is not None and content.sha256 == before.sha256:
            return None
        model = self._checked(content)
        if path:
            self._check_group(self.model, (self._shadow_models | {path: model}).values())
        else:
            check_successor(self.model.spec, model.spec)
            self._check_group(model, self.shadows)
        return model

    def _run(self, on_refused: Callable[[], None]) -> None:
        while not self._ended:
            seconds = self._settings.model_watch_seconds
            with suppress(Empty):
                self._wake.get(timeout=seconds if seconds > 0 else None)
            if not self._ended:
                self.check(on_refused)

    def _begin(self, file: ModelFile) -> Candidate:
        candidate = Candidate(file, self._settings.intra_op_threads)
        candidate.begin()
        return candidate

    def _check_group(self, model: Model, shadows: Iterable[Model]) -> None:
        """Check that the shadows can run with this model."""
        from tidecast.service.model.group import check_group  # late, as below

        only = model.spec.features if self._settings.input else None
        check_group([model.spec, *(shadow.spec for shadow in shadows)], only=only)

    def _checked(self, file: ModelFile) -> Model:
        """The model in a file, once its check has ended."""
        self._candidate = self._begin(file)
        return self._accepted(self._candidate)

    def _accepted(self, candidate: Candidate) -> Model:
        try:
            candidate.wait()
        finally:
            self._candidate = None  # with the bytes of its file
        from tidecast.service.model.session import Model  # imported late: a check begins before onnxruntime is imported

        return Model.from_bytes(candidate.file.data, candidate.file.sha256, self._settings.intra_op_threads)


def _identity(found: os.stat_result) -> _Stat:
    return found.st_mtime_ns, found.st_size, found.st_ino
