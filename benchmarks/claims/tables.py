"""Markdown tables of the page."""

from collections.abc import Callable
from typing import Any

from rich.console import Console


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """One line for the head, one for each row."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def verdict(met: bool) -> str:
    """Of a target."""
    return "met" if met else "**missed**"


def as_printed(console: Console, show: Callable[[], None]) -> str:
    """What is shown on a console, as a block of text."""
    usual, console.width = console.width, 140
    try:
        with console.capture() as captured:
            show()
    finally:
        console.width = usual
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(["```text", *lines, "```", ""])
