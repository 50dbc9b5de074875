"""How large is the error of the shipped number of sub-steps, over the prior?

For every mechanism that ships with steps on a grid, and every mechanism of the ready-made studies
with its own prior: the error of n sub-steps against 2n over 4,096 prior draws (each channel in
units of its own largest value), and the largest error of 32 draws against a float64 adaptive
solution. A full run writes the table that the package ships. A run of a few mechanisms writes their
rows into it; the result tells of each when and on what it was made.
`python -m benchmarks.step_errors [--quick] [--only CartPole]`
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import circumstances, finish, kept
from sgjax import simulators
from sgjax.checkpoint import write_json
from sgjax.simulators import AbstractODESimulator, calibrate_steps
from sgjax.solvers import GridSteps
from sgjax.studies import READY_MADE

NAME = "step_errors"
SHIPPED = Path(simulators.__file__).parent / "step_errors.json"
TOLERANCE = 1e-3
QUICK = ("ExponentialDecay", "SIR")


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Two mechanisms and 256 draws, under a minute."""
    only: tuple[str, ...] = ()
    """Mechanisms to measure, the rows of the others staying as they are kept; by default all."""
    seed: int = 3
    """Of the prior draws."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Measures each mechanism and prints the table."""
    mechanisms = _mechanisms()
    chosen = QUICK if options.quick else options.only or tuple(mechanisms)
    part = bool(options.only) and not options.quick
    before = kept(NAME) if part else {}
    found = {row["name"]: row for row in before.get("rows", [])}
    for name in chosen:
        found[name] = _measure(name, mechanisms[name], options)
        found[name] |= {"made": circumstances()} if part else {}
        print(f"{name}: {found[name]}", flush=True)
    rows = [found[name] for name in mechanisms if name in found]
    result = before | {"tolerance": TOLERANCE, "seed": options.seed, "rows": rows}
    _show(result)
    store = options.store and not options.quick
    finish(NAME, result, store=store)
    if store:  # last, so that the commit told is not one that this has changed
        table = [{key: row[key] for key in row if key != "made"} for row in rows]
        write_json(SHIPPED, {row["name"]: row for row in table})


def _mechanisms() -> dict[str, AbstractODESimulator]:
    found: dict[str, AbstractODESimulator] = {}
    for name, cls in vars(simulators).items():
        if isinstance(cls, type) and issubclass(cls, AbstractODESimulator):
            solver = getattr(cls, "solver", None)
            if isinstance(solver, GridSteps):
                found[name] = cls()  # pyright: ignore[reportAbstractUsage, reportCallIssue]
    for name, ready in READY_MADE.items():
        for mechanism, simulator in ready.study().mechanisms.items():
            assert isinstance(simulator, AbstractODESimulator)
            found[f"{name}: {mechanism}"] = simulator
    return found


def _measure(name: str, simulator: AbstractODESimulator, options: Options) -> dict[str, Any]:
    assert isinstance(simulator.solver, GridSteps)
    found = calibrate_steps(
        simulator,
        jax.random.key(options.seed),
        tolerance=float("inf"),
        candidates=(simulator.solver.num_substeps,),
        num_draws=256 if options.quick else 4096,
        num_references=8 if options.quick else 32,
    )
    ((num_substeps, *quantiles),) = found.table
    errors = dict(zip(("median", "q99", "q999", "largest"), quantiles, strict=True))
    return {
        "name": name,
        "method": getattr(simulator.solver, "method", type(simulator.solver).__name__),
        "num_substeps": num_substeps,
        **errors,
        "against_float64": found.reference_error,
    }


def _show(result: dict[str, Any]) -> None:
    table = Table(title="Error of the shipped sub-steps, in units of each channel's largest value")
    columns = ("median", "q99", "q999", "largest", "against_float64")
    for column in ("mechanism", "method", "sub-steps", *columns):
        table.add_column(column)
    for row in result["rows"]:
        cells = [f"{row[column]:.1e}" for column in columns]
        table.add_row(row["name"], row["method"], str(row["num_substeps"]), *cells)
    console = Console()
    console.print(table)
    worst = max(result["rows"], key=lambda row: row["q999"])
    console.print(f"largest 99.9 % quantile: {worst['q999']:.1e} ({worst['name']})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
