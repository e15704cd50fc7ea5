"""Which models may follow which: the layout of their state, and their name."""

from __future__ import annotations

import hashlib

import msgspec

from tidecast.service.errors import ModelError
from tidecast.service.model.spec import ModelSpec

LAYOUT_BYTES = 8


def layout_hash(spec: ModelSpec) -> bytes:
    """8 bytes that two models share where the state of one means the same to the other.

    Made of the slices' names, places and shapes, and of the whole size; not of the weights.
    """
    slices = sorted((part.start, part.name, part.shape) for part in spec.state)
    return hashlib.sha256(msgspec.json.encode([spec.state_size, slices])).digest()[:LAYOUT_BYTES]


def check_successor(older: ModelSpec, newer: ModelSpec) -> None:
    """See that `newer` can follow `older` without a restart.

    Raises:
        ModelError: it is another kind of model: neither name nor layout is the same.
    """
    if older.name != newer.name and layout_hash(older) != layout_hash(newer):
        raise ModelError(
            f"the model {newer.id} cannot follow {older.id}: neither its name nor the layout of its state is the same",
            do=f"Publish it as {older.name!r}, or serve it with a --group and a --changelog-topic of its own",
        )
