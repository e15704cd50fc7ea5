"""Rubbish of every kind through the pipeline: it never crashes, and every record ends as exactly one thing.

    python -m tests.chaos.fuzz --records 100000 --seed 1

Good readings are mutated (bytes flipped, cut, doubled, nested, their numbers made huge, their keys broken) and mixed
with good ones. Each record must end as a forecast, a dead letter with a reason, a duplicate, a late reading or a
tombstone; the counts add up; and the series that get only good readings come out as if nothing else had been there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.models import START_MS, STEP_MS, counting_model
from tidecast.service.broker.port import Batch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy

GOOD = [b"good-%d" % i for i in range(5)]
DEEP = b"[" * 100_000 + b"]" * 100_000
NUMBERS = [
    b"1e999",
    b"-1e999",
    b"1e-999",
    b"9" * 400,
    b"NaN",
    b"Infinity",
    b"-0",
    b"0x10",
    b"1_000",
    b"1.7e12",
    b"3e38",
]
KEYS = [None, b"", b"\xff\xfe", b"k" * 1024, b"k" * 1025, "häfen/1".encode(), b"\x00", b"a"]


def mutated(value: bytes, chance: random.Random) -> bytes | None:
    """One way to break, or merely bend, a reading."""
    kind = chance.randrange(15)
    if kind == 0:
        at = chance.randrange(len(value))
        return value[:at] + bytes([chance.randrange(256)]) + value[at + 1 :]
    if kind == 1:
        return value[: chance.randrange(len(value))]
    if kind == 2:
        return value + value
    if kind == 3:
        return value.replace(b'"value": ', b'"value": ' + chance.choice(NUMBERS) + b', "x": ')
    if kind == 4:
        return value.replace(b'"ts": ', b'"ts": ' + chance.choice(NUMBERS) + b', "x": ')
    if kind == 5:
        return value[:-1] + b', "ts": ' + chance.choice(NUMBERS) + b"}"  # a field twice: the last one counts
    if kind == 6:
        return b'{"ts": %d, "value": %s}' % (START_MS, DEEP)
    if kind == 7:
        return b"\x00\x00\x00\x00\x07" + value  # as a schema registry frames it
    if kind == 8:
        return value.decode().encode("utf-16")
    if kind == 9:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
    if kind == 10:
        return chance.choice([b"null", b"true", b"[]", b'""', b"{}", b"", b" ", b"\xef\xbb\xbf{}", b"7"])
    if kind == 11:
        return None
    if kind == 12:
        return b'{"ts": "%s", "value": 1}' % chance.choice([b"2999-01-01", b"yesterday", b"1700000000", b"0001-01-01"])
    if kind == 13:  # all fields are renamed
        return value.replace(b'"wind"', b'"Wind"').replace(b'"value"', b'"Value"')
    return value.replace(b'"wind"', b'"' + b"w" * chance.choice([1, 1000, 100_000]) + b'"')


def run(records: int, seed: int) -> Counter[str]:
    """What became of the records, by name.

    Raises:
        AssertionError: a record ended as nothing or as two things, or a good series felt the others.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(counting_model(Path(folder)))
    fuzzed, calm = (Pipeline(model, Policy(max_series=50), output_topic="f", dead_letter_topic="d") for _ in range(2))
    fates: Counter[str] = Counter()
    good, calm_good, offset, step = [], [], 0, 0
    while offset < records:
        batch, only_good = Batch("readings"), Batch("readings")
        for _ in range(min(200, records - offset)):
            step += 1
            reading = json.dumps({"ts": START_MS + step * STEP_MS, "value": step % 7, "wind": 1}).encode()
            key: bytes | None = chance.choice(GOOD)
            value: bytes | None = reading
            if chance.random() < 0.7:
                key = chance.choice(KEYS) if chance.random() < 0.3 else b"bad-%d" % chance.randrange(20)
                value = mutated(reading, chance)
            if offset % 20_000 == 19_999:
                key, value = b"bad-0", b'{"ts": 1, "value": 1, "x": "' + b"x" * (10 << 20) + b'"}'
            for into in [batch, only_good] if key in GOOD else [batch]:
                into.partitions.append(0)
                into.offsets.append(offset)
                into.timestamps.append(START_MS + step * STEP_MS)
                into.keys.append(key)
                into.values.append(value)
                into.headers.append(())
            offset += 1
        result, alone = fuzzed.process(batch), calm.process(only_good)
        counts = result.counts
        dead = sum(counts.dead_letters.values())
        assert counts.forecasts + counts.duplicates + counts.late + counts.tombstones + dead == len(batch)
        assert len(result.forecasts) == counts.forecasts and len(result.dead_letters) == dead
        fates += Counter({"forecasts": counts.forecasts, "duplicates": counts.duplicates, "late": counts.late})
        fates += Counter({"tombstones": counts.tombstones}) + Counter(
            {str(r): n for r, n in counts.dead_letters.items()}
        )
        good += [v for k, v in zip(result.forecasts.keys, result.forecasts.values, strict=True) if k in GOOD]
        calm_good += alone.forecasts.values
    assert good == calm_good, "a good series felt the others"
    return fates


def main() -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    fates = run(args.records, args.seed)
    for name, count in fates.most_common():
        print(f"{count:>9,}  {name}")
    print(
        f"{fates.total():>9,}  in all, of {args.records:,} records, in {time.monotonic() - began:.0f} s; nothing amiss"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
