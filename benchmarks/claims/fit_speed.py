"""Fitting ten thousand series: all at once by `sgjax.references.fit`, or SciPy in a loop?

SIR with three unknowns, 40 daily values with Gaussian errors, as many starts inside the same box.
SciPy's `least_squares` (trust region, with bounds) calls a compiled solve of one series and its
forward-mode Jacobian, so that it pays for no slow simulator; it fits fewer series, and its time is
scaled up. Quality: by how much each falls short of the better of the two, in log likelihood.

`python -m benchmarks.claims.fit_speed [--quick]`
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import tyro
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

import sgjax as sg
from benchmarks.record import finish
from sgjax._types import Theta
from sgjax.references import fit

LOW, HIGH = np.array([0.2, 0.1, 5.0]), np.array([0.6, 0.3, 50.0])
NAMES = ("beta", "gamma", "initial_infectious")
SD = 100.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Few series; under a minute."""
    series: int = 10_000
    """Fitted at once."""
    looped: int = 200
    """Fitted by SciPy, the first of them."""
    starts: int = 4
    """For each series."""
    seed: int = 0
    """Of the simulations and of SciPy's starts."""


def main(options: Options) -> None:
    """Fits both ways, prints the table and the line."""
    if options.quick:
        options = dataclasses.replace(options, series=256, looped=8)
    prior = {name: dist.Uniform(a, b) for name, a, b in zip(NAMES, LOW, HIGH, strict=True)}
    study = sg.Study(
        sg.simulators.SIR(prior=prior, population=1e5, ts=range(1, 41)),
        sg.observations.Gaussian(sd=SD, prior={}),
        sg.Estimate(),
    )
    observed = (
        sg.SimulationStream(study, jax.random.key(options.seed), 64).take(options.series).observed
    )
    start = time.perf_counter()
    fit(study, "SIR", observed, jax.random.key(1), starts=options.starts)  # compiles
    first, start = time.perf_counter() - start, time.perf_counter()
    found = fit(study, "SIR", observed, jax.random.key(1), starts=options.starts)
    second = time.perf_counter() - start
    start = time.perf_counter()
    values = np.asarray(observed.values, np.float64)[: options.looped, :, 0]
    looped = loop(study, values, options)
    own = (time.perf_counter() - start) / options.looped
    constant = values.shape[1] * np.log(SD * np.sqrt(2 * np.pi))
    ours, theirs = found.log_likelihood[: options.looped], -looped - constant
    best = np.maximum(ours, theirs)
    each = second / options.series
    result = dataclasses.asdict(options) | {
        "compile_seconds": first - second,
        "seconds_per_series": {"sgjax": each, "scipy": own},
        "times_as_fast": own / each,
        "converged": float(found.converged.mean()),
        "short_of_best": {
            name: {"mean": float(np.mean(best - value)), "largest": float(np.max(best - value)),
                   "over_0.01": float(np.mean(best - value > 0.01))}
            for name, value in (("sgjax", ours), ("scipy", theirs))
        },
    }  # fmt: skip
    table = Table(title=f"Fits of {options.series:,} series, {options.starts} starts each")
    for column in ("", "ms a series", "short of the best by more than 0.01"):
        table.add_column(column)
    for name, value in result["seconds_per_series"].items():
        short = result["short_of_best"][name]["over_0.01"]
        table.add_row(name, f"{1e3 * value:.2f}", f"{short:.1%} of {options.looped}")
    Console().print(table)
    finish("fit_speed", result, store=not options.quick)


def loop(study: sg.Study, values: np.ndarray, options: Options) -> np.ndarray:
    """Half the least sum of squares of each series, in units of the noise."""
    simulator = study.mechanisms["SIR"]

    def course(point: jax.Array) -> jax.Array:
        theta: Theta = {name: point[index] for index, name in enumerate(NAMES)}
        return simulator.simulate(jax.random.key(0), theta).values[:, 0]

    def both(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        with sg.solvers.forward_mode():
            return course(point), jax.jacfwd(course)(point)

    compiled = jax.jit(both)
    compiled(jnp.asarray(LOW))
    random, best = np.random.default_rng(options.seed), []
    for row in values:
        costs = []
        for start in random.uniform(LOW, HIGH, (options.starts, 3)):
            found = least_squares(
                lambda point, row=row: (np.asarray(compiled(point)[0], float) - row) / SD,
                start,
                jac=lambda point: np.asarray(compiled(point)[1], float) / SD,  # pyright: ignore[reportArgumentType]
                bounds=(LOW, HIGH),
                x_scale=HIGH - LOW,
            )
            costs.append(found.cost)
        best.append(min(costs))
    return np.array(best)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
