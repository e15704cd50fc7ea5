"""What `tidecast input check` prints: records as they are and as readings, and what is to be said of all of them."""

from __future__ import annotations

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.broker.sample import Sample
from tidecast.service.input.config import InputConfig
from tidecast.service.input.mapping import MappedBatch
from tidecast.service.input_check.proposal import good_rows
from tidecast.service.input_check.starter import starter_command
from tidecast.service.input_check.unused import unused_numbers
from tidecast.service.timestamps import format_time
from tidecast.service.wording import about, counted, printable

Int64 = NDArray[np.int64]

SHOWN = 20  # records
_MOST_READINGS = 8  # of one record
_MOST_NAMES = 12
_WIDE = 160
_MOST_BYTES = 2_000  # of a value, before it is cut to the line
_OLD_MS = 86_400_000
_AHEAD_MS = 10_000


def records(source: Batch, mapped: MappedBatch | None) -> Iterator[str]:
    """The newest records, the newest last: as they are, and what becomes of each; `mapped`: None = not known."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    if mapped is not None:
        for row in range(len(mapped.batch)):
            rows_of[row if mapped.records is None else mapped.records[row]].append(row)
    order = sorted(range(len(source)), key=lambda row: (source.timestamps[row], source.offsets[row]))
    for record in order[-SHOWN:]:
        yield from _as_it_is(source, record)
        if mapped is not None:
            yield from _as_readings(mapped, rows_of.get(record, []))
        yield ""


def _as_it_is(batch: Batch, record: int) -> Iterator[str]:
    """Two lines: where it is, its time, key and headers; and its value."""
    width = _width()
    key, value, stamp = batch.keys[record], batch.values[record], batch.timestamps[record]
    about_it = f"{batch.topic}-{batch.partitions[record]}, offset {batch.offsets[record]}"
    about_it += f", {format_time(stamp)}" if stamp > 0 else ", without a time"
    about_it += f", key {'null' if key is None else shown(key)}"
    if headers := batch.headers[record]:
        about_it += ", headers " + " ".join(f"{shown(name.encode())}={shown(held or b'')}" for name, held in headers)
    yield _cut(about_it, width)
    yield _cut("  " + ("no value" if value is None else shown(value)), width)


def _as_readings(mapped: MappedBatch, rows: Sequence[int]) -> Iterator[str]:
    width = _width()
    if not rows:
        yield "  - skipped: skip_if or only_if leaves it out, or it holds no reading"
    for row in rows[:_MOST_READINGS]:
        if (rejection := mapped.readings.rejected.get(row)) is not None:
            yield f"  ! refused ({rejection.reason}): {printable(rejection.message)}"
        elif row in mapped.readings.tombstones:
            yield f"  - no value: the series {shown(mapped.batch.keys[row] or b'')} is forgotten"
        else:
            there = [column for column, value in enumerate(mapped.readings.x[row]) if not np.isnan(value)]
            values = ", ".join(f"{mapped.features[column]} {mapped.readings.x[row, column]:g}" for column in there)
            name = shown(mapped.batch.keys[row] or b"")
            text = f"  = {name}  {format_time(int(mapped.readings.ts[row]))}  {printable(values) or 'no value'}"
            yield _cut(text, width)
    if len(rows) > _MOST_READINGS:
        yield f"  … and {counted(len(rows) - _MOST_READINGS, 'reading')} more"


def summary(sample: Sample, mapped: MappedBatch, config: InputConfig, absent: Sequence[str]) -> Iterator[str]:
    """What is to be said of all records that were read; `absent`: features of the model that are in no field."""
    good = good_rows(mapped)
    yield _counts(mapped, len(good))
    yield from _refusals(mapped)
    yield from _features(sample.batch, mapped, good, config, absent)
    yield from _clock(mapped, good)
    yield from _rate(sample.batch)
    yield from _series(sample, mapped, good, config)
    yield from starter_command(mapped, good)


def refused(mapped: MappedBatch) -> int:
    """How many records have a reading that is refused."""
    rows = mapped.readings.rejected
    return len(rows) if mapped.records is None else len({mapped.records[row] for row in rows})


def _counts(mapped: MappedBatch, good: int) -> str:
    text = f"{counted(len(mapped.source), 'record')}: {counted(good, 'reading')}"
    for number, word in (
        (refused(mapped), "refused"),
        (mapped.skipped, "skipped"),
        (len(mapped.readings.tombstones), "without a value"),
    ):
        text += f", {number:,} {word}" if number else ""
    return text + ("" if mapped.readings.rejected else ", none refused")


def _refusals(mapped: MappedBatch) -> Iterator[str]:
    found: dict[str, list[int]] = defaultdict(list)
    for row in sorted(mapped.readings.rejected):
        found[mapped.readings.rejected[row].reason].append(row)
    for reason, rows in sorted(found.items(), key=lambda item: -len(item[1])):
        batch, row = mapped.batch, rows[-1]
        where = f"{batch.topic}-{batch.partitions[row]}, offset {batch.offsets[row]}"
        yield f"refused: {len(rows):,} × {reason}, such as {where}: {printable(mapped.readings.rejected[row].message)}"


def _features(
    batch: Batch, mapped: MappedBatch, good: Int64, config: InputConfig, absent: Sequence[str]
) -> Iterator[str]:
    if not len(good):
        return
    shares = np.isfinite(mapped.readings.x[good]).mean(axis=0).tolist()
    found = [f"{name} ({share:.0%})" for name, share in zip(mapped.features, shares, strict=True) if share]
    yield f"features: {_list(found, 40) or 'none'}"
    empty = [name for name, share in zip(mapped.features, shares, strict=True) if not share]
    if empty or absent:
        yield f"features that no record has: {_list([*empty, *absent])}"
    if mapped.unused:
        names = [f"{name} ({number:,})" for name, number in mapped.unused.most_common()]
        yield f"names of the long form that no feature uses: {_list(names)}"
    if unused := unused_numbers(batch, config, mapped.features):
        yield f"numbers that no feature uses: {_list(unused)}"


def _clock(mapped: MappedBatch, good: Int64) -> Iterator[str]:
    stamps = np.array(mapped.batch.timestamps, dtype=np.int64)[good]
    lead = (mapped.readings.ts[good] - stamps)[stamps > 0]
    if not len(lead):
        return
    if not lead.any():
        yield "clock: readings have the times of their records"
        return
    middle, worst = float(np.median(lead)), float(lead[np.abs(lead).argmax()])
    text = f"clock: readings are {_apart(middle)} their records (the median), at worst {_apart(worst)} them"
    if lead.max() > _AHEAD_MS:
        text += ". A time ahead of its record's is that of a wrong clock, unit or time zone"
    elif middle < -_OLD_MS:
        text += ". That is right where old readings are sent again; else a clock, unit or time zone is wrong"
    yield text


def _apart(ms: float) -> str:
    return f"{about(ms)} {'ahead of' if ms > 0 else 'before'}"


def _rate(batch: Batch) -> Iterator[str]:
    stamps = [stamp for stamp in batch.timestamps if stamp > 0]
    if len(stamps) > 1 and max(stamps) > min(stamps):
        rate = (len(stamps) - 1) * 1_000 / (max(stamps) - min(stamps))
        text = f"{rate:,.3g} records a second" if rate >= 0.1 else f"{rate * 3_600:,.3g} records an hour"
        yield f"rate: {text}, by the records' times"


def _series(sample: Sample, mapped: MappedBatch, good: Int64, config: InputConfig) -> Iterator[str]:
    source, batch = sample.batch, mapped.batch
    null = sum(key is None for key in source.keys)
    keys = {key for key in source.keys if key is not None}
    text = f"keys: {null:,} of {counted(len(source), 'record')} have none" if null else "keys: all records have one"
    yield text + (f"; {counted(len(keys), 'key is', 'keys are')} different" if keys else "")
    places: dict[bytes, set[int]] = defaultdict(set)
    readings: Counter[bytes] = Counter()
    for row in good.tolist():
        if (key := batch.keys[row]) is not None:
            places[key].add(batch.partitions[row])
            readings[key] += 1
    if places:
        yield f"series: {len(places):,}, such as {_list([shown(key) for key, _ in readings.most_common(5)])}"
    several = [key for key, where in places.items() if len(where) > 1]
    if several:
        where = " and ".join(map(str, sorted(places[several[0]])))
        yield (
            f"partitions: {counted(len(several), 'series has', 'series have')} readings in more than one, such as "
            f"{shown(several[0])} in {where}. {_route(source.topic, config)}"
        )
    elif config.rekeys and sample.partitions > 1 and null:
        text = f"partitions: records without a key go to any of the {sample.partitions} partitions. "
        yield text + _route(source.topic, config)


def _route(topic: str, config: InputConfig) -> str:
    joins = ", with a table that has only [input.join]" if config.join else ""
    return (
        "A worker needs all readings of a series in one partition: let `tidecast route --source-topic "
        f"{topic} --input FILE` bring them together, and serve the topic that it writes{joins}"
    )


def _list(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    shown_names = ", ".join(printable(name) for name in names[:most])
    return shown_names + (f", … ({len(names):,} in all)" if len(names) > most else "")


def shown(value: bytes) -> str:
    """Bytes as one line of text: what is no text, and what a terminal would act on, as escapes."""
    text = printable(value[:_MOST_BYTES].decode("utf-8", "backslashreplace"))
    return text if text else '""'


def _width() -> int:
    """Of a line, in characters: that of the terminal, or more where the lines go to a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"
