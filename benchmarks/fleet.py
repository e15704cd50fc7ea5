"""Which machines of a fleet need attention: how soon the live page says so, and how often it says so without a reason.

    python benchmarks/fleet.py [--series 2000] [--weeks 8] [--seed 6] [--model DIR]

Made-up hourly machines: a day, a weekend, AR(1) noise. The starter (or the model of DIR) forecasts them; the rule of
the live page judges each reading. From week 4 on, 21 machines each have one of these faults, and all others none:
- drift: the level moves by half a standard deviation of the noise each hour, for two days;
- shift: the level is 6 of these deviations higher;
- noisier: the noise is three times as large;
- stuck: the same value again and again;
- silent: no reading.
Found: within 24 hours of stream time, or at all. False: findings of healthy machines after week 3, for each 1,000
series and week. For comparison the usual rule: the residual one step ahead, divided by its running deviation, is
beyond a limit, the one at which it raises as many false alarms as the page's rule does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starters import make

from tidecast.service.model.session import Model
from tidecast.service.watch.fleet import SILENT_STEPS
from tidecast.service.watch.health import LeadHealth, TargetHealth

Floats = NDArray[np.float64]
FAULTS, EACH, HOUR_MS, START_MS = ("drift", "shift", "noisier", "stuck", "silent"), 21, 3_600_000, 1_767_225_600_000
FROM, QUIET, DAY = 4 * 168 + 11, 3 * 168, 24
MEMORY, SHOCK = 0.8, 1.0


def machines(series: int, steps: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Values [series, steps], NaN = no reading; and the fault of each, -1 = none."""
    hours = np.arange(steps)
    day = 8 * np.sin(2 * np.pi * (hours / DAY + rng.random((series, 1)))) * np.where(hours // DAY % 7 > 4, 0.6, 1.0)
    shocks = SHOCK * rng.normal(size=(series, steps))
    fault = np.full(series, -1)
    fault[rng.permutation(series)[: EACH * len(FAULTS)]] = np.repeat(np.arange(len(FAULTS)), EACH)
    shocks[fault == FAULTS.index("noisier"), FROM:] *= 3
    noise = np.zeros((series, steps))
    for t in range(1, steps):
        noise[:, t] = MEMORY * noise[:, t - 1] + shocks[:, t]
    deviation = SHOCK / np.sqrt(1 - MEMORY**2)
    x = 50 + day + noise
    x[fault == FAULTS.index("drift")] += 0.5 * deviation * np.clip(hours - FROM, 0, 48)
    x[fault == FAULTS.index("shift"), FROM:] += 6 * deviation
    stuck = fault == FAULTS.index("stuck")
    x[stuck, FROM:] = x[stuck, FROM : FROM + 1]
    x[fault == FAULTS.index("silent"), FROM:] = np.nan
    return x, fault


def judged(model: Model, x: Floats) -> tuple[Floats, list[int]]:
    """How far each reading is from the medians made for it, by lead, with their sign; and the leads.

    [leads, series, steps] surprises, NaN = not judged; then residuals of the first lead as one more row.
    """
    series, steps = x.shape
    state = np.tile(np.asarray(model.spec.initial_state, np.float32), (series, 1))
    scored = [(i, one.horizon) for i, one in enumerate(model.spec.diagnostics) if one.kind == "surprise"]
    leads = [lead for _, lead in scored]
    centre, medians = model.spec.quantiles.index(0.5), np.full((steps, len(leads), series), np.nan)
    out = np.full((len(leads) + 1, series, steps), np.nan)
    for t in range(steps):
        value = x[:, t].astype(np.float32)
        y, state, score = model.step(value[:, None], np.full(series, START_MS + t * HOUR_MS), state)
        for k, (column, lead) in enumerate(scored):
            if t >= lead:
                residual = value - medians[t - lead, k]
                out[k, :, t] = np.copysign(score[:, column], residual) if t >= model.spec.warmup_steps else np.nan
                out[-1, :, t] = residual if k == 0 else out[-1, :, t]
            medians[t, k] = y[:, lead - 1, 0, centre]
    return out, leads


def page(x: Floats, surprises: Floats, leads: list[int]) -> NDArray[np.bool_]:
    """Whether the page has a finding: [series, steps]."""
    found = np.zeros(x.shape, bool)
    for i in range(len(x)):
        health = TargetHealth(LeadHealth(leads[0]), LeadHealth(leads[-1]) if len(leads) > 1 else None)
        last, values = 0, x[i].tolist()
        near, far = surprises[0, i].tolist(), surprises[len(leads) - 1, i].tolist()
        for t, (value, a, b) in enumerate(zip(values, near, far, strict=True)):
            if value == value:
                last = t
                health.repeat(value, t * HOUR_MS)
                health.judge(t * HOUR_MS, HOUR_MS, abs(a), abs(b), (1 if a > 0 else -1, 1 if b > 0 else -1))
            found[i, t] = t - last > SILENT_STEPS or health.finding("value") is not None
    return found


def begins(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where findings begin."""
    return found & ~np.roll(found, 1, axis=1)


def z_scores(residual: Floats) -> Floats:
    """Residuals in running deviations (a week's memory), [series, steps]."""
    variance, out = np.full(len(residual), np.nan), np.full_like(residual, np.nan)
    for t in range(residual.shape[1]):
        square = residual[:, t] ** 2
        out[:, t] = np.abs(residual[:, t]) / np.sqrt(variance)
        variance = np.where(np.isnan(variance), square, variance + np.nan_to_num(square - variance) / 168)
    return np.nan_to_num(out)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=2_000)
    parser.add_argument("--weeks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=6, help="the page's limits were chosen on seed 5")
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    x, fault = machines(given.series, given.weeks * 168, np.random.default_rng(given.seed))
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(given.model or make(Path(folder), 24))
        judgements, leads = judged(model, x)
    surprise = judgements[0]
    rules = {"the live page": page(x, judgements[:-1], leads)}
    weeks, healthy = (x.shape[1] - QUIET) / 168, fault < 0

    def false(found: NDArray[np.bool_]) -> float:
        return float(begins(found)[healthy, QUIET:].sum()) / healthy.sum() * 1000 / weeks

    z, wanted = z_scores(judgements[-1]), false(rules["the live page"])
    low, high = 1.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if false(z > middle) <= wanted else (middle, high)
    rules[f"z-score beyond {high:.1f}"] = z > high
    inside = np.abs(surprise[:, QUIET:]) <= 1
    coverage = inside[~np.isnan(surprise[:, QUIET:])].mean()
    print(f"\n{given.series:,} machines, {given.weeks} weeks; coverage {coverage:.1%}\n")
    heads = " | ".join(f"{name}: in 24 h, ever, median h" for name in FAULTS)
    print(f"| rule | false a week and 1,000 | {heads} |")
    print("|---|---|" + "---|" * len(FAULTS))
    for name, found in rules.items():
        cells = []
        for number in range(len(FAULTS)):
            theirs = found[fault == number, FROM:]
            hours = np.where(theirs.any(axis=1), theirs.argmax(axis=1), 10**6)
            ever = hours < 10**6
            when = f"{np.median(hours[ever]):.0f}" if ever.any() else "–"
            cells.append(f"{(hours <= DAY).sum()} of {len(theirs)}, {ever.sum()}, {when}")
        print(f"| {name} | {false(found):.1f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
