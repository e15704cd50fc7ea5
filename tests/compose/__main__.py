"""The compose file, run for real: up, forecasts flow, a scrape, three workers, one killed, down without a trace.

    python -m tests.compose                                              # with docker
    python -m tests.compose --check compose-check   # without: a program that stands in for it

About seven minutes the first time (the images), two after that. It begins and ends with nothing of the project left:
its volumes are removed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.compose.engine import Compose, Failed, Prometheus, eventually
from tests.compose.judge import judge
from tidecast.service.broker.connect import connect
from tidecast.service.model.session import Model

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
_BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", flush=True)


def settings() -> dict[str, str]:
    """The variables of .env; those of the environment win, as in docker's own reading."""
    lines = (ROOT / ".env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name: os.environ.get(name, value) for name, value in found.items()}


def walk(compose: Compose, env: dict[str, str], pages: list[str]) -> None:
    """All of it but up and down.

    Raises:
        Failed: something did not come about.
        AssertionError: a reading was lost, doubled, or answered otherwise.
    """
    prometheus = Prometheus(int(env["PROMETHEUS_PORT"]))
    rate = "sum(rate(tidecast_forecasts_total[15s]))"
    flows = eventually("Prometheus sees forecasts flow", lambda: prometheus.value(rate))
    say(f"forecasts flow: {flows:.1f} a second, as Prometheus scrapes it")
    for page in pages:
        with urllib.request.urlopen(page, timeout=10) as answer:
            say(f"{page} answers with {answer.status}, {len(answer.read()):,} bytes")
    (Path(folder := tempfile.mkdtemp()) / "model.onnx").write_bytes(
        compose.read("worker", "/models/starter/model.onnx")
    )

    def shares() -> dict[str, float]:
        """Worker -> how many partitions it has."""
        found = prometheus.ask('count by (instance) (tidecast_lag_records{topic="readings"})')
        return {labels["instance"]: count for labels, count in found}

    def shared_by(workers: int) -> bool:
        return len(shares()) == workers and sum(shares().values()) == PARTITIONS

    def caught_up() -> bool:
        return shared_by(len(compose.containers("worker"))) and prometheus.value("sum(tidecast_lag_records)") == 0

    compose.scale("worker", 3)
    eventually("three workers have one partition each", lambda: shared_by(3) and set(shares().values()) == {1.0})
    say("three workers have one partition each")
    compose.kill(compose.containers("worker")[0])
    say("one is killed")
    eventually("the two others have its partition", lambda: shared_by(2))
    eventually("nothing lags", caught_up)
    say("the two others have its partition, and nothing lags")
    eventually("forecasts flow again", lambda: prometheus.value(rate) > flows / 2)
    compose.stop("producer")
    time.sleep(3)  # the last of its readings are answered within one commit
    broker = connect(f"localhost:{env['KAFKA_PORT']}", client="kafka-python", timeout_s=30)
    try:
        say(judge(broker, Model.load(folder)))
    finally:
        broker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", default="", metavar="COMMAND", help="compose-check, where there is no docker")
    parser.add_argument("-f", "--file", action="append", default=[], help="compose files [docker-compose.yml]")
    parser.add_argument("--seconds", type=float, default=300, help="for the start, once the images are there [300]")
    parser.add_argument("--page", action="append", default=None, metavar="URL", help="must answer [the live page]")
    args = parser.parse_args()
    env = settings()
    pages = args.page if args.page is not None else [f"http://127.0.0.1:{env['WATCH_PORT']}/"]
    compose = Compose(args.check, args.file, "tidecast")
    try:
        compose.ready()
        compose.down()
        try:
            compose.up(args.seconds)
            say("up, and all healthy")
            walk(compose, env, [page for page in pages if page])
        finally:
            compose.down()
        if left := compose.traces():
            raise Failed(f"left behind: {left}")
    except (Failed, AssertionError) as error:
        print(f"tests.compose: {error}", file=sys.stderr)
        return 1
    say("down, without a trace: all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
