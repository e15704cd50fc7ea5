"""From a reading to its forecast, at a fixed rate: what one worker process adds, measured from outside, side by side.

    python benchmarks/latency.py [--client kafka-python] [--rate 1000 5000 20000] [--seconds 10] [--runs 3] [--json]

An open loop: reading i is due at an instant of its own, which waits for no answer, and its latency counts from that
instant to when a reader has its forecast; so a worker that stalls is charged for all that should have been sent
meanwhile. The job: LSTM-64, 4 partitions, a real broker on the same machine. Load
and reader are processes of their own, and take little (open_loop.py). The broker is warmed up first: until Java has
compiled what is called here, that takes a core by itself. Of exactly-once the reader sees what is committed, every
100 ms. "in Kafka" is counted from when Kafka had the reading, by its own clock: without what the load or Kafka lost
before any worker could know of it. "broker alone" is the same reader on the topic of the readings: what the load, the
broker and the reader take by themselves; "pass-through" is the client too, without a model: readings go from topic to
topic as they are. The usual loop handles one record at a time, and keeps nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import lstm64
import numpy as np
import open_loop
import psutil
from contenders import PEERS, Job, pass_through
from numpy.typing import NDArray
from worker_process import HEAP_MB, PATIENCE, USUAL, WorkerProcess, make_topics, spread

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.port import Broker

PARTITIONS = 4
WARM_S = 3.0  # of each run, which do not count
WARM_RATE = 5_000
BEHIND_S = 5.0  # after the last reading: who has not answered by then cannot keep up
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
IN_KAFKA = {"in Kafka, p50": 50.0, "in Kafka, p99": 99.0}  # from when Kafka had the reading
HALF_MS = 0.0005  # its clock says the millisecond that had begun
DELIVERIES = ("at-least-once", "exactly-once")


@dataclass(frozen=True)
class Load:
    """What is sent: `PARTITIONS` readings at once, answered before the clock starts, then the others in their time."""

    bootstrap_servers: str
    per_s: int
    seconds: float
    series: int

    @property
    def readings(self) -> int:
        """All of them."""
        return PARTITIONS + round((WARM_S + self.seconds) * self.per_s)


@dataclass(frozen=True)
class Contender:
    """`start` gives a process that reads and writes the topics of these settings; None = there is none."""

    name: str
    isolation: str
    start: Callable[[Path, str, dict[str, str], Path], subprocess.Popen[bytes] | None]


def worker(client: str, delivery: str) -> Contender:
    """This project."""

    def start(model: Path, servers: str, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        return WorkerProcess(model, servers, log, {**settings, "client": client, "delivery": delivery}).process

    return Contender(f"{client}_{delivery}", f"read_{'' if delivery == 'exactly-once' else 'un'}committed", start)


def passing(client: str) -> Contender:
    """The client alone, through the port."""
    alone = pass_through(client, "at-least-once")

    def start(model: Path, servers: str, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        return alone.start(Job(model, 0, 0, servers, settings["input_topic"]), settings, log)

    return Contender(alone.name, "read_uncommitted", start)


def usual(model: Path, servers: str, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """kafka-python, a record at a time."""
    names = {"IN": settings["input_topic"], "OUT": settings["output_topic"], "RUN": settings["group"]}
    more = {"BROKER": servers, "N": str(1 << 62), "MODEL": str(PEERS / "lstm64.onnx")}
    env = os.environ | {f"BENCH_{name}": value for name, value in (names | more).items()}
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "peer_naive.py", "kp"], stderr=out, cwd=PEERS, env=env)


CONTENDERS = {
    contender.name: contender
    for contender in (
        *(worker(client, delivery) for client in CLIENTS for delivery in DELIVERIES),
        *map(passing, CLIENTS),
        Contender("usual-loop", "read_uncommitted", usual),
        Contender("broker-alone", "read_uncommitted", lambda *given: None),
    )
}


def send(load: Load, topic: str, answered: Pipe) -> None:
    """A process: the readings, each when it is due; tells the instant of the first, and when Kafka took each, s."""
    gc.disable()
    readings = lstm64.readings(load.readings, load.series, PARTITIONS)
    connection = open_loop.Connection(load.bootstrap_servers)
    first = open_loop.plan(topic, list(islice(readings, PARTITIONS)))
    connection.send(first.asked)
    open_loop.heard(connection, deque([first]), wait=True)
    planned = list(open_loop.requests(topic, readings, load.readings - PARTITIONS, load.per_s))
    answered.recv()
    began = time.monotonic()
    answered.send(began)
    open_loop.play(connection, planned, began)
    answered.send([instant for each in planned for instant in each.appended])


def read(load: Load, topic: str, isolation: str, answered: Pipe) -> None:
    """A process: tells when the first answers are there, then, given the first's instant, when all others were, s."""
    gc.disable()  # it would stop for a fifth of a second to look through all that the parent, with torch, has made
    connection = open_loop.Connection(load.bootstrap_servers)
    reader = open_loop.Reader(connection, topic, PARTITIONS, isolation == "read_committed")
    end = time.monotonic() + PATIENCE
    while reader.count < PARTITIONS and time.monotonic() < end:
        reader.read()
    answered.send(reader.count >= PARTITIONS)
    began = answered.recv()
    end = began + WARM_S + load.seconds + BEHIND_S
    while reader.count < load.readings and time.monotonic() < end:
        reader.read()
    arrived = np.full(load.readings, math.inf)
    for instant, value in reader.values():
        ts = int(value[6:20].rstrip(b","))  # each of these texts begins with it
        arrived[(ts - lstm64.START_MS) // 10] = instant
    answered.send(arrived[PARTITIONS:])


def run(contender: Contender, load: Load, model: Path, broker: Broker, folder: Path) -> dict[str, float]:
    """One run: the percentiles in ms, inf where it fell behind; and the share of a core that the contender took."""
    name = f"{contender.name}-{time.time_ns()}"
    topics = make_topics(broker, name, PARTITIONS, ("input_topic", "output_topic"))
    process = contender.start(model, load.bootstrap_servers, {**topics, "group": name}, folder / "log")
    (sender_end, to_sender), (reader_end, to_reader) = multiprocessing.Pipe(), multiprocessing.Pipe()
    to = topics["input_topic" if process is None else "output_topic"]
    helpers = [
        multiprocessing.Process(target=read, args=(load, to, contender.isolation, reader_end), daemon=True),
        multiprocessing.Process(target=send, args=(load, topics["input_topic"], sender_end), daemon=True),
    ]
    for helper in helpers:
        helper.start()
    try:
        to_sender.send(awaited(to_reader, PATIENCE))
        first = to_sender.recv()
        to_reader.send(first)
        before, began = cpu_seconds(process), time.monotonic()
        arrived = awaited(to_reader, PATIENCE)
        busy = (cpu_seconds(process) - before) / (time.monotonic() - began)
        taken = np.array(awaited(to_sender, PATIENCE)) + time.monotonic() - time.time() + HALF_MS
        if process is not None and process.poll() is not None:
            raise SystemExit(f"{contender.name} stopped:\n{(folder / 'log').read_text()[-3000:]}")
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()
        if process is not None:
            process.kill()
            process.wait(60)
    for topic in topics.values():
        broker.delete_topic(topic)
    counted = slice(round(WARM_S * load.per_s), None)
    due = first + np.arange(len(arrived)) / load.per_s
    from_kafka = percentiles((arrived - taken)[counted], IN_KAFKA)
    return {**percentiles((arrived - due)[counted], PERCENTILES), **from_kafka, "cpu": 100 * busy}


def percentiles(seconds: NDArray[np.float64], shares: dict[str, float]) -> dict[str, float]:
    """In ms, by the nearest rank."""
    ordered = np.sort(seconds) * 1e3
    return {p: float(ordered[math.ceil(share / 100 * len(ordered)) - 1]) for p, share in shares.items()}


def awaited(pipe: Pipe, seconds: float) -> Any:
    """What comes, not None."""
    found = pipe.recv() if pipe.poll(seconds) else None
    if found is None:
        raise SystemExit("the first readings were not answered")
    return found


def cpu_seconds(process: subprocess.Popen[bytes] | None) -> float:
    """Of the process so far."""
    if process is None:
        return 0.0
    used = psutil.Process(process.pid).cpu_times()
    return used.user + used.system


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="the worker's, of these")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="of the contenders, these")
    parser.add_argument("--rate", type=int, nargs="+", default=[1_000, 5_000, 20_000], help="readings/s")
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm", type=float, default=60.0, metavar="SECONDS", help="for the broker, before all runs")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    others = tuple(f"{client}_" for client in set(CLIENTS) - set(args.client))
    chosen = [c for name, c in CONTENDERS.items() if (name in args.only if args.only else not name.startswith(others))]
    found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedBroker(Path(name) / "kafka", heap_mb=HEAP_MB, java=USUAL) as kafka,
    ):
        folder, broker = Path(name), connect(kafka.bootstrap_servers)
        where = lstm64.make(folder / "model"), broker, folder
        warming = [f"{client}_{delivery}" for client in args.client for delivery in DELIVERIES]
        for name in warming:  # the clients ask in versions of their own, each of which is compiled by itself
            seconds = args.warm / len(warming)
            run(CONTENDERS[name], Load(kafka.bootstrap_servers, WARM_RATE, seconds, args.series), *where)
        for number in range(args.runs):
            for rate in args.rate:
                load = Load(kafka.bootstrap_servers, rate, args.seconds, args.series)
                for contender in chosen:
                    figures = run(contender, load, *where)
                    for key, value in figures.items():
                        found[rate, contender.name][key].append(value)
                    told = ", ".join(f"{key} {value:.1f}" for key, value in figures.items())
                    print(f"run {number + 1}: {rate:,}/s {contender.name}: {told}", file=sys.stderr, flush=True)
        broker.close()
    print(f"{args.series:,} series; ms, min / median / max of {args.runs} runs; inf = fell behind\n")
    print(f"| readings/s | | {' | '.join(PERCENTILES | IN_KAFKA)} | of a core, % |\n|---|---|---|---|---|---|---|---|")
    for (rate, contender_name), figures_of in found.items():
        columns = [spread(figures_of[p], ".1f") for p in PERCENTILES | IN_KAFKA] + [spread(figures_of["cpu"], ".0f")]
        print(f"| {rate:,} | {contender_name} | {' | '.join(columns)} |")
    if args.json:
        medians = {
            f"{contender_name}_{rate}_{p}_ms": round(float(np.median(figures_of[p])), 2)
            for (rate, contender_name), figures_of in found.items()
            for p in PERCENTILES
        }
        print(json.dumps({key: value if math.isfinite(value) else None for key, value in medians.items()}))


if __name__ == "__main__":
    main()
