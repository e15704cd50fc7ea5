"""Where `produce` gets readings from: a file, a synthetic sine, or this machine's own sensors."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import socket
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.readings import Reading, readings
from tidecast.service.datafiles.table import UNIVARIATE, Table
from tidecast.service.errors import DataError, TidecastError, UsageError
from tidecast.service.feed.pacing import PacingClock
from tidecast.service.input.files import DataFile

_encode = msgspec.json.Encoder().encode


def file_table(
    file: DataFile, *, start: int | None = None, until: int | None = None, limit: int | None = None
) -> Table:
    """A file's readings in the order of a live stream: merged by event time, each series in the order of the file.

    A reading that is late in its series stays late: it comes right after the reading before it in the file.
    `start` and `until` (ms, the latter exclusive) and `limit` (readings) select a part.

    Raises:
        DataError: as `DataFile.table`, or the part is empty.
    """
    table = file.table()
    inside = np.ones(len(table), dtype=bool)
    if start is not None:
        inside &= table.ts >= start
    if until is not None:
        inside &= table.ts < until
    rows = np.flatnonzero(inside)
    rows = rows[stream_order(table.ts[rows], [table.series[row] for row in rows])][:limit]
    if not len(rows):
        raise DataError(f"{file.path} has no readings in this part", do="Check --from, --until and --limit.")
    return table.select(rows)


def stream_order(ts: NDArray[np.int64], series: list[str]) -> NDArray[np.int64]:
    """Row numbers [rows] of times `ts` [rows] in ms, sorted by the latest time seen so far in the row's own series."""
    if not series:
        return np.empty(0, dtype=np.int64)
    codes = np.unique(np.array(series), return_inverse=True)[1].reshape(-1).astype(np.int64)
    by_series = np.argsort(codes, kind="stable")
    # One running maximum over all series: each starts above all times of the one before.
    lift = codes * (int(ts.max()) - int(ts.min()) + 1)
    latest = np.empty_like(ts)
    latest[by_series] = np.maximum.accumulate((ts + lift)[by_series])
    return np.argsort(latest - lift, kind="stable")


def typical_step(table: Table) -> int:
    """The median ms from a reading to the next of its series; 1,000 where no series has two."""
    codes = np.unique(np.array(table.series), return_inverse=True)[1].reshape(-1)
    order = np.lexsort((table.ts, codes))
    steps = np.diff(table.ts[order])[np.diff(codes[order]) == 0]
    steps = steps[steps > 0]
    return int(np.median(steps)) if len(steps) else 1_000


def shifted(table: Table, ms: int) -> Table:
    """The same readings, `ms` later."""
    return dataclasses.replace(table, ts=table.ts + ms)


def now_shift(table: Table, now_ms: float) -> int:
    """The shift in ms that gives the first reading the present time, rounded down to whole steps."""
    step = typical_step(table)
    return int(now_ms - int(table.ts.min())) // step * step


def looped(table: Table) -> Iterator[Reading]:
    """The table's readings, repeated without end; each round is later than the one before."""
    span = int(table.ts.max()) - int(table.ts.min()) + typical_step(table)
    for turn in itertools.count():
        yield from readings(shifted(table, turn * span))


def sine_readings(
    *, series: int, rate: float, start_ms: int, feature: str = UNIVARIATE, noise: float = 0.1, seed: int = 0
) -> Iterator[Reading]:
    """Endless noisy sines, each series with its own level, amplitude, phase and period of 20 to 200 readings.

    `rate` is readings per second of event time in each series. The same seed gives the same values.

    Raises:
        UsageError: no series, a rate that is not positive or above 1,000, or negative noise.
    """
    if series < 1:
        raise UsageError("--series must be 1 or more", got=series)
    if not 0 < rate <= 1_000:
        raise UsageError("--rate must be above 0 and at most 1000 readings per second", got=rate)
    if not noise >= 0:
        raise UsageError("--noise must be 0 or more", got=noise)
    return _sines(series, rate, start_ms, feature, noise, random.Random(seed))


def _sines(n: int, rate: float, start_ms: int, feature: str, noise: float, rng: random.Random) -> Iterator[Reading]:
    names = [f"sine-{i:0{len(str(n - 1))}d}".encode() for i in range(n)]
    waves = [
        (rng.uniform(-50, 50), rng.uniform(1, 10), rng.uniform(0, 2 * math.pi), rng.uniform(20, 200)) for _ in range(n)
    ]
    for k in itertools.count():
        ts = start_ms + round(k * 1_000 / rate)
        for name, (level, height, phase, period) in zip(names, waves, strict=True):
            value = level + height * (math.sin(2 * math.pi * k / period + phase) + rng.gauss(0, noise))
            yield Reading(ts, name, _encode({"ts": ts, feature: round(value, 6)}))


Sensors = Callable[[], Mapping[str, float | None]]


def machine_readings(
    sensors: Sensors, clock: PacingClock, *, interval_ms: int, host: str, wide: bool = False
) -> Iterator[list[Reading]]:
    """This machine's sensors every `interval_ms`, at whole multiples since the epoch, until the clock is stopped.

    One univariate series for each sensor, keyed "host/sensor"; with `wide` one series, keyed by the host, with
    every sensor as a feature. A sensor that cannot be read is null.

    Raises:
        UsageError: an interval below 10 ms.
    """
    if interval_ms < 10:
        raise UsageError("--interval must be 10ms or more", got=f"{interval_ms}ms")
    return _machine(sensors, clock, interval_ms, host, wide)


def _machine(sensors: Sensors, clock: PacingClock, interval_ms: int, host: str, wide: bool) -> Iterator[list[Reading]]:
    sensors()  # rates and CPU shares are since the last call
    last = int(clock.now_ms()) // interval_ms * interval_ms
    while True:
        # If a reading was missed (the machine was suspended), it stays missing.
        ts = max(last + interval_ms, int(clock.now_ms()) // interval_ms * interval_ms)
        if clock.wait((ts - clock.now_ms()) / 1_000):
            return
        now = sensors()
        if wide:
            yield [Reading(ts, host.encode(), _encode({"ts": ts, **now}))]
        else:
            yield [
                Reading(ts, f"{host}/{name}".encode(), _encode({"ts": ts, UNIVARIATE: value}))
                for name, value in now.items()
            ]
        last = ts


def machine_sensors(clock: PacingClock, disk: str = "/") -> Sensors:
    """psutil's CPU, memory and disk readings; per cent and bytes per second.

    Raises:
        TidecastError: psutil is not installed.
    """
    try:
        import psutil
    except ImportError:
        raise TidecastError("reading this machine needs psutil", do="pip install psutil") from None
    before: tuple[float, int, int] | None = None

    def read() -> dict[str, float | None]:
        nonlocal before
        counters, now = psutil.disk_io_counters(), clock.now_ms() / 1_000
        read_rate: float | None = None
        write_rate: float | None = None
        if counters is not None:  # None: a machine without a disk of its own, such as some containers
            if before is not None and now > before[0]:
                read_rate = round((counters.read_bytes - before[1]) / (now - before[0]), 1)
                write_rate = round((counters.write_bytes - before[2]) / (now - before[0]), 1)
            before = (now, counters.read_bytes, counters.write_bytes)
        return {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "disk_percent": psutil.disk_usage(disk).percent,
            "disk_read_bytes_per_second": read_rate,
            "disk_write_bytes_per_second": write_rate,
        }

    return read


def host_name() -> str:
    """This machine's name, without its domain."""
    return socket.gethostname().partition(".")[0] or "machine"
