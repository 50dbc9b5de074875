"""How fast are ensembles simulated, and how far is that from the limit of the machine?

Every row of a table reaches the same error: of each method the cheapest setting is taken whose 99 %
quantile over 256 simulations stays below the tolerance (largest difference to float64 over times
and states, in units of each state's largest value). Then all rows run in turn, round after round,
in one process on one core; times are CPU times of the process, ratios are medians of the rounds'
ratios to the C kernel (`benchmarks/c_kernel.py`). `python -m benchmarks.simulate [--quick]`
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX counts the cores, and before equinox decides how errors are raised: no row shall be
# slowed down by callbacks to the host.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["EQX_ON_ERROR"] = "nan"

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.c_kernel import compile_kernel
from benchmarks.record import finish
from sgjax.priors import sample_prior
from sgjax.simulators import SIR, AbstractODESimulator, Lorenz63, LotkaVolterra
from sgjax.solvers import AdaptiveSteps, FixedSteps, LaneSteps

NUM_JUDGED = 256


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """SIR alone, 1,024 simulations; under a minute."""
    tolerance: float = 1e-3
    """The error that every row must reach, at the 99 % quantile."""
    batch: tuple[int, ...] = (1024, 8192)
    """Numbers of simulations at once."""
    rounds: int = 9
    """Repeats, of which medians are taken."""
    seed: int = 0
    """Of the prior draws."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mechanism and its equations in C."""

    simulator: AbstractODESimulator
    field: str
    parameters: tuple[str, ...]


PROBLEMS = {
    # The priors of sbibm (Lueckmann et al., 2021).
    "SIR": Problem(
        SIR(
            population=1e6,
            prior={
                "beta": dist.LogNormal(np.log(0.4), 0.5),
                "gamma": dist.LogNormal(np.log(0.125), 0.2),
            },
            ts=160 / 50 * np.arange(1, 51),
        ),
        "float i = p[0][v] * y[0][v] * y[1][v] * 1e-6f, r = p[1][v] * y[1][v];"
        "f[0][v] = -i; f[1][v] = i - r; f[2][v] = r;",
        ("beta", "gamma"),
    ),
    "Lotka-Volterra": Problem(
        LotkaVolterra(
            initial_prey=30.0,
            initial_predator=1.0,
            prior={
                "alpha": dist.LogNormal(-0.125, 0.5),
                "beta": dist.LogNormal(-3.0, 0.5),
                "gamma": dist.LogNormal(-0.125, 0.5),
                "delta": dist.LogNormal(-3.0, 0.5),
            },
            ts=20 / 50 * np.arange(1, 51),
        ),
        "float m = y[0][v] * y[1][v];"
        "f[0][v] = p[0][v] * y[0][v] - p[1][v] * m; f[1][v] = p[3][v] * m - p[2][v] * y[1][v];",
        ("alpha", "beta", "gamma", "delta"),
    ),
    "Lorenz-63": Problem(
        Lorenz63(),
        "f[0][v] = p[0][v] * (y[1][v] - y[0][v]);"
        "f[1][v] = y[0][v] * (p[1][v] - y[2][v]) - y[1][v];"
        "f[2][v] = y[0][v] * y[1][v] - p[2][v] * y[2][v];",
        ("sigma", "rho", "beta"),
    ),
}

Run = Callable[[dict[str, Any]], Any]
"""Parameters to states: a tuple of arrays simulations x times (the kernel's turned later)."""


def main(options: Options) -> None:
    """Measures each problem at each batch size and prints the tables."""
    problems = PROBLEMS
    if options.quick:
        problems = {"SIR": PROBLEMS["SIR"]}
        options = dataclasses.replace(options, rounds=3, batch=(1024,))
    tables = []
    for name, problem in problems.items():
        chosen = choose_settings(problem, options)
        for size in options.batch:
            tables.append(
                {"problem": name, "batch": size, "rows": measure(problem, chosen, size, options)}
            )
            show(tables[-1])
    result = {"tolerance": options.tolerance, "rounds": options.rounds, "tables": tables}
    finish("simulate", result, store=options.store and not options.quick)


