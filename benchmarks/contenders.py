"""Who takes part in `benchmarks/end_to_end.py`: this project, each client by itself, and the peers that can run here.

The peers are those of a folder `bench-peers`, if there is one (`BENCH_PEERS`). KSTREAMS_TARGET names the folder that
Maven has built, PY_QUIX the Python that has Quix Streams. A peer whose variable is not set is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker_process import ROOT, WorkerProcess

from tidecast.service.broker.connect import CLIENTS
from tidecast.service.config.settings import flag

DELIVERIES = ("exactly-once", "at-least-once")
PEERS = ROOT.parent / "shared/bench-peers"


@dataclass(frozen=True)
class Job:
    """What there is to do."""

    model: Path
    readings: int
    series: int
    bootstrap_servers: str
    topic: str


@dataclass(frozen=True)
class Contender:
    """One way to do it: `start` gives a process that reads and writes the topics of these settings."""

    name: str  # with "_per_s", the key of its median in the JSON
    start: Callable[[Job, dict[str, str], Path], subprocess.Popen[bytes]]
    client: str | None = None  # None = a peer's own
    forecasts: bool = True  # False = it copies readings, or forecasts with a model of its own


def worker(client: str, delivery: str) -> Contender:
    """This project."""

    def start(job: Job, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        chosen = {**settings, "client": client, "delivery": delivery}
        return WorkerProcess(job.model, job.bootstrap_servers, log, chosen).process

    return Contender(f"{client}_{delivery}", start, client)


def pass_through(client: str, delivery: str) -> Contender:
    """The client alone, through the port."""
    return _copier("pass-through", "pass_through.py", client, delivery)


def plain(delivery: str) -> Contender:
    """kafka-python by itself, as its documentation has it, without the port."""
    return _copier("plain-pass-through", "plain_pass_through.py", "kafka-python", delivery)


def _copier(kind: str, script: str, client: str, delivery: str) -> Contender:
    def start(job: Job, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        names = {name: settings[name] for name in ("input_topic", "output_topic", "group")}
        more = {"bootstrap_servers": job.bootstrap_servers, "client": client, "delivery": delivery}
        flags = [f"{flag(name)}={value}" for name, value in (names | more).items()]
        return _start([sys.executable, f"benchmarks/{script}", *flags], log, {})

    return Contender(f"{client}_{kind}_{delivery}", start, client, forecasts=False)


def _peer(name: str, command: list[str]) -> Contender:
    """A system of bench-peers, by the name that it has there."""

    def start(job: Job, settings: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        scratch = log.parent / settings["group"]
        scratch.mkdir()
        env = {
            "BENCH_BROKER": job.bootstrap_servers,
            "BENCH_IN": job.topic,
            "BENCH_OUT": settings["output_topic"],
            "BENCH_N": str(job.readings + 1),  # it is ended from outside
            "BENCH_MODEL": str(PEERS / "lstm64.onnx"),
            "BENCH_RUN": settings["group"],
            "BENCH_TMP": str(scratch),
            "BENCH_T0": str(scratch / "t0"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return _start(command, log, env)

    return Contender(name, start, forecasts=False)


def peers() -> list[Contender]:
    """Those that can be run here."""
    found = []
    java, quix = os.environ.get("KSTREAMS_TARGET"), os.environ.get("PY_QUIX")
    if PEERS.is_dir() and java:
        path = f"{java}/kstreams-peer-1.jar:{java}/lib/*"
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        run = ["java", "-Xmx1g", quiet, "-cp", path, "bench.Peer", "exactly_once_v2", "1", "mem", "cache"]
        found.append(_peer("ks-eos-1t-mem", run))
    if PEERS.is_dir() and quix:
        found.append(_peer("quix-eos", [quix, str(PEERS / "peer_quix.py"), "exactly-once"]))
    return found


def _start(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=os.environ | env)


CONTENDERS = [
    *(make(client, delivery) for client in CLIENTS for make in (worker, pass_through) for delivery in DELIVERIES),
    *(plain(delivery) for delivery in DELIVERIES),
    *peers(),
]
