"""Checks of the newest readings: how they are written, and what the model would make of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Batch
from tidecast.service.doctor.patient import NotChecked, Patient, Said, State, map_records
from tidecast.service.wording import about, counted

_CLOCK_MS = 10_000  # clocks that a time server keeps differ by much less
_OLD_MS = 86_400_000
_MANY = 0.5  # of the readings
_PARSED = 200  # readings in which other fields are looked for
ROUTE = "let `tidecast route` bring them together, and serve the topic that it writes"
_ONE_RULE = "For one rule everywhere, give producers of librdkafka (C, Python, Go, .NET) partitioner=murmur2_random."


def records(patient: Patient) -> Said:
    """The newest records can be read; how they are compressed."""
    sample, codecs = patient.sample, patient.stored.codecs
    seen = ", ".join(f"{codec} ({counted(n, 'batch', 'batches')})" for codec, n in codecs.most_common())
    read = f"read the newest {counted(len(sample.batch), 'record')} of {counted(sample.partitions, 'partition')}"
    yield State.OK, f"{read}; compression: {seen or 'unknown'}"


def partitioner(patient: Patient) -> Said:
    """Each key is in one partition, and which rule chose it."""
    if patient.input_config is not None and patient.input_config.rekeys:
        yield from _one_partition_each(patient)
        return
    batch, count = patient.sample.batch, patient.sample.partitions
    places = _places(batch)
    if not places:
        raise NotChecked("none of the newest records has a key")
    several = [key for key, where in places.items() if len(where) > 1]
    java = sum(where == {partition_for(key, count)} for key, where in places.items())
    crc = sum(where == {partition_for(key, count, "consistent")} for key, where in places.items())
    keys = counted(len(places), "key is", "keys are")
    if count == 1:
        yield State.OK, "there is one partition for all keys"
    elif several:
        name, where = repr(several[0].decode("utf-8", "backslashreplace")), " and ".join(map(str, places[several[0]]))
        text = f"{counted(len(several), 'key is', 'keys are')} in more than one partition, such as {name} in {where}: "
        text += (
            "such a series has a state in each. Its producers use different partitioners, or partitions were added. "
        )
        yield State.WRONG, text + _ONE_RULE
    elif java == len(places):
        yield State.OK, f"{keys} where Java's default partitioner (murmur2) puts them, as `tidecast produce` does"
    elif crc == len(places):
        text = (
            f"{keys} where librdkafka's default partitioner (consistent_random, crc32) puts them. The worker does not "
        )
        text += "mind, but producers in Java and `tidecast produce` would put the same keys elsewhere. "
        yield State.NOTE, text + _ONE_RULE
    else:
        text = f"of {counted(len(places), 'key')} {java} are where Java's default partitioner (murmur2) puts them, and "
        text += f"{crc} where librdkafka's (crc32) does. The worker does not mind: each key is in one partition"
        yield State.NOTE, text


def _one_partition_each(patient: Patient) -> Said:
    """The keys of records do not matter; the readings of each series are in one partition."""
    assert patient.input_config is not None
    batch = map_records(patient.sample.batch, patient.input_config, None).batch
    places = _places(batch)
    several = [key for key, where in places.items() if len(where) > 1]
    series = len(places)
    if not several:
        yield State.OK, f"each of {counted(series, 'series', 'series')} has its readings in one partition"
        return
    name, where = several[0].decode("utf-8", "backslashreplace"), sorted(places[several[0]])
    text = f"{len(several):,} of {counted(series, 'series', 'series')} have their readings in several partitions, such "
    yield (
        State.WRONG,
        text + f"as {name!r} in {' and '.join(map(str, where))}. Such readings become dead letters: {ROUTE}",
    )


def _places(batch: Batch) -> dict[bytes, set[int]]:
    """`key -> its partitions`."""
    places: dict[bytes, set[int]] = defaultdict(set)
    for key, partition in zip(batch.keys, batch.partitions, strict=True):
        if key:
            places[key].add(partition)
    return places


def clock(patient: Patient) -> Said:
    """The clock of this machine agrees with that of Kafka or the producers."""
    stamps = np.array(patient.sample.batch.timestamps, dtype=np.int64)
    if not (stamps > 0).any():
        yield State.NOTE, "the newest records have no timestamps, so that times of readings are compared with nothing"
        return
    whose = "Kafka's clock (LogAppendTime)" if patient.stored.broker_clock else "its producer's clock (CreateTime)"
    age = time.time() * 1_000 - float(stamps.max())
    if age < -_CLOCK_MS:
        text = f"the newest record is {about(age)} ahead of this machine's clock, by {whose}: one of the two clocks is "
        yield State.WRONG, text + "wrong. Compare them with `date -u`, and set them by a time server (NTP)"
        return
    yield State.OK, f"the newest record is {about(age)} old, by {whose}"


def times(patient: Patient) -> Said:
    """The clocks of the sensors agree with the times of the records."""
    stamps = np.array(patient.mapped.batch.timestamps, dtype=np.int64)
    lead = (patient.decoded.ts - stamps)[_is_reading(patient) & (stamps > 0)]
    if not len(lead):
        raise NotChecked("none of the newest records has a timestamp and is a reading")
    middle, ahead = float(np.median(lead)), int((lead > _CLOCK_MS).sum())
    if ahead:
        text = f"{ahead:,} of {counted(len(lead), 'reading')} have a time after that of their record, by up to "
        text += f"{about(lead.max())}. Correct the sensor's clock or time zone: a time without a zone is taken as UTC"
        yield State.WRONG, text
    elif middle < -_OLD_MS:
        text = f"readings have times {about(middle)} before those of their records (the median). That is right where "
        yield State.NOTE, text + "old readings are sent again; else a sensor's clock is wrong"
    else:
        yield (
            State.OK,
            f"readings are up to {about(min(0, lead.min()))} older than their records, and none is ahead of its own",
        )


def model(patient: Patient) -> Said:
    """The model can be served."""
    spec = patient.model.spec
    step = about(spec.step_ms) if spec.step_ms else "any length"
    yield State.OK, f"{spec.id}: reads {', '.join(spec.features)}; {counted(spec.horizon, 'step')} of {step} ahead"


def readings(patient: Patient) -> Said:
    """How many of the newest readings would be answered, and why not the others."""
    batch, counts = patient.sample.batch, patient.answers.counts
    dead = sum(counts.dead_letters.values())
    series = len({key for key in patient.mapped.batch.keys if key})
    text = f"of the newest {counted(len(batch), 'record')} ({series:,} series) "
    if patient.mapped.records is not None:
        text += f"with {counted(counts.readings, 'reading')} "
    text += f"{counts.forecasts:,} would be answered"
    for number, one in (
        (dead, "dead letter"),
        (counts.duplicates, "duplicate"),
        (counts.late, "late reading"),
        (counts.tombstones, "tombstone"),
        (counts.skipped, "skipped record"),
    ):
        text += f", {counted(number, one)}" if number else ""
    many_lost = counts.duplicates + counts.late > _MANY * max(1, counts.readings)
    yield State.WRONG if dead else State.NOTE if many_lost else State.OK, text
    letters: dict[str, list[dict[str, str]]] = defaultdict(list)
    for headers in patient.answers.dead_letters.headers:
        said = {name: value.decode("utf-8", "backslashreplace") for name, value in headers}
        letters[said["tidecast.reason"]].append(said)
    for reason, found in sorted(letters.items(), key=lambda item: -len(item[1])):
        where = f"{batch.topic}-{found[0]['tidecast.partition']}, offset {found[0]['tidecast.offset']}"
        yield State.WRONG, f"{len(found):,} × {reason}, such as {where}: {found[0]['tidecast.message']}"


def features(patient: Patient) -> Said:
    """Each feature of the model has values."""
    rows = np.flatnonzero(_is_reading(patient))
    if not len(rows):
        raise NotChecked("none of the newest records is a reading")
    names = patient.model.spec.features
    shares = dict(zip(names, np.isnan(patient.decoded.x[rows]).mean(axis=0).tolist(), strict=True))
    absent = [name for name, share in shares.items() if share == 1]
    often = [f"{name} in {share:.0%}" for name, share in shares.items() if _MANY < share < 1]
    if absent:
        text = f"no reading has a value for {', '.join(absent)}, which the model reads; "
        if patient.input_config is not None:
            yield State.WRONG, text + "`tidecast input check` with the same flags shows what the records have"
        else:
            values = [patient.sample.batch.values[row] for row in rows[-_PARSED:].tolist()]
            others = sorted(_fields(values) - {"ts", *names})
            text += f"fields that it does not read: {', '.join(others) or 'none'}. "
            yield State.WRONG, text + "Let the producer use the model's names, or train a model with the new ones"
    if often:
        yield State.NOTE, f"values are missing: {', '.join(often)} of the readings. The model uses its forecast instead"
    if not absent and not often:
        yield State.OK, "readings have values for each feature of the model"


def step(patient: Patient) -> Said:
    """The readings of a series are as far apart as the model expects."""
    step_ms, keys = patient.model.spec.step_ms, patient.mapped.batch.keys
    last: dict[bytes | None, int] = {}
    apart = []
    for row in np.flatnonzero(_is_reading(patient)).tolist():
        key, ts = keys[row], int(patient.decoded.ts[row])
        if ts > last.get(key, ts):
            apart.append(ts - last[key])
        last[key] = max(ts, last.get(key, ts))
    if not apart:
        raise NotChecked("no series has two readings among the newest")
    middle = float(np.median(apart))
    text = f"readings of a series are {about(middle)} apart (the median), "
    if not step_ms:
        yield State.OK, text + "and the model takes any step"
    elif 0.5 <= middle / step_ms < 1.5:
        yield State.OK, text + "as the model expects"
    else:
        text += f"and the model's step is {about(step_ms)}. Send one reading for each step, or train a model with the "
        yield State.WRONG, text + "step of the readings"


def _is_reading(patient: Patient) -> NDArray[np.bool_]:
    """[records] True for what has a time, also without any feature of the model."""
    found: NDArray[np.bool_] = patient.decoded.ts != 0
    return found


def _fields(values: Iterable[bytes | None]) -> set[str]:
    """The names of the fields in these readings."""
    found: set[str] = set()
    for value in values:
        try:
            found.update(msgspec.json.decode(value or b"{}", type=dict[str, msgspec.Raw]))
        except ValueError:  # a bare NaN
            continue
    return found