def methods(problem: Problem, quick: bool) -> dict[str, Iterator[tuple[str, Run]]]:
    """By row, the settings to try, from cheap to dear; one that will do where `quick`."""
    tolerances = [(10.0**-n, 10.0 ** -(n + 3)) for n in ((4,) if quick else range(3, 8))]
    substeps = (4,) if quick else (1, 2, 4, 8, 16, 32)

    def sgjax(settings: list[tuple[str, Any]]) -> Iterator[tuple[str, Run]]:
        for label, solver in settings:
            simulator: Any = dataclasses.replace(problem.simulator, solver=solver)  # pyright: ignore[reportCallIssue]
            yield label, _compiled(simulator)

    rows = {
        "C": _kernels(problem, substeps),
        "sgjax FixedSteps": sgjax([(f"{n} sub-steps", FixedSteps(n)) for n in substeps]),
        "sgjax LaneSteps": sgjax([(f"rtol {r:.0e}", LaneSteps(r, a)) for r, a in tolerances]),
        "diffrax, vmap, adaptive": sgjax(
            [(f"rtol {r:.0e}", AdaptiveSteps(r, a)) for r, a in tolerances]
        ),
        "diffrax, vmap, fixed": _stock_fixed(problem, substeps),
    }
    return {name: settings for name, settings in rows.items() if settings is not None}


def _compiled(simulator: AbstractODESimulator) -> Run:
    def run(thetas):
        keys = jax.random.split(jax.random.key(0), jax.tree.leaves(thetas)[0].shape[0])
        return tuple(simulator.simulate_batch(keys, thetas).states)

    return jax.jit(run)


def _stock_fixed(problem: Problem, substeps: tuple[int, ...]) -> Iterator[tuple[str, Run]]:
    simulator = problem.simulator
    ts = np.asarray(simulator.ts)

    def solve(theta, count: int) -> tuple:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: simulator.vector_field(jnp.asarray(t), y, args)),
            diffrax.Tsit5(),
            t0=simulator.t0,
            t1=ts[-1],
            dt0=(ts[-1] - simulator.t0) / (ts.size * count),
            y0=jax.tree.map(jnp.asarray, simulator.initial_state(theta)),
            args=theta,
            saveat=diffrax.SaveAt(ts=jnp.asarray(ts)),
            max_steps=ts.size * count + 1,
        )
        assert solution.ys is not None
        return tuple(solution.ys)

    for count in substeps:
        yield f"{count} sub-steps", jax.jit(jax.vmap(lambda theta, n=count: solve(theta, n)))


def _kernels(problem: Problem, substeps: tuple[int, ...]) -> Iterator[tuple[str, Run]] | None:
    simulator = problem.simulator
    ts = np.asarray(simulator.ts)
    gap = float(ts[0] - simulator.t0)
    starts = jax.jit(jax.vmap(lambda theta: tuple(simulator.initial_state(theta))))
    num_states = len(jax.eval_shape(starts, _draw(problem, 0, 2)))
    kernel = compile_kernel(problem.field, num_states, len(problem.parameters))
    if kernel is None:
        print("There is no C compiler (cc): no row for the limit, and no ratios to it.", flush=True)
        return None

    def settings(solve: Callable) -> Iterator[tuple[str, Run]]:
        for count in substeps:
            prepared: dict[int, tuple[np.ndarray, np.ndarray]] = {}

            def run(thetas, count=count, prepared=prepared):
                # Laying the arrays out is not part of the limit.
                if id(thetas) not in prepared:
                    size = jax.tree.leaves(thetas)[0].shape[0]
                    y0 = [np.broadcast_to(np.asarray(leaf), size) for leaf in _start(thetas)]
                    given = [np.asarray(thetas[name]) for name in problem.parameters]
                    prepared[id(thetas)] = np.stack(y0), np.stack(given)
                return solve(*prepared[id(thetas)], ts.size, gap, count)

            yield f"{count} sub-steps", run

    def _start(thetas):
        return jax.vmap(lambda theta: tuple(map(jnp.float32, simulator.initial_state(theta))))(
            thetas
        )

    return settings(kernel)


