"""What the pictures of an inspection share."""

from __future__ import annotations

from tidecast.training.inspection.columns import Floats, Int64
from tidecast.training.inspection.inspect import Inspection
from tidecast.training.inspection.seasons import DAY

INK, BAND, ACCENT, GREY = "#1f4e8c", "#7fa8d9", "#c8553d", "#8a8a8a"


def column(found: Inspection, name: str) -> Floats:
    """[readings] one column's numbers in the order of the sorted readings."""
    numbers = next(column.numbers for column in found.columns if column.name == name)
    assert numbers is not None
    return numbers[found.readings.rows]


def spans(found: Inspection) -> list[tuple[str, slice]]:
    """Series, those of most readings first."""
    return sorted(found.readings.spans(), key=lambda span: span[1].start - span[1].stop)


def label(found: Inspection, name: str) -> str:
    """A column's name with its unit."""
    unit = found.values[name].unit
    return f"{name} ({unit})" if unit and unit not in name else name


def when(ts: Int64) -> Floats:
    """[readings] as matplotlib counts time: days."""
    return ts / DAY


def thousands(value: float, _: int | None) -> str:
    """An axis' number, thousands apart."""
    return f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")
