"""Boards, rules and runbook against a real Prometheus that scrapes a real worker under load, with a real model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.models import counting_model
from tests.support.prometheus import program, running
from tests.support.serving import Topics, serving
from tests.support.worker_process import Command

pytestmark = [pytest.mark.long, pytest.mark.timeout(120, func_only=True)]  # the first test waits for a training
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "training" / "samples"
GRAFANA, RULES = ROOT / "deploy" / "grafana", ROOT / "deploy" / "prometheus" / "rules"
HOUR_MS = 3_600_000


def load(name):
    spec = importlib.util.spec_from_file_location(f"grafana_{name}", GRAFANA / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


picture = load("picture")
BOARDS = {path.stem: json.loads(path.read_text()) for path in picture.BOARDS}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in picture.panels(board)]
EXPRESSIONS = {  # of each alert and recording rule
    rule.get("alert") or rule["record"]: rule["expr"]
    for file in sorted(RULES.glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}
RECORDED = [name for name in EXPRESSIONS if ":" in name]
WINDOW_SECONDS = 6
WINDOW = picture.Window(seconds=300, rate="4s", window=f"{WINDOW_SECONDS}s")
TOLD = (  # by what happened to readings in this run
    *("Gaps", "Series that were reset", "Late readings and duplicates", "Clipped values", "Dead letters, by reason"),
    *("Readings not answered", "Skill against the past day", "Commits", "States written", "Forecasts scored"),
)


@contextmanager
def scraping(address, folder):
    """A Prometheus with our configuration and rules that looks at this one worker, every second."""
    config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "*.rules.yml")]
    config["scrape_configs"] = [{"job_name": "tidecast", "static_configs": [{"targets": [address]}]}]
    for file in RULES.glob("*.yml"):
        rules = yaml.safe_load(file.read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / f"{file.stem}.rules.yml").write_text(yaml.safe_dump(rules))
    with running(config, folder) as address:
        yield picture.Prometheus(address)


def odd(topics, day):
    """Readings of every kind that is not simply the next, ten times: in event times after the sample's."""

    def reading(hour, value=50.0):
        return json.dumps({"ts": 1_400_000_400_000 + (day * 2_400 + hour) * HOUR_MS, "temp": value}).encode()

    hours = [0, 1, 1, 0, 4, 400, 401]  # a duplicate, a late one, a gap that is filled and one that is not
    for n in range(10):
        keys = b"odd-%d" % n, b"hot-%d" % n
        records = [(0, keys[0], reading(hour)) for hour in hours]
        topics.send([*records, (1, keys[0], b"{"), (1, keys[1], reading(0, 900.0)), (1, keys[1], reading(1, 900.0))])


@pytest.fixture(scope="module")
def prometheus(broker, weather, tmp_path_factory):
    """One that has looked at a worker at work for a while, and still does."""
    program("prometheus")  # without it the test is skipped before anything is started
    topics, model = Topics(broker, 2), weather / "build" / "weather"
    shadow = counting_model(
        tmp_path_factory.mktemp("shadow"), step_ms=HOUR_MS, features=["temp", "humid"], targets=["temp"]
    )
    flags = ("--max-future-seconds=0", "--changelog-seconds=5", "--dead-letter-late", *topics.flags)
    flags += (f"--shadow={shadow}", "--promote=auto", topics.make_decisions())
    feed = ["produce", "file", SAMPLES / "weather.csv.gz", f"--model={model}", "--speed=720000", "--loop"]
    feed += [f"--bootstrap-servers={broker}", f"--input-topic={topics.readings}", "--from=2013-06-01T00:00:00Z"]
    with serving("--model", model, *flags) as worker:
        worker.ready()
        address = re.search(r"url=http://(\S+)", worker.log)[1]
        with scraping(address, tmp_path_factory.mktemp("prometheus")) as found:
            worker.wait_for("the first look", lambda: answers(found, "tidecast_build_info"))
            producer = Command(*feed)
            try:
                for day in range(2):
                    judged = 1_500 * (day + 1)
                    worker.wait_for("judgement", lambda n=judged: worker.metric("tidecast_absolute_error_count") > n)
                    odd(topics, day)
                time.sleep(WINDOW_SECONDS)
                yield worker.wait_for("a window without a missed look", lambda: unbroken(found))
            finally:
                producer.end()
        assert worker.end()[0] == 0
    topics.broker.close()


def answers(prometheus, expr):
    try:
        return prometheus.now(expr)
    except OSError:  # it is only starting
        return []


def unbroken(prometheus):
    """It at this moment, for good, if lately it missed no look and the worker did not wait for readings.

    On a busy machine the last test comes much later.
    """
    then = picture.Prometheus(prometheus.url, at=time.time())
    looked = then.now(f"min_over_time(up[{WINDOW_SECONDS}s]) == 1 and count_over_time(up[{WINDOW.rate}]) > 2")
    return then if looked and then.now(f"sum(rate(tidecast_absolute_error_count[{WINDOW.rate}])) > 0") else None


@pytest.mark.parametrize(("board", "panel"), [pytest.param(n, p, id=f"{n}-{p['title']}") for n, p in PANELS])
def test_every_query_of_every_panel_returns_data(prometheus, board, panel):
    assert panel["targets"], "a panel without a query"
    for target in panel["targets"]:
        expr = WINDOW.fill(target["expr"])
        assert prometheus.now(expr), f"no data: {expr}"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_rule_is_evaluated_and_what_is_recorded_has_data(prometheus, name):
    prometheus.now(EXPRESSIONS[name])
    if name in RECORDED:
        assert prometheus.now(name), f"nothing recorded: {name}"


@pytest.mark.parametrize("title", TOLD)
def test_gaps_late_readings_and_dead_letters_can_be_seen_on_the_boards(prometheus, title):
    (panel,) = [panel for _, panel in PANELS if panel["title"] == title]
    curves = [c for target in panel["targets"] for c in prometheus.over(WINDOW.fill(target["expr"]), WINDOW)]
    assert any(abs(value) > 1e-6 for _, values in curves for _, value in values)


def test_prometheus_accepts_the_rules_and_nothing_critical_fires_on_a_healthy_worker(prometheus):
    groups = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == set(EXPRESSIONS)
    assert {rule["health"] for rule in rules.values()} == {"ok"}, [r for r in rules.values() if r["health"] != "ok"]
    firing = [name for name, rule in rules.items() if rule.get("state") == "firing"]
    assert firing == []


def test_every_expression_of_the_runbook_can_be_pasted(prometheus):
    blocks = re.findall(r"```promql\n(.*?)```", (ROOT / "docs" / "runbook.md").read_text(), re.DOTALL)
    expressions = [line for block in blocks for line in block.splitlines()]
    assert len(expressions) > 20
    for expr in expressions:
        prometheus.now(expr)


@pytest.mark.parametrize("name", BOARDS)
def test_a_picture_of_each_board_can_be_drawn(prometheus, name):
    out = ROOT / "build" / "boards" / f"{name}.png"
    out.unlink(missing_ok=True)
    picture.draw(BOARDS[name], prometheus, WINDOW, out)
    assert out.stat().st_size > 50_000


def test_variables_choose_among_what_there_is(prometheus):
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric = re.match(r"label_values\((\w+)[{,]", variable["query"])[1]
                assert variable["name"] in prometheus.now(metric)[0][0]
