"""What is in the readings: their order, step and gaps, and for each column its range, holes, outliers and shifts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from tidecast.service.timestamps import format_time
from tidecast.training.data.outliers import hampel_limits
from tidecast.training.data.quality import OFF
from tidecast.training.inspection.columns import Column, Floats, Int64
from tidecast.training.inspection.roles import Keys, Role
from tidecast.training.inspection.seasons import Seasons

LONG_GAP = 24  # steps: the trainer's own default of data.max_gap
SHOWN = 3
FLAT = 24  # so many equal readings in a row are reported
ROUND_MS = (
    1, 10, 50, 100, 200, 250, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 20_000, 30_000, 60_000, 120_000, 180_000,
    300_000, 600_000, 900_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000, 10_800_000, 14_400_000, 21_600_000,
    28_800_000, 43_200_000, 86_400_000, 604_800_000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SortedReadings:
    """Readings by series, then time, without a second one for the same time (the first stays, as in the trainer)."""

    keys: Keys
    rows: Int64  # [readings] row in the file
    ts: Int64  # [readings] ms
    bounds: Int64  # [series + 1] where each series begins

    def spans(self) -> list[tuple[str, slice]]:
        """(name, where) of each series."""
        ends = self.bounds.tolist()
        return [(n, slice(a, b)) for n, a, b in zip(self.keys.names, ends, ends[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Order:
    """How the rows came."""

    duplicates: int  # readings for a time that the series already had
    contradictions: int  # of those, with other values than the reading that stays
    first_duplicate: str | None
    unsorted: int  # rows earlier than one before them of the same series


@dataclass(frozen=True, slots=True)
class GapSummary:
    """A place where steps are missing."""

    series: str
    start: str  # the last reading before it
    end: str  # the first after it
    steps: int  # missing


@dataclass(frozen=True, slots=True)
class StepSummary:
    """The step and where it does not hold."""

    step_ms: int  # median difference over the series' medians, rounded to a usual step where it is within 2 %
    others: dict[str, int]  # series whose own median differs from it by more than 10 %
    irregular: float  # share of readings more than OFF of a step from where they are due
    jitter: float  # share of readings not exactly due, but within OFF
    gaps: int
    missing: int  # steps missing in all gaps
    long: int  # gaps longer than LONG_GAP steps
    longest: list[GapSummary]


@dataclass(frozen=True, slots=True)
class Location:
    """One reading worth a look."""

    time: str
    series: str
    value: float
    usual: float  # the median around it


@dataclass(frozen=True, slots=True)
class Shift:
    """A place where the level moves and stays."""

    time: str
    series: str
    before: float
    after: float


@dataclass(slots=True)
class Values:
    """One column of values over all series."""

    name: str
    unit: str | None
    missing: int
    missing_share: float
    longest_missing: int  # readings in a row
    refused: int  # cells that are neither missing nor a finite number
    first_refused: str | None
    low: float
    median: float
    high: float
    flat: int  # longest run of equal readings
    flat_at: Location | None
    outliers: int
    first_outliers: list[Location]
    shifts: list[Shift]
    far: Location | None = None  # an outlier that makes the range several times as wide as nearly all readings need
    seasons: Seasons | None = None
    outlier_rows: list[int] = field(default_factory=list)  # places in the sorted readings, for the plots; at most 2,000


def sort_readings(ts: Int64, keys: Keys, columns: list[Floats]) -> tuple[SortedReadings, Order]:
    """The readings in order, and how far they were from it.

    `columns`, each [rows] of values, say which duplicates disagree.
    """
    order = np.lexsort((ts, keys.codes))  # stable: rows of the same time stay in the file's order
    codes, moments = keys.codes[order], ts[order]
    repeated = np.zeros(len(ts), dtype=bool)
    repeated[1:] = (codes[1:] == codes[:-1]) & (moments[1:] == moments[:-1])
    kept = ~repeated
    in_file = np.argsort(keys.codes, kind="stable")  # by series, in the file's order
    back = (np.diff(ts[in_file]) < 0) & (np.diff(keys.codes[in_file]) == 0)
    first = None
    if repeated.any():
        at = int(order[np.argmax(repeated)])
        name = keys.names[int(keys.codes[at])]
        first = format_time(int(ts[at])) + (f" of {name}" if keys.column else "")
    bounds = np.searchsorted(codes[kept], np.arange(len(keys.names) + 1))
    readings = SortedReadings(keys, order[kept], moments[kept], bounds)
    stays = order[np.maximum.accumulate(np.where(kept, np.arange(len(ts)), 0))]  # the row that stays instead of each
    disagree = np.zeros(len(ts), dtype=bool)
    for x in columns:
        a, b = x[order], x[stays]
        disagree |= (a != b) & ~(np.isnan(a) & np.isnan(b))
    return readings, Order(int(repeated.sum()), int(disagree.sum()), first, int(back.sum()))


def find_steps(of: SortedReadings) -> StepSummary | None:
    """The step; None where no series has two readings."""
    spans = {name: at for name, at in of.spans() if at.stop - at.start > 1}
    differences = {name: np.diff(of.ts[at]) for name, at in spans.items()}
    if not differences:
        return None
    medians = {name: float(np.median(d)) for name, d in differences.items()}
    step = max(1, round(float(np.median(list(medians.values())))))
    near = min(ROUND_MS, key=lambda usual: abs(usual - step))
    step = near if abs(near - step) <= 0.02 * near else step
    irregular = jitter = total = missing = count = long = 0
    gaps: list[tuple[int, str, int, int]] = []
    for name, d in differences.items():
        whole = np.maximum(np.rint(d / step), 1)
        off = np.abs(d - whole * step) / step
        irregular += int((off > OFF).sum())
        jitter += int(((off > 0) & (off <= OFF)).sum())
        total += len(d)
        absent = whole.astype(np.int64) - 1
        count += int((absent > 0).sum())
        missing += int(absent.sum())
        long += int((absent > LONG_GAP).sum())
        ts = of.ts[spans[name]]
        worst = np.argsort(-absent, kind="stable")[:SHOWN]
        gaps += [(int(absent[i]), name, int(ts[i]), int(ts[i + 1])) for i in worst.tolist() if absent[i] > 0]
    gaps.sort(key=lambda gap: (-gap[0], gap[2]))
    shown = [GapSummary(name, format_time(a), format_time(b), n) for n, name, a, b in gaps[:SHOWN]]
    others = {name: round(m) for name, m in medians.items() if abs(m - step) > OFF * step}
    return StepSummary(step, others, irregular / total, jitter / total, count, missing, long, shown)


def find_values(column: Column, of: SortedReadings, step_ms: int) -> Values:
    """One column of numbers. Outliers by `tidecast.training.data.outliers`, each series for itself."""
    assert column.numbers is not None
    x = column.numbers[of.rows]  # [readings]
    known = x[np.isfinite(x)]
    outliers: list[int] = []
    usual = np.full(len(x), np.nan)
    longest_missing, flat, flat_at = 0, 1, -1
    shifts: list[tuple[float, Shift]] = []
    for name, at in of.spans():
        mine = x[at]
        limits = hampel_limits(mine)
        usual[at] = limits.median
        outliers += (np.flatnonzero(limits.exceeded_by(mine)) + at.start).tolist()
        longest_missing = max(longest_missing, _longest_run(np.isnan(mine))[0])
        seen = np.flatnonzero(np.isfinite(mine))
        same = np.zeros(len(seen), dtype=bool)
        same[1:] = np.diff(mine[seen]) == 0
        run, end = _longest_run(same)
        if run + 1 > flat:
            flat, flat_at = run + 1, at.start + int(seen[end - run])
        shifts += _shifts(of.ts[at], mine, name, step_ms)
    outliers.sort(key=lambda i: of.ts[i])
    series = np.repeat(np.arange(len(of.keys.names)), np.diff(of.bounds))

    def located(i: int) -> Location:
        return Location(format_time(int(of.ts[i])), of.keys.names[int(series[i])], float(x[i]), float(usual[i]))

    far = _far(x, outliers)
    stuck = flat >= FLAT and flat_at >= 0
    return Values(
        name=column.name,
        unit=unit_of(column.name),
        missing=int(np.isnan(x).sum()),
        missing_share=float(np.isnan(x).mean()),
        longest_missing=longest_missing,
        refused=column.refused,
        first_refused=_refused(column),
        low=float(known.min()),
        median=float(np.median(known)),
        high=float(known.max()),
        flat=flat,
        flat_at=located(flat_at) if stuck else None,
        outliers=len(outliers),
        first_outliers=[located(i) for i in outliers[:SHOWN]],
        shifts=[shift for _, shift in sorted(shifts, key=lambda s: -s[0])[:SHOWN]],
        far=located(far) if far is not None else None,
        outlier_rows=outliers[:2000],
    )


def _far(x: Floats, outliers: list[int]) -> int | None:
    rest = np.delete(x, outliers)
    if not np.isfinite(rest).any():
        return None
    low, middle, high = np.nanpercentile(rest, [0.1, 50, 99.9])
    beyond = [i for i in outliers if x[i] > high + 3 * (high - low) or x[i] < low - 3 * (high - low)]
    return max(beyond, key=lambda i: abs(x[i] - middle), default=None)


def unit_of(name: str) -> str | None:
    """What stands in brackets at the end of a column's name: "power (kW)", "T [°C]"."""
    match = re.search(r"[(\[]\s*([^)\]]{1,12}?)\s*[)\]]\s*$", name)
    return match[1] if match else None


