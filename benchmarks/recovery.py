"""How soon a killed worker with many series is ready again, and that it continues correctly.

    python benchmarks/recovery.py [--series 100000] [--state 264] [--runs 3] [--client kafka-python] [--model DIR]
                                  [--instance one] [--json]

A real broker, a worker process, an LSTM with as many numbers of state as in memory.py (or another model). Each run:
readings arrive, the worker is killed with kill -9 meanwhile, and started again at once. Then every reading
must have exactly one forecast, in order, and those of some series are compared with a linear run of the model. A worker
without a name of its own (--instance auto) gets its partitions when Kafka has given up the dead one,
`session_timeout_seconds` later; so the default here has one.

"restore" is the worker's own account: from the first fetch of the changelog until the last state is in the table and
its partition is read again. A series may be there more than once, since the broker compacts only now and
then; "records" are those that were read. The first run is not counted: until Java has compiled what is called here,
the broker takes a core by itself.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from memory import make_model
from worker_process import HEAP_MB, STEADY, WorkerProcess, make_topics, send, spread

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.port import Broker
from tidecast.service.model.session import Model
from tidecast.service.model.spec import quantile_name

PARTITIONS = 4
START_MS = 1_700_000_000_000
FIRST_STEPS = 3  # readings of each series before the first kill
COMPARED = 200  # series whose forecasts are compared with a linear run


def number(series: int, step: int, feature: int) -> float:
    """What a series reads."""
    return 20.0 + (series * 7 + step * 13 + feature * 3) % 17 / 2


def time_of(model: Model, step: int) -> int:
    """The event time of a step, ms; a model of irregular steps gets one a minute."""
    return START_MS + step * (model.spec.step_ms or 60_000)


def readings(model: Model, series: range, step: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value) of one step of these series."""
    names = [json.dumps(name) for name in model.spec.features]
    ts = time_of(model, step)
    for i in series:
        values = ",".join(f"{name}:{number(i, step, f)}" for f, name in enumerate(names))
        yield i % PARTITIONS, b"sensor-%d" % i, f'{{"ts":{ts},{values}}}'.encode()


def check(broker: Broker, topic: str, model: Model, series: int, steps: int) -> None:
    """Every series has one forecast for each step, in order; some are compared with the linear run.

    Raises:
        SystemExit: they have not.
    """
    spec = model.spec
    compared = np.linspace(0, series - 1, min(COMPARED, series)).astype(int).tolist()
    keep = {b"sensor-%d" % i: i for i in compared}
    last: dict[bytes, int] = defaultdict(int)
    found: dict[int, list[list[float]]] = {i: [] for i in compared}
    expected = {time_of(model, step): step for step in range(steps)}
    consumer = broker.consumer()
    consumer.assign(topic, dict.fromkeys(range(PARTITIONS), -2))
    n, deadline = 0, time.monotonic() + 10
    while n < series * steps or time.monotonic() < deadline:  # after the last, those that should not be there
        batch = consumer.poll(0.5, 20_000)
        n += len(batch)
        deadline = time.monotonic() + 1 if len(batch) and n >= series * steps else deadline
        for key, value in zip(batch.keys, batch.values, strict=True):
            forecast = json.loads(value)
            if expected[forecast["ts"]] != last[key]:
                raise SystemExit(f"{key}: forecast of step {expected[forecast['ts']]}, expected one of {last[key]}")
            last[key] += 1
            if key in keep:
                bands = forecast["targets"][spec.targets[0]]
                found[keep[key]].append([bands[quantile_name(q)][0] for q in spec.quantiles])
        if n < series * steps and time.monotonic() > deadline + 60:
            raise SystemExit(f"{n:,} of {series * steps:,} forecasts came")
    consumer.close()
    if n != series * steps:
        raise SystemExit(f"{n:,} forecasts of {series * steps:,} readings")
    state = np.tile(model.initial_state, (len(compared), 1))
    for step in range(steps):
        x = [[number(i, step, f) for f in range(len(spec.features))] for i in compared]
        ts = np.full(len(compared), time_of(model, step), dtype=np.int64)
        y, state, _ = model.step(np.array(x, dtype=np.float32), ts, state)
        got = np.array([found[i][step] for i in compared])
        np.testing.assert_allclose(got, y[:, 0, 0, :], rtol=1e-4, atol=1e-4)


