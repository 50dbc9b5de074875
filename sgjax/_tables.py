"""Rows as text: `list of dicts -> aligned columns`, for what is printed."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MOST = 40
"""Rows that are printed."""


def as_text(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """A table of rows that share their keys; numbers have three significant digits."""
    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column)
    for row in rows[:MOST]:
        table.add_row(*map(_cell, row.values()))
    console = Console(file=io.StringIO(), width=160, color_system=None, highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    if len(rows) > MOST:
        lines.append(f" and {len(rows) - MOST:,} more")
    return "\n".join(line for line in lines if line)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
