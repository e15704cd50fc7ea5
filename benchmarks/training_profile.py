"""Where the time of a training epoch goes: the share that is spent inside torch's own operators.

    python benchmarks/training_profile.py [CONFIG] [--epochs 3]

Trains the config (the weather sample by default) under torch's profiler and prints, for the epochs alone, wall time,
time inside operators (their self times: each second is counted once), the rest (Python, the loop, numpy), and the ten
operators that took most. The profiler itself slows the loop, and what it costs counts as "the rest".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec
from torch.profiler import ProfilerActivity, profile

from training import fit as loop
from training.config import read_config
from training.data import load_dataset
from training.progress import Progress

WEATHER = Path(__file__).parents[1] / "training" / "samples" / "weather.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=WEATHER)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    config = read_config(args.config)
    config = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, epochs=args.epochs + 1))
    dataset = load_dataset(config, args.config.parent / config.data.path)
    profiled, wall, seen = profile(activities=[ProfilerActivity.CPU], acc_events=True), 0.0, 0
    plain, plain_epoch = [], loop._epoch

    def epoch(*given: object) -> float:
        nonlocal wall, seen
        seen += 1
        started = time.perf_counter()
        if seen == 1:  # the first one warms caches up, and tells what an epoch takes without the profiler
            loss = plain_epoch(*given)  # type: ignore[arg-type]
            plain.append(time.perf_counter() - started)
            return loss
        with profiled:
            started = time.perf_counter()
            loss = plain_epoch(*given)  # type: ignore[arg-type]
            wall += time.perf_counter() - started
        return loss

    loop._epoch = epoch
    with Progress(quiet=True) as progress:
        _, history = loop.fit(config, dataset, progress)
    averages = profiled.key_averages()
    inside = sum(event.self_cpu_time_total for event in averages) / 1e6
    print(f"{args.config.name}: {len(dataset.stretches)} stretches, {seen - 1} epochs under the profiler")
    print(
        f"wall {wall:.2f} s, inside torch's operators {inside:.2f} s = {inside / wall:.0%},"
        f" the rest {wall - inside:.2f} s"
    )
    print(f"an epoch without the profiler: {plain[0]:.2f} s; the whole run: {history.seconds:.1f} s")
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:10]:
        print(f"  {event.self_cpu_time_total / 1e6 / wall:6.1%}  {event.count:6d} calls  {event.key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
