"""Writes base/prometheus-rule.yaml from the rules in deploy/prometheus/rules:   python deploy/kubernetes/generate.py"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
OUT = HERE / "base" / "prometheus-rule.yaml"


def prometheus_rule() -> str:
    """The manifest: all groups of all files."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tidecast"},
        "spec": {"groups": groups},
    }
    head = "# Made by deploy/kubernetes/generate.py from deploy/prometheus/rules; change those.\n"
    return head + yaml.safe_dump(manifest, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    OUT.write_text(prometheus_rule())
