"""How a benchmark ends: one JSON line with what decides the numbers, stored where asked."""

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

from sgjax.checkpoint import versions, write_json
from sgjax.devices import describe_hardware

RESULTS = Path(__file__).parent / "results"


def finish(name: str, result: dict[str, Any], *, store: bool) -> None:
    """Prints the result as the last line, with what it was made with; keeps it where asked."""
    full = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": describe_hardware(),
        "versions": versions(),
        **result,
    }
    if store:
        write_json(RESULTS / f"{name}.json", full)
    print(json.dumps(full, default=float))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
