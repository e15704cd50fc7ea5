"""Total outages, each for minutes: do the alerts of a real Prometheus say so, and do the counters stay true?

    python -m tests.chaos.outages --minutes 10 --client confluent

One worker for each outage, all at the same time, each started again when it ends, as an orchestrator does it; and one
without an outage, for which no alert may fire.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml

from tests.chaos.administration import AUTHORIZER, Administration
from tests.chaos.feed import Feeder, feed
from tests.chaos.lookout import Lookout
from tests.chaos.supervisor import ORCHESTRATORS, BackOff, Supervisor
from tests.chaos.topics import Names, read_all
from tests.support.kafka import own_kafka
from tests.support.models import counting_model
from tests.support.prometheus import running
from tests.support.serving import Topics
from tidecast.service.broker.embedded.server import free_port
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
HEALTHY_SECONDS = 60.0  # before the outage
RATE, SERIES, BAD = 100.0, 50, 300  # readings a second; one in so many is no reading
MOST_LINES = 200
UNSEEN = 2 * RATE  # committed by a worker in its last two seconds: no scrape has it
FORECASTS, LETTERS = "tidecast_forecasts_total", "tidecast_dead_letters_total"
# Each of these says that a worker answers nothing; no other is true of these outages.
RIGHT = {
    "TidecastWorkerDown",
    "TidecastWorkerRestarts",
    "TidecastNoProgress",
    "TidecastNothingCommitted",
    "TidecastStartsOver",
    "TidecastTransactionsFailing",
}


class Case:
    """One outage with a worker and topics of its own."""

    def __init__(
        self, name: str, servers: str, client: str, model: Path, folder: Path, back_off: BackOff, spec: ModelSpec
    ) -> None:
        self.name, self.port, self._admin = name, free_port(), Administration(servers)
        self.topics = topics = Topics(servers, 2, client=client)
        folder.mkdir()
        flags = ["--model", model, *topics.flags]
        self.supervisor = Supervisor(flags, self.port, folder, back_off, [FORECASTS, LETTERS])
        self._records = feed(spec, SERIES, 1, BAD)
        names = Names(topics.readings, topics.forecasts, topics.dead, topics.states)
        self._lookout = Lookout(topics.broker, names, topics.group, topics.count)
        self.gone: dict[str, int] = {}  # topic -> how many records it had when it was deleted

    def feed(self) -> Feeder:
        """Readings flow; `finish` ends that."""
        feeder = Feeder(self.topics.broker, self.topics.readings, self._records, RATE)
        feeder.start()
        return feeder

    def drain(self) -> None:
        """Wait until all readings are committed."""
        deadline = time.monotonic() + 60
        while self._lookout.committed() != self._lookout.ends():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: the readings are not answered")
            time.sleep(0.5)

    def begin(self) -> None:
        """The outage."""
        OUTAGES[self.name](self)

    def delete(self, topic: str) -> None:
        self.gone[topic] = len(read_all(self.topics.broker, topic))
        self.topics.broker.delete_topic(topic)

    def in_topic(self, topic: str) -> int:
        """How many records there are, or were when it was deleted."""
        return self.gone[topic] if topic in self.gone else len(read_all(self.topics.broker, topic))

    def take_rights(self) -> None:
        self._admin.leave_only(self.topics.forecasts, ["READ", "DESCRIBE_CONFIGS"])

    def shrink(self) -> None:
        self._admin.set(self.topics.forecasts, "max.message.bytes", 100)


OUTAGES: dict[str, Callable[[Case], None]] = {
    "none": lambda case: None,
    "output gone": lambda case: case.delete(case.topics.forecasts),
    "dead letters gone": lambda case: case.delete(case.topics.dead),
    "rights gone": Case.take_rights,
    "record too large": Case.shrink,
}


def configuration(cases: list[Case]) -> dict[str, object]:
    """Ours, with a job for each case in the place of ours."""
    found: dict[str, object] = yaml.safe_load((RULES / "prometheus.yml").read_text())
    found["rule_files"] = [str(RULES / "rules" / "*.yml")]
    found["scrape_configs"] = [
        {"job_name": f"tidecast {case.name}", "static_configs": [{"targets": [f"127.0.0.1:{case.port}"]}]}
        for case in cases
    ]
    return found


def alerts(address: str, began: float) -> dict[str, dict[str, float]]:
    """Job -> alert -> when it fired first, in s after `began`, a time of the wall clock."""
    query = {"query": 'ALERTS{alertstate="firing"}', "start": began - HEALTHY_SECONDS, "end": time.time(), "step": 5}
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    told: dict[str, dict[str, float]] = {}
    for one in found:
        mine, name = told.setdefault(one["metric"].get("job", "all"), {}), one["metric"]["alertname"]
        mine[name] = min(mine.get(name, 1e9), one["values"][0][0] - began)
    return told


def row(case: Case, fired: dict[str, float]) -> tuple[str, bool]:
    """One line of the table, and whether all is as it should be."""
    s, topics = case.supervisor, case.topics
    counts = [(s.counted[FORECASTS], case.in_topic(topics.forecasts)), (s.counted[LETTERS], case.in_topic(topics.dead))]
    right = {name for name, at in fired.items() if name in RIGHT and case.name != "none" and at > 0}
    wrong = fired.keys() - right
    said = ", ".join(f"{name.removeprefix('Tidecast')} {at:.0f} s" for name, at in sorted(fired.items(), key=_second))
    codes = " ".join(map(str, s.codes)) or "-"
    ok = (
        not wrong
        and all(b - UNSEEN <= a <= b for a, b in counts)
        and s.lines < MOST_LINES
        and bool(right) == (case.name != "none")
    )
    cells = [case.name, codes, s.lines, *(f"{a:,} / {b:,}" for a, b in counts), said or "-", len(wrong)]
    return "| " + " | ".join(map(str, cells)) + " |", ok


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


HEADER = (
    "| outage | exit codes | log lines | forecasts: counted / in the topic | dead letters: counted / in the topic "
    "| alerts, s after the outage began | false alerts |\n|---|---|---|---|---|---|---|"
)


def main(args: list[str] | None = None) -> int:
    """0 where the right alerts fired, no other did, the logs are short and the counters equal the topics."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.outages", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each outage [%(default)s]")
    parser.add_argument("--client", default="confluent", help="of the workers [%(default)s]")
    parser.add_argument("--orchestrator", choices=ORCHESTRATORS, default="kubernetes", help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="keep the logs here")
    given = parser.parse_args(args)
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outages-")))
        folder.mkdir(parents=True, exist_ok=True)
        kafka = stack.enter_context(own_kafka(folder / "kafka", heap_mb=384, properties=AUTHORIZER))
        model = counting_model(folder / "model")
        back_off, spec = ORCHESTRATORS[given.orchestrator], Model.load(model).spec
        cases = [
            Case(name, kafka.bootstrap_servers, given.client, model, folder / name.replace(" ", "-"), back_off, spec)
            for name in OUTAGES
        ]
        for case in cases:
            case.supervisor.start()
            stack.callback(case.supervisor.finish)
        while not all(case.supervisor.ready() for case in cases):
            time.sleep(1)
        (folder / "prometheus").mkdir(exist_ok=True)
        address = stack.enter_context(running(configuration(cases), folder / "prometheus"))
        feeders = [case.feed() for case in cases]
        time.sleep(HEALTHY_SECONDS)
        for case, feeder in zip(cases, feeders, strict=True):
            feeder.finish()
            case.drain()
        began = time.time()
        for case in cases:
            case.begin()
        feeders = [case.feed() for case in cases]
        time.sleep(given.minutes * 60)
        fired = alerts(address, began)
        for feeder in feeders:
            feeder.finish()
        cases[0].drain()
        for case in cases:
            case.supervisor.finish()
        print(
            f"{given.minutes:g} minutes, {given.client}, started again as {given.orchestrator} does it",
            HEADER,
            sep="\n",
        )
        rows = [row(case, fired.get(f"tidecast {case.name}", {})) for case in cases]
        print(*(line for line, _ in rows), sep="\n", flush=True)
        if others := fired.keys() - {f"tidecast {case.name}" for case in cases}:
            print("alerts of no worker:", *sorted(others))
    return 0 if all(ok for _, ok in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
