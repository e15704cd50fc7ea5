"""Numbers, durations and foreign texts as people read them."""

from __future__ import annotations


def about(ms: float) -> str:
    """A duration in its largest unit of which there are at least two: "3 h"."""
    for name, unit in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if abs(ms) >= 2 * unit:
            return f"{abs(ms) / unit:.0f} {name}"
    return f"{abs(ms):.0f} ms"


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 reading`, `1,000 readings`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def printable(text: str) -> str:
    """The text with escapes for what a terminal would act on, and no line of its own."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
