"""Matches forecasts with the values measured later, and computes their errors compared with persistence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidecast.service.demo.rivals import Rival


@dataclass(frozen=True, slots=True)
class ForecastInterval:
    """One forecast for one time: the median and the outermost quantiles."""

    low: float
    mid: float
    high: float


@dataclass(slots=True)
class RunningErrors:
    """Running sums for one number of steps ahead."""

    count: int = 0
    model: float = 0.0  # sum of absolute errors, in the target's unit
    naive: float = 0.0  # the same for persistence: the value when the forecast was made
    inside: int = 0  # how many fell into the interval

    @property
    def mae(self) -> float:
        """Mean absolute error of the median; NaN before the first."""
        return self.model / self.count if self.count else float("nan")

    @property
    def naive_mae(self) -> float:
        """Mean absolute error of persistence; NaN before the first."""
        return self.naive / self.count if self.count else float("nan")

    @property
    def skill(self) -> float:
        """1 - MAE / persistence's MAE: above 0 is better than persistence. NaN where there is nothing to compare."""
        return 1 - self.model / self.naive if self.naive else float("nan")

    @property
    def coverage(self) -> float:
        """Share of actual values inside the interval."""
        return self.inside / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """The newest values of one series."""

    series: str
    ts: int
    actual: float | None
    before: ForecastInterval | None  # the forecast for `ts` made one step earlier
    ahead: ForecastInterval | None  # the newest forecast, furthest step
    ahead_ts: int | None


@dataclass(slots=True)
class TrackedSeries:
    """Readings and forecasts of one series that can still be matched."""

    newest: int | None = None  # ms of the newest reading
    newest_made: int | None = None  # ms of the newest forecast
    actual: dict[int, float | None] = field(default_factory=dict)  # ts -> value
    # made at ts -> steps ahead -> forecast; those that still wait for their actual value
    waiting: dict[int, dict[int, ForecastInterval]] = field(default_factory=dict)
    one_step: dict[int, ForecastInterval] = field(default_factory=dict)  # the time it is for -> forecast
    ahead: ForecastInterval | None = None
    ahead_ts: int | None = None


class Scoreboard:
    """Gets readings and forecasts of one target. The order between the two topics does not matter.

    Only warm forecasts made at `start_ms` or later are counted, at one step and at the last step ahead.
    """

    def __init__(self, start_ms: int = 0) -> None:
        self.start_ms = start_ms
        self.errors: dict[int, RunningErrors] = {}  # steps ahead -> sums
        self.readings = 0
        self.forecasts = 0
        self.step_ms = 0
        self.low_name = self.high_name = ""  # of the interval's quantiles, such as "p5" and "p95"
        self.series: dict[str, TrackedSeries] = {}
        self.rivals: Mapping[str, Rival] = {}  # name -> each model that the worker runs
        self._horizon = 1

    def reading(self, series: str, ts: int, value: float | None) -> None:
        """A value measured at `ts`."""
        self.readings += 1
        one = self.series.setdefault(series, TrackedSeries())
        if one.newest is not None and ts <= one.newest:
            return  # late or a duplicate: the model did not see it
        one.newest = ts
        one.actual[ts] = value
        for steps in self.errors:
            self._score(one, ts - steps * self.step_ms, steps)
        for steps in self.errors:
            self._score(one, ts, steps)
        self._forget(one)

    def forecast(self, series: str, ts: int, step_ms: int, warm: bool, target: Mapping[str, Sequence[float]]) -> None:
        """The forecast made from the reading at `ts`; `target` maps quantile names to [horizon]."""
        one = self.series.setdefault(series, TrackedSeries())
        if step_ms <= 0 or (one.newest_made is not None and ts <= one.newest_made):
            return  # no fixed step: its times are unknown; or the same forecast again, as at-least-once may
        one.newest_made = ts
        self.forecasts += 1
        names = sorted(target, key=lambda name: float(name[1:]))
        middle = min(names, key=lambda name: abs(float(name[1:]) - 50))
        self.low_name, self.high_name = names[0], names[-1]
        self.step_ms, self._horizon = step_ms, len(target[middle])

        def interval(steps: int) -> ForecastInterval:
            return ForecastInterval(
                target[names[0]][steps - 1], target[middle][steps - 1], target[names[-1]][steps - 1]
            )

        one.ahead, one.ahead_ts = interval(self._horizon), ts + self._horizon * step_ms
        one.one_step[ts + step_ms] = interval(1)
        if warm and ts >= self.start_ms:
            one.waiting[ts] = {steps: interval(steps) for steps in sorted({1, self._horizon})}
            for steps in one.waiting[ts].copy():
                self.errors.setdefault(steps, RunningErrors())
                self._score(one, ts, steps)

    def rows(self) -> list[SeriesRow]:
        """The newest values of every series, by name."""
        rows = []
        for name, one in sorted(self.series.items()):
            if one.newest is not None:
                rows.append(
                    SeriesRow(
                        name, one.newest, one.actual[one.newest], one.one_step.get(one.newest), one.ahead, one.ahead_ts
                    )
                )
        return rows

    @property
    def level(self) -> float:
        """Nominal coverage of the interval, such as 0.9; NaN before the first forecast."""
        return (float(self.high_name[1:]) - float(self.low_name[1:])) / 100 if self.low_name else float("nan")

    def _score(self, one: TrackedSeries, made: int, steps: int) -> None:
        """Score a forecast, once the value at its target time and the value at the time it was made are known."""
        forecast = one.waiting.get(made, {}).get(steps)
        actual, naive = one.actual.get(made + steps * self.step_ms), one.actual.get(made)
        if forecast is None or actual is None or naive is None:
            return
        del one.waiting[made][steps]
        errors = self.errors[steps]
        errors.count += 1
        errors.model += abs(forecast.mid - actual)
        errors.naive += abs(naive - actual)
        errors.inside += forecast.low <= actual <= forecast.high

    def _forget(self, one: TrackedSeries) -> None:
        """Drop what can no longer be matched; keeps enough for a worker that lags."""
        if one.newest is None or not self.step_ms or len(one.actual) < 2_000 + 4 * self._horizon:
            return
        oldest = one.newest - (1_000 + 2 * self._horizon) * self.step_ms
        one.actual = {ts: value for ts, value in one.actual.items() if ts >= oldest}
        one.waiting = {ts: waiting for ts, waiting in one.waiting.items() if ts >= oldest and waiting}
        one.one_step = {ts: interval for ts, interval in one.one_step.items() if ts >= oldest}
