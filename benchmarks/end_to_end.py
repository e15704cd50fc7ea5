"""Readings a second, from Kafka to Kafka: one worker process drains a backlog, measured from outside, side by side.

    python benchmarks/end_to_end.py [--series 1000] [--readings 1000000] [--runs 3] [--client NAME] [--only NAME ...]
                                    [--json]

The job: an LSTM of 64 units, 4 partitions, a real broker on the same machine. The contenders
take turns; each gets topics and a group of its own. The clock runs from the first record in the output topic, by the
broker's time, to the last change of that topic's end as a reader of committed records sees it. Then the output is read:
one forecast for each reading, in order within its series, and a few series as a linear run of the model has them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import lstm64
import numpy as np
import psutil
from contenders import CONTENDERS, DELIVERIES, Contender, Job
from worker_process import HEAP_MB, PATIENCE, STEADY, make_topics, send, spread

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.port import Broker
from tidecast.service.model.session import Model

PARTITIONS = 4
QUIET_S = 2.0  # an output topic that has not grown for so long is complete
LOOK_S = 0.05


@dataclass
class Measured:
    """The runs of one contender."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of its own process, for each reading
    rss_mb: list[float] = field(default_factory=list)  # at the end


def run(contender: Contender, job: Job, broker: Broker, folder: Path, found: Measured) -> None:
    """One run, into `found`.

    Raises:
        SystemExit: the output is not what it should be.
    """
    name = f"{contender.name}-{time.time_ns()}"
    topics = make_topics(broker, name, PARTITIONS) | {"input_topic": job.topic}
    log = folder / "log"
    process = contender.start(job, {**topics, "group": name}, log)
    own, looker = psutil.Process(process.pid), broker.consumer()
    try:
        looker.assign(topics["output_topic"], dict.fromkeys(range(PARTITIONS), 0))
        cpu: list[tuple[float, float, int]] = []  # (time, CPU seconds so far, end of the output) at each change
        deadline = time.time() + PATIENCE
        while not cpu or cpu[-1][2] < job.readings or time.time() - cpu[-1][0] < QUIET_S:
            end = sum(looker.end_offsets(range(PARTITIONS)).values())
            if end and (not cpu or end != cpu[-1][2]):
                used = own.cpu_times()
                cpu.append((time.time(), used.user + used.system, end))
            if process.poll() is not None or time.time() > deadline:
                raise SystemExit(
                    f"{contender.name} stopped at {cpu[-1:]} of {job.readings}:\n{log.read_text()[-3000:]}"
                )
            time.sleep(LOOK_S)
        found.rss_mb.append(own.memory_info().rss / 1e6)
    finally:
        looker.close()
        process.terminate()
        process.wait(60)
    first_ms = check(contender, job, broker, topics["output_topic"])
    (_, before, some), (last, after, _) = cpu[0], cpu[-1]
    found.per_s.append(job.readings / (last - first_ms / 1_000))
    found.cpu_us.append((after - before) / (job.readings - some) * 1e6)
    for role in ("output_topic", "changelog_topic", "dead_letter_topic"):
        broker.delete_topic(topics[role])


def check(contender: Contender, job: Job, broker: Broker, topic: str) -> int:
    """The time of the first output record, ms; raises SystemExit where the output is not what it should be."""
    consumer = broker.consumer()
    consumer.assign(topic, dict.fromkeys(range(PARTITIONS), -2))
    compared = {b"sensor-%d" % i: i for i in {0, job.series // 2, job.series - 1}}
    kept: dict[bytes, list[bytes]] = {key: [] for key in compared}
    n, first, deadline = 0, 2**62, time.monotonic() + 30
    while n < job.readings and time.monotonic() < deadline:
        batch = consumer.poll(0.5, 20_000)
        n += len(batch)
        first = min([first, *batch.timestamps])
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key in kept:
                kept[key].append(value)
    n += len(consumer.poll(0.5, 20_000))
    consumer.close()
    if n != job.readings:
        raise SystemExit(f"{contender.name}: {n:,} records came of {job.readings:,} readings")
    if contender.forecasts:
        model = Model.load(job.model)
        for key, series in compared.items():
            compare([json.loads(value) for value in kept[key]], model, range(series, job.readings, job.series))
    return first


def compare(found: list[dict], model: Model, places: range) -> None:
    """The forecasts of one series, and the linear run over its readings."""
    state = model.initial_state[np.newaxis]
    for forecast, i in zip(found, places, strict=True):
        ts, x = lstm64.START_MS + i * 10, round(lstm64.number(i), 6)
        y, state, _ = model.step(np.array([[x]], dtype=np.float32), np.array([ts]), state)
        got, expected = forecast["targets"]["value"]["p50"][0], y.item()
        if forecast["ts"] != ts or abs(got - expected) > 1e-4 * max(1.0, abs(expected)):
            raise SystemExit(f"reading {i}: {forecast}, expected {expected} at {ts}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--readings", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--client", choices=CLIENTS, help="this client, and the peers; else all")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CONTENDERS], help="of the contenders, these")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    contenders = [c for c in CONTENDERS if not args.only or c.name in args.only]
    contenders = [c for c in contenders if args.client in (None, c.client) or c.client is None]
    found = {c.name: Measured() for c in contenders}
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedBroker(Path(name) / "kafka", heap_mb=HEAP_MB, java=STEADY) as kafka,
    ):
        folder, broker = Path(name), connect(kafka.bootstrap_servers, client=args.client or CLIENTS[0])
        topic = make_topics(broker, "backlog", PARTITIONS)["input_topic"]
        send(broker, topic, lstm64.readings(args.readings, args.series, PARTITIONS))
        job = Job(lstm64.make(folder / "model"), args.readings, args.series, kafka.bootstrap_servers, topic)
        for number in range(args.runs):
            for contender in contenders:
                run(contender, job, broker, folder, found[contender.name])
                measured = found[contender.name]
                print(f"run {number + 1}: {contender.name} {measured.per_s[-1]:,.0f}/s", file=sys.stderr, flush=True)
        broker.close()
    print(f"{args.readings:,} readings of {args.series:,} series; min / median / max of {args.runs} runs\n")
    print("| contender | readings/s | own CPU, µs a reading | RSS, MB |\n|---|---|---|---|")
    for name, m in found.items():
        print(f"| {name} | {spread(m.per_s)} | {spread(m.cpu_us, '.1f')} | {max(m.rss_mb):.0f} |")
    ours = [f"{client}_{delivery}" for client in CLIENTS for delivery in DELIVERIES]
    pairs = [(name, name.replace("_", f"_{kind}_")) for name in ours for kind in ("pass-through", "plain-pass-through")]
    pairs += [(f"{client}_{DELIVERIES[0]}", f"{client}_{DELIVERIES[1]}") for client in CLIENTS]
    pairs += [(name, c.name) for name in ours[::2] for c in contenders if c.client is None]
    for name, other in pairs:
        if name in found and other in found:
            ratios = [mine / theirs for mine, theirs in zip(found[name].per_s, found[other].per_s, strict=True)]
            print(f"\n{name} at {spread(ratios, '.2f')} of {other}, run by run")
    if args.json:
        print(json.dumps({f"{name}_per_s": round(statistics.median(m.per_s)) for name, m in found.items()}))


if __name__ == "__main__":
    main()
