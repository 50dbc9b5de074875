"""How long is it from `python` to the first update of a network?

Two fresh processes train the study of the README for two updates, one after the other, with JAX's
compilation cache in one folder: the first finds it empty, the second finds every program. Seconds
on the clock, with all cores; the import of the package, the scaling measured from pilot
simulations, the compilation of the fused step, and all from the start of the process on.
`python -m benchmarks.first_step`
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMPILE_TARGET, SECOND_TARGET = 10.0, 3.0
"""Seconds that the compilation of the first start, and the whole second start, may take."""


def measure_starts() -> dict[str, dict[str, float]]:
    """Seconds of the first and of the second start, by part."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _start(folder) for name in ("first start", "second start")}


def show_starts(starts: dict[str, dict[str, float]]) -> None:
    """The table, and whether the targets are met."""
    table = Table(title="Seconds from the start of a process to the end of its first updates")
    for column in ("", *starts["first start"]):
        table.add_column(column)
    for name, seconds in starts.items():
        table.add_row(name, *(f"{value:.1f}" for value in seconds.values()))
    console = Console()
    console.print(table)
    compiling, second = starts["first start"]["compile"], starts["second start"]["all"]
    for text, value, target in (
        ("compilation of the step", compiling, COMPILE_TARGET),
        ("second start", second, SECOND_TARGET),
    ):
        met = "met" if value < target else "missed"
        console.print(f"{text}: {value:.1f} s (target: under {target:g} s, {met})")


def _start(cache: str) -> dict[str, float]:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # XLA warns at length of processors that differ, though they are the same.
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "benchmarks.first_step", "--from", repr(time.time())]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _train_from(spawned: float) -> None:
    """What a user's program does, with the clock read in between; prints seconds by part."""
    if hasattr(os, "sched_setaffinity"):  # a parent may have been held to one core
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    import sgjax
    from benchmarks.readme_study import predictor_and_stream

    imported = time.time()
    predictor, stream = predictor_and_stream(batch_size=1024)
    measured = time.time()
    reports = []
    sgjax.train(predictor, stream, num_steps=2, interval=2, callbacks=[reports.append])
    parts = {
        "import": imported - spawned,
        "pilot": measured - imported,
        "compile": reports[-1].compile_seconds,
        "all": time.time() - spawned,
    }
    print(json.dumps(parts))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _train_from(float(sys.argv[2]))
    else:
        show_starts(measure_starts())
