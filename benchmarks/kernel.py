"""How fast is an ensemble solved as one kernel, and how far is that from the arithmetic limit?

Fixed Tsit5 steps in single precision. Lorenz-63 is the problem of Utkarsh et al. (2024): 1,000
steps to t = 1, of which the last is saved, rho uniform below 21. SIR runs 160 days, 4 steps and a
saved state a day. Beside the kernel stands the same solve without one. Times are medians of repeats
with parameters that are on the device already; compilation is apart. The share of the limit is the
operations per solve, counted in the equations and the steps, times solves per second, over the
peak of the device, where a fused multiply-add is two operations.
`python -m benchmarks.kernel [--quick] [--peak 67]`
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["EQX_ON_ERROR"] = "nan"  # Before equinox is imported: no callbacks to the host.

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import finish
from sgjax.simulators import SIR, Lorenz63
from sgjax.simulators.lorenz63 import Lorenz63State
from sgjax.simulators.sir import SIRState
from sgjax.solvers import TABLEAUS, FixedSteps, step_grid
from sgjax.solvers.kernel import solve_in_kernel
from sgjax.solvers.pointwise import count_operations
from sgjax.solvers.runge_kutta import runge_kutta_step

STEP = functools.partial(runge_kutta_step, TABLEAUS["tsit5"])


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """300 simulations of 3 saved times: the kernel, interpreted where need be, against diffrax."""
    peak: float = 67.0
    """Peak of the device in TFLOP/s of single precision; 67 for an H200."""
    batch: tuple[int, ...] = (8192, 65536, 1_000_000, 8_400_000)
    """Numbers of simulations at once."""
    repeats: int = 15
    """Of which medians are taken."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Equations, the prior of their parameters, and where they are solved."""

    field: Callable
    draw: Callable
    """`(key, batch) -> (state, parameters)`."""
    ts: np.ndarray
    num_substeps: int

    def solvers(self, interpret: Any = None) -> dict[str, Callable]:
        """`(state, parameters) -> trajectory`, by name."""
        steps = FixedSteps(self.num_substeps)
        knots, kept = step_grid(0.0, self.ts)

        def plain(field, state, args):
            return steps.solve(field, state, 0.0, self.ts, args)

        def kernel(state, args):
            return solve_in_kernel(
                STEP, self.field, state, knots, kept, self.num_substeps, args, plain,
                interpret=interpret,
            )  # fmt: skip

        return {"kernel": kernel, "diffrax": functools.partial(plain, self.field)}

    @property
    def operations(self) -> int:
        """Of one simulation."""
        steps = (step_grid(0.0, self.ts)[0].size - 1) * self.num_substeps
        return steps * count_operations(STEP, self.field, *self.draw(jax.random.key(0), 2))


def _lorenz(key, size: int):
    ones = jnp.ones(size)
    rho = jax.random.uniform(key, (size,), maxval=21.0)
    return Lorenz63State(ones, 0 * ones, 0 * ones), {"rho": rho}


def _outbreak(key, size: int):
    rates = jax.random.uniform(key, (2, size))
    ones = jnp.ones(size)
    thetas = {"beta": 0.2 + 0.4 * rates[0], "gamma": 0.05 + 0.1 * rates[1]}
    return SIRState(999.0 * ones, ones, 0 * ones), thetas


PROBLEMS = {
    "Lorenz-63": Problem(
        lambda t, y, theta: Lorenz63().vector_field(t, y, {"sigma": 10.0, "beta": 8 / 3, **theta}),
        _lorenz,
        np.ones(1),
        1000,
    ),
    "SIR": Problem(SIR().vector_field, _outbreak, np.arange(1.0, 161.0), 4),
}


def main(options: Options) -> None:
    """Compares the two, and times them where there is an accelerator."""
    here = jax.default_backend() != "cpu"
    differences = {name: difference(problem, here) for name, problem in PROBLEMS.items()}
    for name, value in differences.items():
        print(f"{name}: the kernel differs from diffrax by {value:.0e} of the largest state")
    rows = []
    if not here:
        print("There is no accelerator: no times. A CPU has no kernel; it was interpreted.")
    elif not options.quick:
        for name, problem in PROBLEMS.items():
            for size in options.batch:
                rows += measure(name, problem, size, options)
        show(rows, options.peak)
    result = {"peak_tflops": options.peak, "differences": differences, "rows": rows}
    finish("kernel", result, store=options.store and bool(rows))


def difference(problem: Problem, here: bool) -> float:
    """Between the kernel and diffrax, over simulations, the first times and states."""
    short = dataclasses.replace(problem, ts=problem.ts[:3], num_substeps=4)
    if problem.ts.size == 1:
        short = dataclasses.replace(short, ts=np.asarray([0.01, 0.02, 0.03]))
    state, thetas = short.draw(jax.random.key(0), 300)
    solvers = short.solvers(None if here else "cuda")
    one, other = (np.stack(jax.jit(solve)(state, thetas)) for solve in solvers.values())
    return float(np.abs(one - other).max() / np.abs(other).max())


def measure(name: str, problem: Problem, size: int, options: Options) -> list[dict[str, Any]]:
    """Compile time, and the median time of a solve of all simulations, with and without kernel."""
    state, thetas = jax.block_until_ready(problem.draw(jax.random.key(1), size))
    rows = []
    for way, solve in problem.solvers().items():
        start = time.perf_counter()
        compiled = jax.jit(solve).lower(state, thetas).compile()
        compile_seconds = time.perf_counter() - start
        jax.block_until_ready(compiled(state, thetas))
        seconds = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(state, thetas))
            seconds.append(time.perf_counter() - start)
        solves = size / statistics.median(seconds)
        rows.append(
            {
                "problem": name,
                "batch": size,
                "way": way,
                "milliseconds": 1e3 * statistics.median(seconds),
                "solves_per_second": solves,
                "operations_per_solve": problem.operations,
                "share_of_peak": solves * problem.operations / (1e12 * options.peak),
                "compile_seconds": compile_seconds,
            }
        )
    return rows


def show(rows: list[dict[str, Any]], peak: float) -> None:
    """The table."""
    table = Table(title=f"{jax.devices()[0].device_kind}, peak {peak:g} TFLOP/s")
    for column in ("problem", "batch", "way", "ms", "solves/s", "of the peak", "compiled in, s"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["problem"],
            f"{row['batch']:,}",
            row["way"],
            f"{row['milliseconds']:.3g}",
            f"{row['solves_per_second']:.2e}",
            f"{row['share_of_peak']:.1%}",
            f"{row['compile_seconds']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
