"""Which model may replace which: it depends on the layout of their state and on their name."""

from __future__ import annotations

import hashlib

import msgspec

from tidecast.service.errors import ModelError
from tidecast.service.model.spec import ModelSpec

LAYOUT_BYTES = 8


def layout_hash(spec: ModelSpec) -> bytes:
    """A hash of 8 bytes. Models with the same hash can use each other's states.

    It covers the names, positions and shapes of the state's slices and the total size, not the weights.
    """
    slices = sorted((part.start, part.name, part.shape) for part in spec.state)
    return hashlib.sha256(msgspec.json.encode([spec.state_size, slices])).digest()[:LAYOUT_BYTES]


def check_successor(older: ModelSpec, newer: ModelSpec) -> None:
    """Check that `newer` can replace `older` without a restart.

    Raises:
        ModelError: it is a different model: neither its name nor its state layout is the same.
    """
    if older.name != newer.name and layout_hash(older) != layout_hash(newer):
        raise ModelError(
            f"the model {newer.id} cannot replace {older.id}: neither its name nor the layout of its state is the same",
            do=f"Publish it as {older.name!r}, or serve it with a --group and a --changelog-topic of its own",
        )
