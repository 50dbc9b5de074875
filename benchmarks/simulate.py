"""How fast are ensembles simulated, and how far is that from the limit of the machine?

Every row of a table reaches the same error: of each method the cheapest setting is taken whose 99 %
quantile over 256 simulations (64 where stiff) stays below the tolerance (largest difference to
float64 over times and states, in units of each state's largest value). Then all rows run in turn,
round after round, in one process on one core; times are CPU times of the process (wall time on an
accelerator), ratios are medians of the rounds' ratios to the C kernel (`benchmarks/c_kernel.py`).
Compilation and memory are told apart. A row that would take more than eight seconds a round is left
out and says so; scipy, one simulation at a time, is measured on 16.
`python -m benchmarks.simulate [--quick]`
"""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX counts the cores, and before equinox decides how errors are raised: no row shall be
# slowed down by callbacks to the host.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["EQX_ON_ERROR"] = "nan"

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import rival_solvers
from benchmarks.c_kernel import compile_kernel
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.record import finish
from sgjax.devices import jit
from sgjax.priors import sample_prior
from sgjax.solvers import AdaptiveSteps, FixedSteps, GridSteps, LaneSteps

LONGEST = 8.0
"""Seconds a round beyond which a row is left out."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """SIR alone, 1,024 simulations; under a minute."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Which to measure."""
    batch: tuple[int, ...] = (1024, 8192, 65536)
    """Numbers of simulations at once."""
    rounds: int = 5
    """Repeats, of which medians are taken."""
    seed: int = 0
    """Of the prior draws."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


Run = Callable[[dict[str, Any]], Any]
"""Parameters to states: a list of arrays, simulations x times x their shape."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A row: settings from cheap to dear, each a label and what runs it."""

    settings: Iterator[tuple[str, Run]]
    part: int | None = None
    """So many simulations are measured instead of all."""


def main(options: Options) -> None:
    """Measures each problem at each batch size and prints the tables."""
    if options.quick:
        options = dataclasses.replace(options, rounds=3, batch=(1024,), problems=("SIR",))
    tables = []
    for name in options.problems:
        chosen = choose_settings(PROBLEMS[name], options)
        slow: dict[str, float] = {}
        for size in options.batch:
            rows = measure(PROBLEMS[name], chosen, size, options, slow)
            tables.append({"problem": name, "batch": size, "rows": rows})
            show(tables[-1], PROBLEMS[name].tolerance)
    result = {"rounds": options.rounds, "seed": options.seed, "tables": tables}
    whole = not options.quick and options.problems == tuple(PROBLEMS)
    finish("simulate", result, store=options.store and whole)


def methods(problem: Problem, quick: bool) -> dict[str, Method]:
    """The rows; where `quick`, settings that will do."""
    implicit = problem.field is None
    # Beyond these, steps for stiff systems meet the rounding of float32.
    digits = (4,) if quick else range(3, 6 if implicit else 8)
    tolerances = [(10.0**-n, 10.0 ** -(n + 3)) for n in digits]
    substeps = (4,) if quick else (1, 2, 3, 4, 6, 8, 12, 16, 32)
    own: Any = problem.simulator.solver
    rows: dict[str, Iterator[tuple[str, Run]] | None] = {"C": _kernels(problem, substeps)}
    if isinstance(own, GridSteps):
        label = f"sgjax, default ({getattr(own, 'method', '')})"
        rows[label] = _of_sgjax(problem, {f"{n} sub-steps": _with(own, n) for n in substeps})
    else:
        rows["sgjax, default"] = _of_sgjax(problem, {"as it ships": own})
    lanes = {f"rtol {r:.0e}": LaneSteps(r, a) for r, a in tolerances}
    adaptive = {f"rtol {r:.0e}": AdaptiveSteps(r, a, implicit) for r, a in tolerances}
    if not implicit:
        rows["sgjax LaneSteps"] = _of_sgjax(problem, lanes)
        rows["diffrax, vmap, fixed"] = rival_solvers.diffrax_fixed(problem, substeps)
    rows["diffrax, vmap, adaptive"] = _of_sgjax(problem, adaptive)
    found = {name: Method(settings) for name, settings in rows.items() if settings is not None}
    if not implicit and importlib.util.find_spec("torchdiffeq"):
        found["torchdiffeq dopri5"] = Method(rival_solvers.torchdiffeq(problem, tolerances))
    kind = "LSODA" if implicit else "RK45"
    if importlib.util.find_spec("scipy"):
        found[f"scipy {kind}"] = Method(rival_solvers.scipy(problem, kind, tolerances), 16)
    return found


def _with(solver: GridSteps, num_substeps: int) -> Any:
    return dataclasses.replace(solver, num_substeps=num_substeps)  # pyright: ignore[reportCallIssue]


def _of_sgjax(problem: Problem, solvers: dict[str, Any]) -> Iterator[tuple[str, Run]]:
    for label, solver in solvers.items():
        yield label, _compiled(dataclasses.replace(problem.simulator, solver=solver))  # pyright: ignore[reportCallIssue]


def _compiled(simulator: Any) -> Run:
    def run(thetas):
        keys = jax.random.split(jax.random.key(0), jax.tree.leaves(thetas)[0].shape[0])
        return jax.tree.leaves(simulator.simulate_batch(keys, thetas).states)

    return jit(run)


