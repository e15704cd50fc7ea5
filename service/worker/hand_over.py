"""The series of a partition go from one model, or group of models, to its successor."""

from __future__ import annotations

import numpy as np

from tidecast.service.model.members import carry
from tidecast.service.worker.served_model import ServedModel

_COLUMNS = ("last_ts", "steps", "offsets", "seen_ms", "dirty_since")


def states_are_kept(older: ServedModel, newer: ServedModel) -> bool:
    """True where each model of the newer one continues with a state of the older one."""
    return None not in newer.codec.sources(older.codec.members)


def move_series(older: ServedModel, newer: ServedModel, partition: int) -> None:
    """Give the partition's series to `newer`, each model's state exactly as it was; the older one still has them.

    Models without a state there keep what they have made of the series meanwhile, or begin. A series that none of the
    models knows is removed. To be written again is what the changelog has in another form.
    """
    source, target = older.store, newer.store
    taken = newer.codec.sources(older.codec.members)
    keys = source.keys_of_partition(partition)
    if all(of is None for of in taken):
        for key in keys:
            if key not in target:
                source.remove(key)
        return
    for key in keys[: max(0, sum(key not in target for key in keys) + len(target) - target.max_series)]:
        if key not in target:  # its states are larger: those that were seen least recently make room
            source.remove(key)
    keys = source.keys_of_partition(partition)
    here = np.array([source.find(key) for key in keys], dtype=np.int64)
    there = np.array([_place(newer, key, partition) for key in keys], dtype=np.int64)
    for name in _COLUMNS:
        getattr(target, name)[there] = getattr(source, name)[here]
    states = target.states[there]
    carry(taken, older.codec.states, source.states[here], source.steps[here], newer.codec.states, states)
    target.states[there] = states
    if newer.codec.members != older.codec.members and (newer.hashes or older.hashes):
        dirty = target.dirty_since[there]
        target.dirty_since[there] = np.where(dirty < 0, np.maximum(target.offsets[there], 0), dirty)
    for old, new in zip(here.tolist(), there.tolist(), strict=True):
        target.ahead.pop(new, None)
        target.waiting.pop(new, None)
        if old in source.ahead:
            target.ahead[new] = source.ahead[old]
        if old in source.waiting:
            target.waiting[new] = source.waiting[old]


def _place(newer: ServedModel, key: bytes, partition: int) -> int:
    slot = newer.store.find(key)
    return newer.store.add(key, partition) if slot is None else slot
