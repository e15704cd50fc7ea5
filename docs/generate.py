"""Writes docs/settings.md and docs/metrics.md from the code: python docs/generate.py. A test holds them together."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tidecast.service.config import settings
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.spec import Diagnostic, ModelSpec, SelfTest, StateSlice, TrainingData
from tidecast.service.observability.metrics import Metrics

DOCS = Path(__file__).parent
SPEC = ModelSpec(  # the smallest one that gives each metric
    name="example",
    hash="0" * 64,
    features=["value"],
    targets=["value"],
    horizon=1,
    step_ms=1_000,
    quantiles=[0.5],
    state_size=1,
    state=[StateSlice("steps", 0, (1,))],
    initial_state=[0.0],
    warmup_steps=1,
    diagnostics=[
        Diagnostic("error", "absolute_error", "value", 1),
        Diagnostic("naive", "naive_error", "value", 1),
        Diagnostic("inside", "inside", "value", 1, level=0.9),
        Diagnostic("clipped", "clipped", "value", 1),
        Diagnostic("alarm", "alarm", "value", 0),
    ],
    training_data=TrainingData("0" * 64, 0, 0, 0),
    metrics={},
    self_test=SelfTest(x=[], ts=[], y=[]),
)
HOME_DIR = "~/.local/share/tidecast/broker"  # the same on every machine


def settings_page() -> str:
    """Every setting of the service, by group."""
    lines = [
        "# Settings of the service",
        "",
        "A flag wins over the environment, the environment over the default. An unknown `TIDECAST_*` variable is an",
        "error that names the nearest real one. `tidecast config` prints what is in force and where it came from. Made",
        "by `docs/generate.py` from `service/config/settings.py`.",
    ]
    for group, fields in groupby(settings.FIELDS.values(), key=lambda f: f.group):
        lines += ["", f"## {group}", "", "| flag | variable | default | what |", "|---|---|---|---|"]
        for f in fields:
            default = HOME_DIR if f.name == "broker_data_dir" else settings.default(f.name)
            what = f.help.replace("|", "\\|")
            if f.choices:
                what += f" ({', '.join(f.choices)})"
            default = str(default).lower() if isinstance(default, bool) else default
            flag, variable = settings.flag(f.name), settings.variable(f.name)
            plain = "".join(f", or itself in `{each}`" for each in settings.variables(f.name)[1:])
            shown = f"`{default}`" if str(default) else ""
            lines.append(f"| `{flag}` | `{variable}` | {shown} | {what}{plain} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every metric of the worker's own, with its labels."""
    families = {family.name: family for family in Metrics(SPEC, list(DeadLetterReason)).registry.collect()}
    routing = {family.name: family for family in Metrics(None, list(DeadLetterReason)).registry.collect()}
    lines = [
        "# Metrics of the worker",
        "",
        "Served at `/metrics` (port 9108). Base units; no label ever holds a series' name; every label's values are",
        "there from the start, at zero. Process metrics (`process_*`) come on top. `tidecast route` has those",
        "with yes in the last column. Made by `docs/generate.py` from `service/observability/metrics.py`.",
        "",
        "| metric | type | labels | what | route |",
        "|---|---|---|---|---|",
    ]
    labels = {"lag_records": "topic, partition", "lag_seconds": "topic, partition", "series": "partition"}
    labels["unwritten_series"] = "partition"
    for family in sorted((routing | families).values(), key=lambda f: f.name):
        if not family.name.startswith("tidecast_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        known = list(dict.fromkeys(k for s in family.samples for k in s.labels if k != "le"))
        shown = ", ".join(known) or labels.get(family.name.removeprefix("tidecast_"), "")
        what, routed = family.documentation.replace("|", "\\|"), "yes" if family.name in routing else ""
        lines.append(f"| `{name}` | {family.type} | {shown} | {what} | {routed} |")
    lines += [
        "",
        "Useful queries: skill over the naive forecast is",
        "`1 - rate(tidecast_absolute_error_sum[5m]) / rate(tidecast_naive_error_sum[5m])`; the share of truths inside",
        "the interval is",
        "`rate(tidecast_interval_coverage_sum[5m]) / rate(tidecast_interval_coverage_count[5m])`.",
        "",
        "Rules and alerts over these are in `deploy/prometheus/rules` ([what to do](runbook.md)), boards in",
        "`deploy/grafana`.",
        "",
        "Reasons of dead letters: " + ", ".join(f"`{r.value}`" for r in DeadLetterReason) + ".",
    ]
    return "\n".join(lines) + "\n"


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
