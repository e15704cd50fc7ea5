"""The output of a recipe: one table, with published figures and ours, and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tidecast.training.export.parity import TOLERANCE
from tidecast.training.progress import Progress
from tidecast.training.recipes.parts.serving import Served
from tidecast.training.report.plots import ACTUAL, BAND, INK
from tidecast.training.report.tables import NOT_A_TERMINAL_WIDTH

__all__ = [
    "ACCENT", "ACTUAL", "BAND", "COLOURS", "DASHED", "INK", "MARKERS", "STYLES",
    "Kit", "Line", "Outcome", "canvas", "print_outcome", "styled",
]  # fmt: skip

mpl.use("agg")  # files only; a server has no display
# Distinguishable for the colour-blind (Okabe and Ito 2008), and by line and marker where there are many.
ACCENT, GREEN, AMBER = "#d55e00", "#009e73", "#e69f00"
COLOURS = (INK, ACCENT, GREEN, AMBER)
DASHED = (0, (3, 1.5))
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 10,
    "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; the reach is the bound that the figure must meet."""

    what: str
    ours: float | str
    published: str = "–"
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """None where nothing is asked."""
        if isinstance(self.ours, str) or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or self.ours >= self.at_least) and (
            self.at_most is None or self.ours <= self.at_most
        )

    @property
    def reach(self) -> str:
        """For the table."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{self.unit}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}{self.unit}"

    @property
    def text(self) -> str:
        """Our figure with four digits that matter."""
        return self.ours if isinstance(self.ours, str) else f"{self.ours:.4g}{self.unit}"


@dataclass(slots=True)
class Outcome:
    """All that a recipe found."""

    title: str
    lines: list[Line] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    @property
    def missed(self) -> list[Line]:
        """The lines that missed their reach."""
        return [line for line in self.lines if line.reached is False]

    def figures(self) -> dict[str, Any]:
        """For figures.json."""
        return {
            "title": self.title,
            "figures": [
                {
                    "what": line.what,
                    "ours": line.ours,
                    "published": None if line.published == "–" else line.published,
                    "reach": line.reach or None,
                }
                for line in self.lines
            ],
            "served": [
                {"model": one.spec.id, "readings": one.warm.size, "difference_from_torch": one.difference}
                for one in self.served
            ],
        }


@dataclass(frozen=True, slots=True)
class Kit:
    """What a recipe is given."""

    out: Path  # its own directory, which is there
    progress: Progress
    seed: int = 0
    quick: bool = False  # a reduced form: shows that all works, in seconds; figures mean nothing
    data: Path | None = None  # a data file, for the recipe that needs one

    def full(self, full: int, quick: int) -> int:
        """How many: in earnest, and in the reduced form."""
        return quick if self.quick else full

    def save(self, figure: Figure, name: str = "plot.png") -> None:
        """Write a plot into the recipe's directory."""
        figure.savefig(self.out / name, dpi=130)


def styled() -> AbstractContextManager[None]:
    """The style of all plots, as long as it is open."""
    return mpl.rc_context(STYLE)


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def print_outcome(outcome: Outcome, seconds: float, out: Path, *, seed: int, quick: bool) -> None:
    """The table, and where the files are, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=NOT_A_TERMINAL_WIDTH)
    table = Table()
    table.add_column("")
    for head in ("published", "ours", "to reach"):
        table.add_column(head, justify="right")
    table.add_column("")
    for line in outcome.lines:
        verdict = {None: "", True: "reached", False: "not in the reduced form" if quick else "MISSED"}[line.reached]
        table.add_row(line.what, line.published, line.text, line.reach, verdict)
    console.print(outcome.title, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(table, highlight=False)
    console.print(_served(outcome.served), highlight=False, soft_wrap=True)
    for what, pattern in (("plot", "*.png"), ("live", "*.gif"), ("models", "*.onnx"), ("figures", "*.json"),
                          ("curves", "*.csv")):  # fmt: skip
        found = " ".join(str(path) for path in sorted(out.glob(pattern)))
        if found:
            console.print(f"{what:<8}{found}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"took    {seconds:.0f} s, seed {seed}\n", highlight=False)


def _served(served: Sequence[Served]) -> str:
    if not served:
        return ""
    readings = sum(s.warm.size for s in served)
    worst = max(s.difference for s in served)
    models = f"{len(served)} models" if len(served) > 1 else "one model"
    return (
        f"Served: {models}, {readings:,} readings through the worker's pipeline. Each answer was compared with "
        f"torch's: they differ by at most {worst:.0e}, relative; {TOLERANCE:.0e} would be an error."
    )
