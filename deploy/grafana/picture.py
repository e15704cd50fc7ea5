"""Draws a board's data without a Grafana: each panel's own queries, asked of a Prometheus, in the board's own layout.

python deploy/grafana/picture.py [--prometheus http://127.0.0.1:9090] [--minutes 30] [--out build/boards]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

BOARDS = sorted((Path(__file__).parent / "dashboards").glob("*.json"))
Curve = tuple[dict[str, str], list[tuple[float, float]]]  # labels, (time s, value)


@dataclass(frozen=True)
class Window:
    """What Grafana puts in the place of its variables."""

    seconds: float  # shown
    rate: str = "1m"  # $__rate_interval
    window: str = "15m"  # $window

    def fill(self, expr: str) -> str:
        """The expression as Grafana would send it, with all jobs and workers chosen."""
        values = {"$__rate_interval": self.rate, "$__range": f"{self.seconds:.0f}s", "$window": self.window}
        for name, value in {**values, "$job": ".*", "$instance": ".*"}.items():
            expr = expr.replace(name, value)
        if "$" in expr:
            raise SystemExit(f"an unknown variable in {expr}")
        return expr


@dataclass(frozen=True)
class Prometheus:
    """Asks one by its HTTP API."""

    url: str
    at: float | None = None  # the time that is looked at, s; None = now

    def get(self, path: str, **query: object) -> Any:
        """The answer's data; ValueError with Prometheus' own words where it refuses, OSError where it is not there."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it is only starting
                raise
            raise ValueError(f"{query.get('query', path)}: {json.load(error)['error']}") from None

    def now(self, expr: str) -> list[Curve]:
        """Each series with its one value; without those that are not numbers."""
        found = self.get("query", query=expr, time=self.at or time.time())["result"]
        return _numbers((one["metric"], [one["value"]]) for one in found)

    def over(self, expr: str, window: Window) -> list[Curve]:
        """Each series over the time shown."""
        end = self.at or time.time()
        step = max(1.0, window.seconds / 200)
        found = self.get("query_range", query=expr, start=end - window.seconds, end=end, step=step)["result"]
        return _numbers((one["metric"], one["values"]) for one in found)


def _numbers(found: Any) -> list[Curve]:
    curves = [(labels, [(t, float(v)) for t, v in values if math.isfinite(float(v))]) for labels, values in found]
    return [(labels, values) for labels, values in curves if values]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with queries, rows left out."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def legend(text: str, labels: dict[str, str]) -> str:
    """As Grafana names a curve."""
    if not text:
        return ", ".join(v for k, v in labels.items() if k != "__name__")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), text)


def _shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.3g}" + {"s": " s", "cps": "/s"}.get(unit, "")


def _color(value: float, steps: list[dict[str, Any]]) -> str:
    """That of the highest step reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return reached[-1] if reached else "black"


def _draw(axes: Any, panel: dict[str, Any], prometheus: Prometheus, window: Window) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit, steps = defaults.get("unit", "short"), defaults.get("thresholds", {}).get("steps", [])
    curves = [
        (legend(target.get("legendFormat", ""), labels), values)
        for target in panel["targets"]
        for labels, values in (
            prometheus.over(window.fill(target["expr"]), window)
            if panel["type"] in ("timeseries", "stat")
            else prometheus.now(window.fill(target["expr"]))
        )
    ]
    axes.set_title(f"{panel['title']}  [{unit}]", fontsize=8, loc="left", fontweight="bold")
    axes.tick_params(which="both", labelsize=6)
    if panel["type"] == "stat":
        axes.axis("off")
        value = curves[0][1][-1][1] if curves else math.nan
        axes.text(0.5, 0.4, _shown(value, unit), ha="center", fontsize=18, color=_color(value, steps))
    elif panel["type"] == "bargauge":
        values = [curve[-1][1] for _, curve in curves]
        axes.barh([name for name, _ in curves], values, color=[_color(value, steps) for value in values])
        axes.set_xlim(defaults["min"], defaults["max"])
    elif panel["type"] == "table":
        axes.axis("off")
        axes.text(0, 0.9, "\n".join(name for name, _ in curves), va="top", fontsize=6, wrap=True)
    else:
        end = max((curve[-1][0] for _, curve in curves), default=0.0)
        for name, curve in curves:
            axes.plot([t - end for t, _ in curve], [v for _, v in curve], linewidth=1, label=name)
        log = defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log"
        if log:
            axes.set_yscale("log")
        elif "min" in defaults:
            axes.set_ylim(defaults["min"], defaults["min"] + 1.15 * (axes.get_ylim()[1] - defaults["min"]))
        axes.yaxis.set_major_formatter(lambda value, _: _shown(value, unit))
        low, high = axes.get_ylim()
        for step in steps:
            if step["value"] is not None and low <= step["value"] <= high:
                axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=0.8)
        axes.legend(fontsize=5, loc="upper left", framealpha=0.6)
        axes.grid(alpha=0.3)


def draw(board: dict[str, Any], prometheus: Prometheus, window: Window, out: Path) -> None:
    """One picture of one board."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    places = [panel["gridPos"] for panel in board["panels"]]
    height = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(18, height * 0.36))
    for panel in board["panels"]:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        if panel["type"] == "row":
            figure.text(0.005, 1 - (y + 0.8) / height, panel["title"], fontsize=11, fontweight="bold")
            continue
        left, right, above, below = 0.8, 0.2, 1.0, 0.8
        place = ((x + left) / 24, 1 - (y + h - below) / height, (w - left - right) / 24, (h - above - below) / height)
        _draw(figure.add_axes(place), panel, prometheus, window)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    """Both boards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=30.0, help="that are shown [30]")
    parser.add_argument("--out", type=Path, default=Path("build/boards"), metavar="FOLDER")
    args = parser.parse_args()
    for path in BOARDS:
        target = args.out / f"{path.stem}.png"
        draw(json.loads(path.read_text()), Prometheus(args.prometheus), Window(args.minutes * 60), target)
        print(target)


if __name__ == "__main__":
    main()
