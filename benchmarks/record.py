"""How a benchmark ends: one JSON line with what decides the numbers, stored where asked."""

import datetime
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from sgjax.checkpoint import versions, write_json
from sgjax.devices import describe_hardware

RESULTS = Path(__file__).parent / "results"


def finish(name: str, result: dict[str, Any], *, store: bool) -> None:
    """Prints the result as the last line, with what it was made with; keeps it where asked."""
    full = {"benchmark": name, **circumstances(), **result}
    if store:
        keep(name, full)
    print(json.dumps(full, default=float))


def keep(name: str, result: dict[str, Any]) -> None:
    """Keeps a result, complete or not."""
    write_json(RESULTS / f"{name}.json", result)


def circumstances() -> dict[str, Any]:
    """When, from which commit, on what and with which versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": describe_hardware(),
        "versions": versions(),
    }


def kept(name: str) -> dict[str, Any]:
    """What is kept under a name; nothing where nothing is."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


@contextmanager
def lightly_compiled(quick: bool) -> Iterator[None]:
    """Leaves most of XLA's optimisations out where a run is short: it would be all compilation."""
    usual = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick or usual)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", usual)
