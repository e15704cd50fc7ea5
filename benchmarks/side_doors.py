"""What clients of the worker's pages cost its forecasts, and whether probes are answered meanwhile.

    python benchmarks/side_doors.py [--readings 400000] [--clients 8] [--runs 3] [--slow 500]

A worker drains a backlog, in turns by itself and while clients scrape /metrics as fast as they can. Then clients that
send a byte now and then keep connections open, and /livez is asked 25 times. All on one machine.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lstm64
from worker_process import HEAP_MB, PATIENCE, STEADY, WorkerProcess, make_topics, send, spread

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.port import Broker

PARTITIONS, SERIES = 4, 1_000
PROBES = 25
SCRAPE = """
import http.client, sys, threading

def scrape():
    while True:
        try:
            connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            connection.close()
        except (OSError, http.client.HTTPException):
            pass

for _ in range(int(sys.argv[2])):
    threading.Thread(target=scrape, daemon=True).start()
sys.stdin.read()
"""


@contextmanager
def scraping(worker: WorkerProcess, clients: int) -> Iterator[None]:
    """So many clients scrape the worker, in a process of their own."""
    if not clients:
        yield
        return
    command = [sys.executable, "-c", SCRAPE, worker.address, str(clients)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def forecasts_per_s(broker: Broker, address: str, model: Path, topic: str, folder: Path, n: int, clients: int) -> float:
    """How many forecasts a second a worker writes while it drains the topic."""
    name = f"{clients}-{time.time_ns()}"
    names = make_topics(broker, name, PARTITIONS) | {"input_topic": topic, "group": name}
    looker = broker.consumer()
    looker.assign(names["output_topic"], dict.fromkeys(range(PARTITIONS), 0))
    worker = WorkerProcess(model, address, folder / "log", names)
    try:
        with scraping(worker, clients):
            first = last = (time.monotonic(), 0)
            deadline = time.monotonic() + PATIENCE
            while last[1] < n and time.monotonic() < deadline:
                end = sum(looker.end_offsets(range(PARTITIONS)).values())
                if end > last[1]:
                    last = (time.monotonic(), end)
                    first = first if first[1] else last
                time.sleep(0.05)
    finally:
        worker.kill()
        looker.close()
    if last[1] < n:
        raise SystemExit(f"only {last[1]:,} of {n:,} forecasts came:\n{worker.log[-2000:]}")
    return (last[1] - first[1]) / (last[0] - first[0])


def probes_answered(worker: WorkerProcess, slow: int) -> int:
    """How many of 25 requests to /livez are answered while slow clients hold connections."""
    with ExitStack() as open_ones:
        host, _, port = worker.address.rpartition(":")
        held = [open_ones.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(slow)]
        answered = 0
        for number in range(PROBES):
            for one in held[number::PROBES]:
                try:
                    one.send(b"G")
                except OSError:  # it was dropped
                    continue
            try:
                connection = http.client.HTTPConnection(worker.address, timeout=1)  # as Kubernetes waits
                connection.request("GET", "/livez")
                answered += connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)
        return answered


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=400_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slow", type=int, default=500)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedBroker(Path(name) / "kafka", heap_mb=HEAP_MB, java=STEADY) as kafka,
    ):
        folder, address = Path(name), kafka.bootstrap_servers
        broker = connect(address, client=CLIENTS[0])
        model = lstm64.make(folder / "model")
        topic = make_topics(broker, "backlog", PARTITIONS)["input_topic"]
        send(broker, topic, lstm64.readings(args.readings, SERIES, PARTITIONS))
        found: dict[int, list[float]] = {0: [], args.clients: []}
        for _ in range(args.runs):
            for clients, rates in found.items():
                rates.append(forecasts_per_s(broker, address, model, topic, folder, args.readings, clients))
        alone, scraped = found[0], found[args.clients]
        print(f"forecasts a second, min / median / max: by itself {spread(alone)}, "
              f"with {args.clients} clients that scrape {spread(scraped)}")  # fmt: skip
        print(f"ratios of the pairs: {spread([b / a for a, b in zip(alone, scraped, strict=True)], '.2f')}")
        names = make_topics(broker, "slow", PARTITIONS) | {"group": "slow"}
        worker = WorkerProcess(model, address, folder / "log", names)
        try:
            print(f"/livez answered with {args.slow} slow clients: {probes_answered(worker, args.slow)} of {PROBES}")
        finally:
            worker.kill()


if __name__ == "__main__":
    main()
