"""How does training scale with devices and processes, and does its memory stay flat?

The study of the README on 1, 2 and 4 CPU devices and on 1 and 2 processes of this machine: weak
scaling (the same batch on each device) and strong (the same batch in all). Efficiency is what is
reached of the cores that a row can use: its rate over that of one device on one core, times the
lesser of devices and cores. Memory: resident megabytes over many small updates. Beside these, a
model on paper of 8 to 1,024 accelerators; no such machine was measured.

`python -m benchmarks.scaling [--quick]`
"""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import finish
from sgjax.devices import available_cores

LAYOUTS = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2))
"""Devices and processes of the rows."""

INTERCONNECTS = {
    "H100, 8 a node: NVLink, NDR InfiniBand": (8, 450e9, 50e9),
    "TPU v5p: ICI": (1024, 600e9, 600e9),
}
"""Devices of a node, and bytes a second each way of one device, within it and beyond: NVIDIA's H100
data sheet (NVLink 900 GB/s both ways), ConnectX-7 (400 Gb/s), Google's v5p page (4,800 Gb/s)."""

LATENCY = 5e-6
"""Seconds of one message, assumed."""

PINNED = """import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes another program, on one core."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Few updates of a small network on a small study, few rows; under a minute on idle cores."""
    batch: int = 1024
    """Simulations per update: on each device (weak) or in all (strong)."""
    width: int = 256
    """Of the network, `for_study`'s by default."""
    steps: int = 12
    """Updates per timing."""
    rounds: int = 7
    """Repeats, of which medians are taken."""
    memory_steps: int = 100_000
    """Small updates over which memory is watched."""
    accelerator_seconds: float = 0.01
    """Of an update on one accelerator, in the model on paper: assumed, not measured."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Measures all rows and prints the tables."""
    layouts, kinds = LAYOUTS, ("weak", "strong")
    if options.quick:
        small = {"batch": 256, "width": 32, "steps": 8, "rounds": 3, "memory_steps": 1000}
        options = dataclasses.replace(options, **small)
        layouts, kinds = ((1, 1), (2, 2)), ("weak",)
        # Most of a short run is compiling.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # what all processes need is made once
        rows = [measure(options, *layout, kind) for kind in kinds for layout in layouts]
        small = {
            "kind": "memory",
            "small": True,
            "batch": 64,
            "width": 8,
            "steps": options.memory_steps,
        }
        memory = launch([small], 1)
    cores = available_cores()
    for row in rows:
        row["efficiency"] = row["rate"] / rows[0]["rate"] / min(row["devices"], cores)
    result = dataclasses.asdict(options) | {
        "cores": cores,
        "rows": rows,
        "memory": memory,
        "model": model(4 * rows[0]["weights"], options.accelerator_seconds),
    }
    show(result)
    finish("scaling", result, store=options.store and not options.quick)


def measure(options: Options, devices: int, processes: int, kind: str) -> dict[str, Any]:
    """The row of so many devices, over so many processes."""
    batch = options.batch * (devices if kind == "weak" else 1)
    asked: dict[str, Any] = {"kind": "time", "batch": batch, "small": options.quick}
    asked |= {name: getattr(options, name) for name in ("width", "steps", "rounds")}
    tasks = [asked]
    if processes > 1:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
        shared = asked | {"coordinator": address, "processes": processes}
        tasks = [shared | {"process": number} for number in range(processes)]
    found = launch(tasks, devices // processes)
    seconds = float(np.median(found["seconds"]))
    row = {"kind": kind, "devices": devices, "processes": processes, "batch": batch}
    return row | {"seconds": seconds, "rate": batch / seconds, "weights": found["weights"]}


def launch(asked: list[dict[str, Any]], devices: int) -> dict[str, Any]:
    """Starts a process for each task, with so many devices each; gives what the first finds.

    One device by itself is kept to one core, as XLA would spread its operations over all.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    running = []
    for number, task in enumerate(asked):
        command = [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(task)]
        if devices == 1 and cores:
            command = [sys.executable, "-c", PINNED, str(cores[number % len(cores)]), *command]
        running.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=Path(__file__).parents[1],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        printed = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, printed, strict=True):
        if process.returncode != 0:
            raise SystemExit(f"A process failed:\n{errors}")
    return json.loads(printed[0][0].splitlines()[-1])


def model(gradient_bytes: int, step_seconds: float) -> list[dict[str, Any]]:
    """Efficiency on paper of weak scaling: one all-reduce of the gradient, overlapped by nothing.

    Within a node and then between nodes, each of n members: 2 log2(n) messages, and 2 (n - 1) / n
    of the bytes through every link (Rabenseifner, 2004); between nodes each device carries its
    share of the gradient.
    """
    table = []
    for name, (node, inside, outside) in INTERCONNECTS.items():
        for devices in (8, 64, 256, 1024):
            near = min(devices, node)
            far = devices // near
            seconds = _all_reduce(near, gradient_bytes, inside)
            seconds += _all_reduce(far, gradient_bytes / near, outside)
            table.append(
                {
                    "interconnect": name,
                    "devices": devices,
                    "all_reduce_microseconds": 1e6 * seconds,
                    "efficiency": step_seconds / (step_seconds + seconds),
                }
            )
    return table


def _all_reduce(members: int, size: float, rate: float) -> float:
    return 2 * math.log2(members) * LATENCY + 2 * (members - 1) / members * size / rate


def show(result: dict[str, Any]) -> None:
    """The three tables."""
    console = Console()
    title = f"Training on {result['cores']} cores, {result['rows'][0]['weights']:,} weights"
    table = Table(title=title)
    for column in ("", "devices", "processes", "batch", "ms/update", "simulations/s", "efficiency"):
        table.add_column(column)
    for row in result["rows"]:
        table.add_row(
            row["kind"],
            str(row["devices"]),
            str(row["processes"]),
            f"{row['batch']:,}",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['rate']:,.0f}",
            f"{row['efficiency']:.0%}",
        )
    console.print(table)
    resident, steps = result["memory"]["resident_mb"], result["memory"]["steps"]
    console.print(
        f"resident memory after {steps // 10:,} and {steps:,} updates: {resident[0]:.1f} and "
        f"{resident[-1]:.1f} MB"
    )
    paper = Table(
        title=f"On paper: {4 * result['rows'][0]['weights'] / 1e6:.1f} MB of gradient, "
        f"{1e3 * result['accelerator_seconds']:g} ms an update"
    )
    for column in ("interconnect", "devices", "all-reduce, us", "efficiency"):
        paper.add_column(column)
    for row in result["model"]:
        paper.add_row(
            row["interconnect"],
            f"{row['devices']:,}",
            f"{row['all_reduce_microseconds']:.0f}",
            f"{row['efficiency']:.1%}",
        )
    console.print(paper)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
