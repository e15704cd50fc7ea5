"""How often a shadow that is no better is promoted, and after how many readings a better one is.

    python benchmarks/promotion.py [--runs 1000]

Simulated losses of two models go through the comparison that `tidecast serve --promote auto` makes, which looks after
each block. The models' errors have a correlation of .8; their scale changes slowly (log-normal, autocorrelation .98
from reading to reading). An error `lead` ahead is a moving average over so many readings.
- regime: for a while one model is better, then the other, each as often and as much. Its log has the standard deviation
  .3 and the autocorrelation given; one regime for all series is the hard case.
- day: one model is better in the first half of each day of 288 readings, the other in the second.
- gain: the shadow's losses are smaller by this share.
The least time between decisions (`--promote-seconds`) is left out: it only adds to safety. Readings are 5 min apart.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from tidecast.service.champion.comparison import Comparison
from tidecast.service.champion.paired_test import ALPHA
from tidecast.service.model.spec import Diagnostic, ModelSpec, SelfTest, TrainingData

STEP_MS, DAY = 300_000, 288
ALIKE = 0.8  # correlation of the two models' errors
SCALE, SCALE_MEMORY, REGIME = 0.5, 0.98, 0.3
# name: series, readings of each, lead, the regime's autocorrelation, whether by the time of day
NULL = {
    "1 series": (1, 12_000, 1, 0.0, False),
    "1 series, lead 12": (1, 12_000, 12, 0.0, False),
    "1 series, regime .9": (1, 12_000, 1, 0.9, False),
    "1 series, regime .98": (1, 12_000, 1, 0.98, False),
    "1 series, regime .99": (1, 12_000, 1, 0.99, False),
    "1 series, regime .995": (1, 12_000, 1, 0.995, False),
    "1 series, day": (1, 12_000, 1, 0.0, True),
    "20 series, lead 12": (20, 6_000, 12, 0.0, False),
    "20 series, regime .9 of all": (20, 6_000, 1, 0.9, False),
    "20 series, regime .98 of all": (20, 6_000, 1, 0.98, False),
    "20 series, regime .99 of all": (20, 6_000, 1, 0.99, False),
    "20 series, day": (20, 6_000, 1, 0.0, True),
}
# name: series, readings of each, lead, gain
BETTER = {
    "100 series, 5 % better": (100, 2_880, 1, 0.05),
    "100 series, 5 % better, lead 12": (100, 2_880, 12, 0.05),
    "20 series, 5 % better": (20, 2_880, 1, 0.05),
    "1 series, 5 % better": (1, 40_000, 1, 0.05),
    "1 series, 20 % better": (1, 40_000, 1, 0.2),
}


def spec(lead: int) -> ModelSpec:
    """A model that scores one lead."""
    return ModelSpec(
        name="simulated", hash="0" * 64, features=["value"], targets=["value"], horizon=lead, step_ms=STEP_MS,
        quantiles=[0.5], state_size=1, state=[], initial_state=[0.0], warmup_steps=1,
        diagnostics=[Diagnostic("error", "absolute_error", "value", lead)],
        training_data=TrainingData("", 0, 0, 0), metrics={}, self_test=SelfTest([], [], []),
    )  # fmt: skip


def slow(random: np.random.Generator, series: int, steps: int, memory: float, deviation: float) -> NDArray[np.float32]:
    """[steps, series] autoregression of order 1."""
    z = random.standard_normal((steps, series), dtype=np.float32)
    fresh = np.float32(np.sqrt(1 - memory * memory))
    for step in range(1, steps):
        z[step] = np.float32(memory) * z[step - 1] + fresh * z[step]
    return np.float32(deviation) * z


def losses(
    random: np.random.Generator, series: int, steps: int, lead: int, regime: float, by_day: bool, gain: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two models' losses, [steps, series] each."""
    common, *own = random.standard_normal((3, steps + lead - 1, series), dtype=np.float32)
    errors = [np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * each for each in own]
    if lead > 1:
        errors = [sum(each[i : i + steps] for i in range(lead)) / np.sqrt(lead) for each in errors]
    scale = np.exp(slow(random, series, steps, SCALE_MEMORY, SCALE))
    better = np.zeros((steps, 1), dtype=np.float32)
    if regime:
        better = slow(random, 1, steps, regime, REGIME)
    if by_day:
        begin = random.integers(DAY)
        better = REGIME * np.where((np.arange(steps) + begin) % DAY < DAY // 2, 1, -1)[:, None].astype(np.float32)
    champion, shadow = (np.abs(each) * scale for each in errors)
    return champion * np.exp(better / 2), (1 - gain) * shadow * np.exp(-better / 2)


def promoted_after(champion: NDArray[np.float32], shadow: NDArray[np.float32], lead: int) -> int | None:
    """Readings of each series until the shadow is promoted; None = it is not."""
    steps, series = champion.shape
    comparison = Comparison(spec(lead), spec(lead))
    numbers, piece = np.arange(series), 12
    for start in range(0, steps, piece):
        rows = slice(start, start + piece)
        count = len(champion[rows])
        ts = np.repeat(np.arange(start, start + count) * STEP_MS, series)
        comparison.add(np.tile(numbers, count), ts, champion[rows].reshape(-1, 1), shadow[rows].reshape(-1, 1))
        if comparison.e_value >= 1 / ALPHA:
            return start + count
    return None


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000, help="runs of each case with one series")
    runs = parser.parse_args().runs
    print(f"{'models that are equally good':<34} {'promoted':>9}   allowed: {ALPHA:.1%}")
    for name, (series, steps, lead, regime, by_day) in NULL.items():
        random, wrong = np.random.default_rng(0), 0
        count = runs if series == 1 else max(runs // 2, 1)
        for _ in range(count):
            wrong += promoted_after(*losses(random, series, steps, lead, regime, by_day, 0.0), lead) is not None
        print(f"{name:<34} {wrong / count:>9.1%}   of {count} runs of {steps / DAY:.0f} days", flush=True)
    print(f"\n{'the shadow is better':<34} {'half':>9} {'9 of 10':>9}   readings of each series until promoted")
    for name, (series, steps, lead, gain) in BETTER.items():
        random = np.random.default_rng(0)
        found = [
            promoted_after(*losses(random, series, steps, lead, 0.0, False, gain), lead)
            for _ in range(max(runs // (10 if series == 1 else 20), 1))
        ]
        half, most = np.quantile([np.inf if each is None else each for each in found], [0.5, 0.9], method="higher")
        print(f"{name:<34} {half:>9.0f} {most:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