def value_names(roles: list[Role]) -> list[str]:
    """The columns that a model could use."""
    return [role.name for role in roles if role.role == "value"]


def _refused(column: Column) -> str | None:
    if column.first_refused is None:
        return None
    line, cell = column.first_refused
    return f"line {line}: {cell[:24]!r}"


def _longest_run(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[int, int]:
    """(length, last place) of the longest run of True; (0, 0) where there is none."""
    at = np.arange(1, len(mask) + 1)
    since = at - np.maximum.accumulate(np.where(mask, 0, at)) if len(mask) else at
    if not len(since) or since.max() == 0:
        return 0, 0
    end = int(np.argmax(since))
    return int(since[end]), end


def _shifts(ts: Int64, x: Floats, name: str, step_ms: int) -> list[tuple[float, Shift]]:
    """Places where the median of the ten blocks after differs from the ten before by more than three usual moves.

    A block is a day, or longer so that there are at most 400; daily waves are inside a block and do not count.
    """
    day = 86_400_000
    block = -(-max(day, 10 * step_ms, int(np.ptp(ts)) // 400) // day) * day
    begin = int(ts[0]) // day * day
    number = (ts - begin) // block
    count = int(number[-1]) + 1
    if count < 40:
        return []
    medians = np.full(count, np.nan)
    edges = np.searchsorted(number, np.arange(count + 1))
    for i in range(count):
        part = x[edges[i] : edges[i + 1]]
        part = part[np.isfinite(part)]
        if len(part):
            medians[i] = np.median(part)
    if np.isnan(medians).mean() > 0.5:
        return []
    side = 10
    before = np.lib.stride_tricks.sliding_window_view(medians, side)[:-side]
    after = np.lib.stride_tricks.sliding_window_view(medians, side)[side:]
    usable = (np.isfinite(before).sum(axis=1) > side // 2) & (np.isfinite(after).sum(axis=1) > side // 2)
    if usable.sum() < 10:
        return []
    b, a = np.full(len(before), np.nan), np.full(len(after), np.nan)
    b[usable], a[usable] = np.nanmedian(before[usable], axis=1), np.nanmedian(after[usable], axis=1)
    moved = np.abs(a - b)
    spread = float(np.nanmedian(moved))
    whole = float(np.subtract(*np.nanpercentile(x, [75, 25])))
    found: list[tuple[float, Shift]] = []
    while spread > 0 and len(found) < SHOWN:
        i = int(np.nanargmax(np.where(np.isnan(moved), -1.0, moved)))
        if not moved[i] > max(3 * 1.4826 * spread, whole):
            break
        when = format_time(begin + (i + side) * block)
        found.append((float(moved[i]) / spread, Shift(when, name, float(b[i]), float(a[i]))))
        moved[max(0, i - side) : i + side + 1] = 0.0
    return found
