"""What training measured, in rows of bounded number: a log that survives kills and long runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgjax.checkpoint._files import told, write_whole

MOST_ROWS = 2_000
"""When a log has so many rows, neighbours are merged in pairs."""

_SUMMED = ("steps", "interval_seconds")
_AVERAGED = ("loss", "losses", "valid_share")


class Log:
    """A file of JSON lines, one per interval: at most `MOST_ROWS`, about a megabyte.

    A full log has its rows merged in pairs: steps and seconds add up, losses and valid shares are
    averaged over the steps, all else is the later row's. A run of a million intervals so keeps the
    whole course, the older part coarser.
    """

    def __init__(self, path: Path):
        self.path = path
        self._count: int | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one row; raises `RunError` where the disk does not take it."""
        with told(f"{self.path} cannot be written", "Free space on the disk and resume the run."):
            if self._count is None:
                self._forget(row["step"] - row["steps"])
            if self._count == MOST_ROWS:
                self._write(_merged(self.rows()))
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._count = (self._count or 0) + 1

    def rows(self) -> list[dict[str, Any]]:
        """The rows in order of steps; a line that a kill cut short is left out."""
        rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    rows[row["step"]] = row
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue
        return [rows[step] for step in sorted(rows)]

    def _forget(self, step: int) -> None:
        # What a killed session told of steps beyond its last kept state is told again.
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        self._write(kept)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._count = len(rows)


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = [rows[place : place + 2] for place in range(0, len(rows), 2)]
    return [_pair(*pair) if len(pair) == 2 else pair[0] for pair in pairs]


def _pair(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    a, b = first["steps"], second["steps"]

    def average(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {name: average(one[name], other[name]) for name in other}
        return (a * one + b * other) / (a + b)

    return (
        second
        | {name: first[name] + second[name] for name in _SUMMED}
        | {name: average(first[name], second[name]) for name in _AVERAGED}
    )