def _draw(problem: Problem, seed: int, size: int) -> dict[str, Any]:
    draw = jax.vmap(lambda key: sample_prior(key, problem.simulator.prior))
    return jax.jit(draw)(jax.random.split(jax.random.key(seed), size))


def _states(found: Any) -> np.ndarray:
    """Simulations x times x states."""
    if isinstance(found, np.ndarray):
        return found.transpose(2, 0, 1)
    return np.stack([np.asarray(leaf) for leaf in found], axis=2)


def choose_settings(problem: Problem, options: Options) -> dict[str, tuple[str, Run, float]]:
    """By row, the cheapest setting that reaches the tolerance, and its error."""
    thetas = _draw(problem, options.seed + 1, NUM_JUDGED)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(value), float) for name, value in thetas.items()}
        precise: Any = dataclasses.replace(problem.simulator, solver=FixedSteps(128))  # pyright: ignore[reportCallIssue]
        exact = _states(_compiled(precise)(wide))
    scale = np.abs(exact).max(axis=1, keepdims=True)
    chosen = {}
    for name, settings in methods(problem, options.quick).items():
        for label, run in settings:
            error = (np.abs(_states(run(thetas)) - exact) / scale).max(axis=(1, 2))
            error = np.where(np.isnan(error), np.inf, error)
            quantile = float(np.quantile(error, 0.99, method="higher"))
            if quantile <= options.tolerance:
                chosen[name] = (label, run, quantile)
                break
        else:
            print(f"{name}: no setting reaches {options.tolerance:g}", flush=True)
    return chosen


def measure(problem: Problem, chosen: dict, size: int, options: Options) -> list[dict[str, Any]]:
    """Runs the rows in turn; CPU seconds, ratios to C, compile time apart."""
    thetas = jax.block_until_ready(_draw(problem, options.seed + 2, size))
    compile_seconds, seconds = {}, {name: [] for name in chosen}
    for name, (_, run, _) in chosen.items():
        start = time.perf_counter()
        jax.block_until_ready(run(thetas))
        compile_seconds[name] = time.perf_counter() - start
    for _ in range(options.rounds):
        for name, (_, run, _) in chosen.items():
            start = time.process_time()
            jax.block_until_ready(run(thetas))
            seconds[name].append(time.process_time() - start)
    limit = np.asarray(seconds["C"]) if "C" in seconds else None
    rows = []
    for name, (label, _, error) in chosen.items():
        spent = np.asarray(seconds[name])
        rows.append(
            {
                "row": name,
                "setting": label,
                "error_q99": error,
                "simulations_per_cpu_second": size / float(np.median(spent)),
                "ratio_to_c": None if limit is None else float(np.median(spent / limit)),
                "compile_seconds": compile_seconds[name],
            }
        )
    return rows


def show(table: dict[str, Any]) -> None:
    """One table."""
    shown = Table(title=f"{table['problem']}, {table['batch']:,} simulations, one core")
    for column in ("row", "setting", "error", "simulations/s", "x C", "first call, s"):
        shown.add_column(column)
    for row in table["rows"]:
        ratio = row["ratio_to_c"]
        shown.add_row(
            row["row"],
            row["setting"],
            f"{row['error_q99']:.0e}",
            f"{row['simulations_per_cpu_second']:,.0f}",
            "" if ratio is None else f"{ratio:.1f}",
            f"{row['compile_seconds']:.1f}",
        )
    Console().print(shown)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