def restored(log: str) -> tuple[float, int] | None:
    """Seconds from the first fetch until the last partition was restored, and the records read, by its own account.

    None where it has not said so of all partitions yet: it is ready a moment before.
    """
    lines = [line for line in log.splitlines(keepends=True) if "states restored" in line and line.endswith("\n")]
    found = {name: re.findall(rf"\b{name}=([\d.]+)", "".join(lines)) for name in ("seconds", "records")}
    return (max(map(float, found["seconds"])), sum(map(int, found["records"]))) if len(lines) == PARTITIONS else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--client", choices=CLIENTS, default=CLIENTS[0])
    parser.add_argument("--state", type=int, default=264, help="float32 numbers, even")
    parser.add_argument("--model", type=Path, help="a model directory, in place of --state")
    parser.add_argument("--instance", default="one")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        folder = Path(name)
        path = args.model or maker.submit(make_model, folder / "model", args.state).result()
        model = Model.load(path)
        with EmbeddedBroker(folder / "kafka", heap_mb=HEAP_MB, java=STEADY) as kafka:
            broker = connect(kafka.bootstrap_servers)
            topics = make_topics(broker, "recovery", PARTITIONS)
            settings = {**topics, "group": "recovery", "instance": args.instance, "client": args.client}

            def start() -> WorkerProcess:
                return WorkerProcess(path, kafka.bootstrap_servers, folder / "log", settings)

            worker, steps = start(), 0
            everything, half = range(args.series), range(args.series // 2)
            for _ in range(FIRST_STEPS - 1):
                send(broker, topics["input_topic"], readings(model, everything, steps))
                steps += 1
            print(f"{args.client}, {args.series:,} series of {model.spec.state_size} floats, {PARTITIONS} partitions")
            print("| run | start to ready, s | first forecast, s | restore, s | records | records/s | series/s |")
            print("|---|---|---|---|---|---|---|")
            ready, first, rates = [], [], []
            already = 0.0  # forecasts of the workers before this one
            for run in range(args.runs + 1):
                send(broker, topics["input_topic"], readings(model, everything, steps))
                steps += 1
                made = args.series * steps - already
                worker.wait(lambda w=worker, n=made: w.metric("forecasts_total") >= n)
                time.sleep(2 * 100_000 / max(args.series, 1) if args.series < 100_000 else 15)  # a round of the flush
                more = args.series * steps - already + len(half) // 2
                send(broker, topics["input_topic"], readings(model, half, steps))
                worker.wait(lambda w=worker, n=more: w.metric("forecasts_total") >= n)
                worker.kill()
                send(broker, topics["input_topic"], readings(model, range(len(half), args.series), steps))
                steps += 1
                began = time.perf_counter()
                worker = start()
                worker.wait(lambda w=worker: w.metric("forecasts_total") > 0)
                first.append(time.perf_counter() - began)
                seconds, records = worker.wait(lambda w=worker: restored(w.log))
                ready.append(worker.seconds)
                rates.append(args.series / seconds)
                row = f"{ready[-1]:.2f} | {first[-1]:.2f} | {seconds:.2f} | {records:,} | {records / seconds:,.0f}"
                print(f"| {run or 'not counted'} | {row} | {rates[-1]:,.0f} |", flush=True)
                check(broker, topics["output_topic"], model, args.series, steps)
                already = args.series * steps - worker.metric("forecasts_total")
            worker.end()
            broker.close()
    print(f"every reading has one forecast, in order; {min(COMPARED, args.series)} series agree with a linear run")
    ready, rates = ready[1:], rates[1:]
    print(f"start to ready, s (min / median / max of {args.runs}): {spread(ready, '.2f')}")
    print(f"restored, series/s: {spread(rates)}")
    if args.json:
        print(
            json.dumps({"series_per_s": round(statistics.median(rates)), "ready_s": round(statistics.median(ready), 2)})
        )


if __name__ == "__main__":
    main()
