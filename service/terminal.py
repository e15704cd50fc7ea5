"""Tables for a terminal, as wide as that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # comes with `tidecast[demo]` and with the trainer
    from rich.console import Console
    from rich.table import Table

_ANY_WIDTH = 1_000


def fitted(table: Table, console: Console) -> Table:
    """Without blanks around its columns if it is too wide for the terminal with them: better than broken words."""
    if console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum > console.width:
        table.padding = (0, 0)
    return table
