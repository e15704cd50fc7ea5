"""Reads the bytes of a model file, and only those of one that is not too large and is the one asked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tidecast.service.errors import ModelError

MODEL_FILE = "model.onnx"
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The content of a model file, read once."""

    data: bytes
    sha256: str  # of `data`, hex
    stat: os.stat_result  # from before it was read


def model_path(path: Path | str) -> Path:
    """The .onnx file of a model directory; any other path as it is."""
    return Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)


def read_model_file(
    path: Path | str, *, max_bytes: int = MAX_BYTES, sha256: str | None = None, flag: str = "--model"
) -> ModelFile:
    """Read a model directory's file, or the .onnx file itself.

    Args:
        path: a directory that contains model.onnx, or a file.
        max_bytes: a larger file is refused without being read.
        sha256: if given, the file must have this hash (hex).
        flag: which named it.

    Raises:
        ModelError: it cannot be read, is too large, changes meanwhile, or has another hash.
    """
    file = model_path(path)
    try:
        if file.exists() and not file.is_file():  # reading a pipe would block, a device never ends
            raise OSError(0, "it is not a file")
        with file.open("rb") as stream:
            stat = os.fstat(stream.fileno())
            data = stream.read(max_bytes + 1)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise ModelError(
            f"the model file {str(file)!r} cannot be read",
            got=error.strerror,
            do=f"Give {flag} a directory made by `tidecast train`, or its model.onnx",
        ) from None
    if len(data) > max_bytes:
        raise ModelError(
            f"the model file {str(file)!r} is larger than {max_bytes} bytes",
            got=stat.st_size,
            do="Train a smaller model, or raise TIDECAST_MODEL_MAX_BYTES",
        )
    if (after.st_mtime_ns, after.st_size) != (stat.st_mtime_ns, stat.st_size):
        raise ModelError(
            f"the model file {str(file)!r} changed while it was read",
            do="Write a new model next to it, and rename it when it is complete",
        )
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise ModelError(
            "the model file is not the one that was asked for",
            got=f"sha256 {digest}",
            do=f"Expected {sha256}: serve that file, or give --model-sha256 this one's once you trust it",
        )
    return ModelFile(data, digest, stat)
