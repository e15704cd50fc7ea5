"""Grafana's boards: what is committed is what the code makes, and no panel leaves its reader to guess."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.models import counting_model
from tests.support.prometheus import names_of
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.session import Model
from tidecast.service.observability.metrics import Metrics

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}  # prometheus_client's own


def test_what_is_committed_is_what_the_script_makes(tmp_path):
    subprocess.run([sys.executable, GRAFANA / "build.py", tmp_path], check=True, timeout=60)
    made = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert made == BOARDS, "run: python deploy/grafana/build.py"


def test_links_to_the_boards_stay_good():
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        "operations": "tidecast-operations",
        "forecast-quality": "tidecast-quality",
    }


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_shows_in_which_unit_and_from_which_datasource(panel):
    assert panel["title"] and len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    uid = provisioned["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {uid}
    legends = [target.get("legendFormat") for target in panel["targets"]]
    assert panel["type"] == "table" or all(legends)
    assert len(set(legends)) == len(legends)
    if panel["type"] in ("stat", "bargauge"):
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_keeps_to_the_job_and_the_workers_chosen(panel):
    for target in panel["targets"]:
        selectors = re.findall(r"(?:tidecast|process)_\w+(\{[^}]*\})?", target["expr"])
        assert selectors and all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)


def test_panels_name_only_metrics_that_there_are(tmp_path):
    there = names_of(Metrics(Model.load(counting_model(tmp_path)).spec, list(DeadLetterReason)).registry) | PROCESS
    queries = " ".join(target["expr"] for panel in PANELS for target in panel.values[0]["targets"])
    named = set(re.findall(r"\b((?:tidecast|process)_\w+)\{", queries))
    assert len(named) > 25
    assert named <= there, f"no such metrics: {sorted(named - there)}"


def test_no_panel_lies_over_another():
    for board in BOARDS.values():
        taken = set()
        for panel in board["panels"]:
            x, y, w, h = (panel["gridPos"][side] for side in "xywh")
            cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
            assert not cells & taken, panel["title"]
            assert x + w <= 24
            taken |= cells