def _kernels(problem: Problem, substeps: tuple[int, ...]) -> Iterator[tuple[str, Run]] | None:
    if problem.field is None:
        return None
    simulator = problem.simulator
    ts = np.asarray(simulator.ts)
    gap = float(ts[0] - simulator.t0)
    shapes = _draw(problem, 0, 2)
    counts = [np.asarray(shapes[name])[0].size for name in problem.parameters]
    width = sum(leaf[0].size for leaf in rival_solvers.starts(simulator, shapes))
    kernel = compile_kernel(problem.field, width, sum(counts))
    if kernel is None:
        print("There is no C compiler (cc): no row for the limit, and no ratios to it.", flush=True)
        return None
    rows = lambda array: np.asarray(array, np.float32).reshape(array.shape[0], -1).T

    @rival_solvers.once
    def arrays(thetas) -> tuple[np.ndarray, np.ndarray]:
        y0 = [rows(leaf) for leaf in rival_solvers.starts(simulator, thetas)]
        return np.concatenate(y0), np.concatenate([rows(thetas[n]) for n in problem.parameters])

    def settings() -> Iterator[tuple[str, Run]]:
        for count in substeps:
            run = lambda thetas, n=count: kernel(*arrays(thetas), ts.size, gap, n)
            yield f"{count} sub-steps", run

    return settings()


def _draw(problem: Problem, seed: int, size: int) -> dict[str, Any]:
    draw = jax.vmap(lambda key: sample_prior(key, problem.simulator.prior))
    return jax.jit(draw)(jax.random.split(jax.random.key(seed), size))


def _states(found: Any) -> np.ndarray:
    """Simulations x times x states."""
    if isinstance(found, np.ndarray):
        return found.transpose(2, 0, 1)
    leaves = [np.asarray(leaf) for leaf in found]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


def exact_states(problem: Problem, thetas: dict[str, Any]) -> np.ndarray:
    """In float64, to more digits than any row is asked for."""
    if problem.field is None:
        ((_, precisely),) = rival_solvers.scipy(problem, "LSODA", [(1e-10, 1e-14)])
        return _states(precisely(thetas))
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(value), float) for name, value in thetas.items()}
        precise: Any = dataclasses.replace(problem.simulator, solver=FixedSteps(128))  # pyright: ignore[reportCallIssue]
        return _states(_compiled(precise)(wide))


def choose_settings(
    problem: Problem, options: Options
) -> dict[str, tuple[str, Run, float, int | None]]:
    """By row, the cheapest setting that reaches the tolerance, and its error."""
    thetas = _draw(problem, options.seed + 1, problem.num_judged)
    exact = exact_states(problem, thetas)
    scale = np.abs(exact).max(axis=1, keepdims=True)
    chosen = {}
    for name, method in methods(problem, options.quick).items():
        count = method.part or problem.num_judged
        few = {key: value[:count] for key, value in thetas.items()}
        for label, run in method.settings:
            error = (np.abs(_states(run(few)) - exact[:count]) / scale[:count]).max(axis=(1, 2))
            error = np.where(np.isnan(error), np.inf, error)
            quantile = float(np.quantile(error, 0.99, method="higher"))
            if quantile <= problem.tolerance:
                chosen[name] = (label, run, quantile, method.part)
                break
        else:
            print(f"{name}: no setting reaches {problem.tolerance:g}", flush=True)
    return chosen


def _now() -> float:
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def measure(
    problem: Problem, chosen: dict, size: int, options: Options, slow: dict[str, float]
) -> list[dict[str, Any]]:
    """Runs the rows in turn; seconds, ratios to C, compilation and memory apart.

    `slow` keeps the seconds a simulation of each row from batch size to batch size.
    """
    thetas = jax.block_until_ready(_draw(problem, options.seed + 2, size))
    runs, rows = {}, {}
    for name, (label, run, error, part) in chosen.items():
        count = part or size
        rows[name] = {"row": name, "setting": label, "error_q99": error, "measured_on": count}
        if slow.get(name, 0.0) * count > LONGEST:
            rows[name]["left_out"] = f"would take {slow[name] * count:.0f} s a round"
            continue
        given = {key: value[:count] for key, value in thetas.items()}
        runs[name], made = _prepared(run, given)
        rows[name] |= made
    seconds = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = _now()
            jax.block_until_ready(run())
            seconds[name].append(_now() - start)
    limit = np.asarray(seconds["C"]) / size if "C" in seconds else None
    for name in runs:
        each = np.asarray(seconds[name]) / rows[name]["measured_on"]
        slow[name] = float(np.median(each))
        rows[name]["simulations_per_second"] = 1 / slow[name]
        rows[name]["ratio_to_c"] = None if limit is None else float(np.median(each / limit))
    return list(rows.values())


def _prepared(run: Run, thetas: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    if not hasattr(run, "lower"):
        run(thetas)
        return lambda: run(thetas), {}
    start = time.perf_counter()
    program: Any = run.lower(thetas).compile()  # pyright: ignore[reportFunctionMemberAccess]
    seconds = time.perf_counter() - start
    jax.block_until_ready(program(thetas))
    memory = program.memory_analysis()
    megabytes = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
    return lambda: program(thetas), {"compile_seconds": seconds, "megabytes": megabytes}


def show(table: dict[str, Any], tolerance: float) -> None:
    """One table."""
    shown = Table(
        title=f"{table['problem']}, {table['batch']:,} simulations, one core, error {tolerance:g}"
    )
    for column in ("row", "setting", "error", "simulations/s", "x C", "compilation, s", "MiB"):
        shown.add_column(column)
    for row in table["rows"]:
        rate = row.get("simulations_per_second")
        ratio = row.get("ratio_to_c")
        shown.add_row(
            row["row"],
            row["setting"],
            f"{row['error_q99']:.0e}",
            row["left_out"] if rate is None else f"{rate:,.0f}",
            "" if ratio is None else f"{ratio:.1f}",
            f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
            f"{row['megabytes']:.1f}" if "megabytes" in row else "",
        )
    Console().print(shown)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
