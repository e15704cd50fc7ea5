"""Prometheus' rules: each alert fires when it should, stays silent when it should, and leads to a page that helps."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.models import counting_model
from tests.support.prometheus import names_of, program
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.session import Model
from tidecast.service.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULES = [r for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for r in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]


def promtool(*arguments):
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, cwd=PROMETHEUS)


def slug(title):
    """What a page of Markdown calls the place of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def metrics_of(rule):
    return set(re.findall(r"\b(?:tidecast_\w+|job\w*:tidecast_[\w:]+)\b", rule["expr"]))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "tests/alerts.yml")])
def test_promtool_finds_nothing_wrong(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_stays_silent(alert):
    found = {"fires": 0, "stays silent": 0}
    for case in CASES:
        for rule in case.get("alert_rule_test", ()):
            if rule["alertname"] == alert:
                outcome = "fires" if rule["exp_alerts"] else "stays silent"
                assert case["name"].startswith(f"{alert} {outcome}: ")
                found[outcome] += 1
    assert all(found.values()), f"{alert}: {found} in deploy/prometheus/tests/alerts.yml"


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_how_bad_it_is_and_leads_to_its_section_of_the_runbook(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    sections = {slug(text.partition("\n")[0]): text for text in (ROOT / page).read_text().split("\n## ")[1:]}
    assert anchor in sections, f"{page} has no section #{anchor}"
    section = sections[anchor]
    assert f"`{alert}`" in section
    for part in ("**What it means.**", "**Effect.**", "**How to look.**", "**What to do.**"):
        assert part in section, f"#{anchor} has no {part}"


def test_rules_name_only_metrics_that_there_are(tmp_path):
    there = names_of(Metrics(Model.load(counting_model(tmp_path)).spec, list(DeadLetterReason)).registry)
    there |= {rule["record"] for rule in RULES if "record" in rule}
    named = set().union(*map(metrics_of, RULES))
    assert len(named) > 15
    assert named <= there, f"no such metrics: {sorted(named - there)}"
