"""Markdown tables of the page."""

from typing import Any


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """One line for the head, one for each row."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def verdict(met: bool) -> str:
    """Of a target."""
    return "met" if met else "**missed**"
