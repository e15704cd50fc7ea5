"""Made-up hourly streams for `benchmarks/starter.py`: what a model does after a change, and under hostile values.

Streams: a level of 100; a day of two harmonics (10 and 4); AR(1) noise (0.8, sd 1.7) and white noise (0.5). "Day":
every day alike. "Week": the day is half as large at weekends.

Recovery: at step 2,027 (after twelve weeks, at 11:00) one of
- level: all later values are 5 standard deviations higher;
- scale: all later values are 5 times as large, their level too;
- season: the day comes 6 hours late from then on, the week stays;
- spike: this one value is 10 standard deviations higher.
The error is the mean absolute error of the median over 100 seeds and 24 successive targets. "First": the fewest steps
after the change from which on such a day's error is at most 1.1 times that of the same streams without the change
(scale: times 5). "For good": from which on every later day's is, up to 3,000 steps after the change.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from starter_sets import HOUR_MS, START_MS

from tidecast.service.model.session import Model

Floats = NDArray[np.float64]
SEEDS, CHANGE, AFTER, DAY = 100, 2_027, 3_000, 24
LEADS = (1, 24)
WITHIN = 1.1


def streams(seeds: int, steps: int, late: Floats, weekend: float) -> Floats:
    """[seeds, steps]; `late` [steps] is how many hours the day is late, `weekend` its size at weekends."""
    rng = np.random.default_rng(0)
    hour = np.arange(steps) - late
    phase = rng.uniform(0, 2 * np.pi, (seeds, 1))
    day = 10 * np.sin(2 * np.pi * hour / 24 + phase) + 4 * np.sin(4 * np.pi * hour / 24 + 2 * phase)
    at_weekends = (np.arange(steps) // 24) % 7 >= 5
    noise = rng.normal(0, 1, (seeds, steps))
    for t in range(1, steps):
        noise[:, t] += 0.8 * noise[:, t - 1]
    return 100 + day * np.where(at_weekends, weekend, 1.0) + noise + rng.normal(0, 0.5, (seeds, steps))


def changed(kind: str, weekend: float) -> Floats:
    """[seeds, steps] with that change."""
    steps = CHANGE + AFTER + 2 * DAY
    after = np.arange(steps) >= CHANGE
    x = streams(SEEDS, steps, np.where(after & (kind == "season"), 6.0, 0.0), weekend)
    sd = x[:, :CHANGE].std(axis=1, keepdims=True)
    if kind == "level":
        x += 5 * sd * after
    elif kind == "scale":
        x *= np.where(after, 5.0, 1.0)
    elif kind == "spike":
        x[:, CHANGE] += 10 * sd[:, 0]
    return x


def absolute_errors(model: Model, x: Floats) -> dict[int, Floats]:
    """Lead -> [steps], the mean over the seeds by target; NaN before there is a forecast for it."""
    spec, (seeds, steps) = model.spec, x.shape
    median = spec.quantiles.index(0.5)
    state = np.tile(model.initial_state, (seeds, 1))
    out = {lead: np.full(steps, np.nan) for lead in LEADS if lead <= spec.horizon}
    truth = x.astype(np.float32)
    for t in range(steps):
        ts = np.full(seeds, START_MS + t * HOUR_MS, dtype=np.int64)
        y, state, _ = model.step(truth[:, t : t + 1], ts, state)
        for lead, errors in out.items():
            if t + lead < steps:
                errors[t + lead] = np.abs(y[:, lead - 1, 0, median] - truth[:, t + lead]).mean()
    return out


def recovery(folder: Path) -> list[list[str]]:
    """A row for each stream, change and lead."""
    model = Model.load(folder)
    rows = []
    for stream, weekend in (("day", 1.0), ("week", 0.5)):
        without = absolute_errors(model, changed("none", weekend))
        for kind in ("level", "scale", "season", "spike"):
            for lead, errors in absolute_errors(model, changed(kind, weekend)).items():
                size = 5.0 if kind == "scale" else 1.0
                ratio = by_day(errors[CHANGE:]) / by_day(without[lead][CHANGE:]) / size
                fine = ratio[: AFTER + 1] <= WITHIN
                bad = np.flatnonzero(~fine)
                first = int(np.argmax(fine)) if fine.any() else AFTER + 1
                for_good = int(bad[-1]) + 1 if len(bad) else 0
                later = " ".join(f"{ratio[n]:.2f}" for n in LATER)
                steps = (f"{n:,}" if n <= AFTER else f"> {AFTER:,}" for n in (first, for_good))
                sizes = (f"{without[lead][CHANGE:].mean():.3g}", f"{ratio[0]:.3g}")
                rows.append([stream, kind, str(lead), *steps, *sizes, later])
    return rows


LATER = (50, 100, 250, 400, 1_000)
RECOVERY_HEAD = ["stream", "change", "lead", "first", "for good", "error without", "ratio on the first day",
                 f"ratio after {', '.join(map(str, LATER))} steps"]  # fmt: skip


def by_day(errors: Floats) -> Floats:
    """Mean of each element and the 23 that follow it."""
    return np.convolve(errors, np.ones(DAY) / DAY, "valid")


# Hostile values, [steps] of float32 from a generator; the first five are those of the starter's sketch.
Hostile = Callable[[np.random.Generator, Floats], Floats]
HOSTILE: dict[str, Hostile] = {
    "stuck": lambda r, x: np.full_like(x, x[0]),
    "spikes of 10⁴": lambda r, x: np.where(r.random(len(x)) < 0.02, 1e4, x),
    "scale × 100": lambda r, x: x * 100,
    "zeros": lambda r, x: np.zeros_like(x),
    "missing": lambda r, x: np.where(r.random(len(x)) < 0.5, np.nan, x),
    "all missing": lambda r, x: np.full_like(x, np.nan),
    "two values": lambda r, x: np.where(np.arange(len(x)) % 2 == 0, 1e6, -1e6),
    "tiny": lambda r, x: x * 1e-30,
    "large and flat": lambda r, x: 1e7 + 0.01 * x,
    "random walk": lambda r, x: np.cumsum(r.normal(0, 10, len(x))),
    "heavy tails": lambda r, x: r.standard_cauchy(len(x)) * 100,
    "ramp": lambda r, x: np.arange(len(x)) * 1e3,
    "exponential": lambda r, x: np.exp(np.linspace(0, 30, len(x))),
    "huge": lambda r, x: r.normal(0, 1e18, len(x)),
}
EXTREME: dict[str, Hostile] = {
    "10³⁰": lambda r, x: r.normal(0, 1e30, len(x)),
    "near float32's end": lambda r, x: np.where(r.random(len(x)) < 0.5, 3e38, -3e38),
}
CLEAN, CHUNK = 2_400, 1_000


def stability(folder: Path, steps: int, extreme: bool) -> list[list[str]]:
    """A row for each kind: it takes turns with clean values, 100 to 1,000 steps each; the last row mixes all kinds."""
    model = Model.load(folder)
    kinds = HOSTILE | (EXTREME if extreme else {})
    names = [*kinds, "all of them"]
    rngs = [np.random.default_rng(k) for k in range(len(names))]
    state = np.tile(model.initial_state, (len(names), 1))
    bad, first = np.zeros(len(names), dtype=np.int64), np.full(len(names), -1)
    largest = np.zeros(len(names))
    began = perf_counter()
    for start in range(0, steps, CHUNK):
        x = np.stack([_chunk(name, kinds, rng) for name, rng in zip(names, rngs, strict=True)]).astype(np.float32)
        for t in range(min(CHUNK, steps - start)):
            ts = np.full(len(names), START_MS + (start + t) * HOUR_MS, dtype=np.int64)
            y, state, _ = model.step(x[:, t : t + 1], ts, state)
            wrong = ~(np.isfinite(y).all(axis=(1, 2, 3)) & np.isfinite(state).all(axis=1))
            if wrong.any():
                first[wrong & (first < 0)] = start + t
                bad += wrong
        largest = np.maximum(largest, np.abs(state).max(axis=1))
    took = perf_counter() - began
    after = _clean_errors(model, state, steps)
    fresh = _clean_errors(model, model.initial_state[np.newaxis], steps)[0]
    return [
        [name, f"{bad[k]:,}", "" if first[k] < 0 else f"{first[k]:,}", f"{largest[k]:.3g}", f"{after[k] / fresh:.3f}"]
        for k, name in enumerate(names)
    ] + [["(steps, s)", f"{steps:,}", f"{took:.0f}", "", ""]]


STABILITY_HEAD = ["values", "steps not finite", "first", "largest in the state", "error on clean values afterwards"]


def _chunk(name: str, kinds: dict[str, Hostile], rng: np.random.Generator) -> Floats:
    """[CHUNK]: clean, then hostile, in stretches of 100 to 1,000."""
    x = streams_of(rng, CHUNK)
    at = int(rng.integers(0, CHUNK))
    end = min(CHUNK, at + int(rng.integers(100, 1_000)))
    kind = kinds[str(rng.choice(list(kinds)))] if name not in kinds else kinds[name]
    if end > at:
        x[at:end] = kind(rng, x[at:end])
    return x


def streams_of(rng: np.random.Generator, steps: int) -> Floats:
    return 100 + 10 * np.sin(2 * np.pi * np.arange(steps) / 24) + rng.normal(0, 1, steps)


def _clean_errors(model: Model, state: NDArray[np.float32], begun: int) -> Floats:
    """[rows]: mean absolute error one step ahead over the second half of clean values; over a fresh state's it is 1."""
    x = streams_of(np.random.default_rng(99), CLEAN).astype(np.float32)
    median, errors = model.spec.quantiles.index(0.5), np.zeros(len(state))
    for t in range(CLEAN - 1):
        ts = np.full(len(state), START_MS + (begun + t) * HOUR_MS, dtype=np.int64)
        y, state, _ = model.step(np.full((len(state), 1), x[t]), ts, state)
        if t >= CLEAN // 2:
            errors += np.abs(y[:, 0, 0, median] - x[t + 1])
    return errors
