"""Readings for the storms: on the grid, without gaps, and among them what is not a reading; the same for a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from service.spec import ModelSpec

START_MS = 1_700_006_400_000  # a full day, UTC

# What comes between the readings: one in so many.
DUPLICATE = LATE = BAD = 100
MISSING = 20

_BAD = (
    b"{",
    b"[1]",
    b'"text"',
    b'{"value": 1}',
    b'{"ts": "soon"}',
    b'{"ts": 1700000000000.5}',
    b"\xff\xfe",
    b"\0\0\0\0\1x",
)


def feed(spec: ModelSpec, series: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of records, without end: each series steps in its turn, in an order shuffled each time."""
    rng = random.Random(seed)
    names = [f"series-{i}" for i in range(series)]
    step = dict.fromkeys(names, 0)
    base = rng.randrange(1_000) * 86_400_000 + START_MS - 1_000 * 86_400_000

    def reading(name: str, at: int) -> tuple[bytes, bytes]:
        values = {f: None if rng.randrange(MISSING) == 0 else rng.randrange(100) for f in spec.features}
        return name.encode(), json.dumps({"ts": base + at * spec.step_ms, **values}).encode()

    while True:
        rng.shuffle(names)
        for name in names:
            at = step[name]
            yield reading(name, at)
            step[name] = at + 1
            if rng.randrange(DUPLICATE) == 0:
                yield reading(name, at)  # with other values: whoever takes it for a reading is found out
            if at and rng.randrange(LATE) == 0:
                yield reading(name, rng.randrange(at))
            if rng.randrange(BAD) == 0:
                yield name.encode(), rng.choice(_BAD)
