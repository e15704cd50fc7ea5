"""Tables that fit the width of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # comes with `tidecast[demo]` and with the trainer
    from rich.console import Console
    from rich.table import Table

_ANY_WIDTH = 1_000


def fitted(table: Table, console: Console) -> Table:
    """The table; where it is too wide for the terminal, without blanks between its columns, so that no word is cut."""
    if console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum > console.width:
        table.padding = (0, 0)
    return table
