"""How fast is chance: stochastic simulators and count samplers against what a user would write?

Stochastic differential equations and chain-binomial epidemics, each against a hand-written
`lax.scan` that draws the same numbers, one that draws with `jax.random`, and stock diffrax. The
samplers against those of `jax.random` at mixed parameters (rates log-uniform from 0.1 to 10,000);
their quality is the p-value that (randomised) ranks of the draws within their laws are uniform.
Last, what halving the step of an epidemic changes. All rows of a table run in turn in one process
on one core; times are CPU times of the process, ratios are medians of the rounds' ratios to the
second row. `python -m benchmarks.stochastic [--quick]`
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Before JAX counts the cores, and before equinox decides how errors are raised: no row shall be
# slowed down by callbacks to the host.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["EQX_ON_ERROR"] = "nan"

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import numpyro.distributions as dist
import tyro
from jaxtyping import Array
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.record import finish
from sgjax import samplers
from sgjax._types import Prior, Times, as_times
from sgjax.priors import sample_prior
from sgjax.simulators import AbstractSDESimulator, OrnsteinUhlenbeck, StochasticSIR

SAVED, SUBSTEPS, GAP = 40, 4, 1.0
ENOUGH_SECONDS = 5.0
"""After so many timed seconds a row is left out of further rounds."""
Run = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One equation, one sampler, fewer simulations and rounds; under a minute."""
    batch: int = 8192
    """Simulations at once."""
    draws: int = 2**17
    """Of each sampler."""
    rounds: int = 15
    """Repeats, of which medians are taken; fewer for rows that take seconds."""
    seed: int = 0
    """Of parameters and noise."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


class NoisySIRState(NamedTuple):
    """Persons susceptible and infectious."""

    S: Array
    I: Array  # noqa: E741 (the field's own letter)


class NoisySIR(AbstractSDESimulator):
    """An epidemic among 10,000 whose compartments have Gaussian noise of demographic size each."""

    prior: Prior = eqx.field(
        default_factory=lambda: {"beta": dist.Uniform(0.3, 0.6), "gamma": dist.Uniform(0.1, 0.2)}
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, SAVED + 1))
    t0: float = 0.0
    num_substeps: int = SUBSTEPS

    channels = ("infectious",)

    def initial_state(self, theta):
        return NoisySIRState(jnp.asarray(9800.0), jnp.asarray(200.0))

    def drift(self, t, state, theta):
        infection = theta["beta"] * state.S * state.I / 10_000
        return NoisySIRState(-infection, infection - theta["gamma"] * state.I)

    def diffusion(self, t, state, theta):
        infection = jnp.maximum(theta["beta"] * state.S * state.I / 10_000, 0)
        recovery = jnp.maximum(theta["gamma"] * state.I, 0)
        return NoisySIRState(jnp.sqrt(infection), jnp.sqrt(infection + recovery))

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]


def main(options: Options) -> None:
    """Measures the three tables and prints them."""
    if options.quick:
        options = dataclasses.replace(options, batch=1024, draws=2**14, rounds=3)
    equations: dict[str, AbstractSDESimulator] = {
        "Ornstein-Uhlenbeck": OrnsteinUhlenbeck(ts=range(1, SAVED + 1), num_substeps=SUBSTEPS),
        "SIR with two noises": NoisySIR(),
    }
    names = list(equations)[: 1 if options.quick else None]
    tables = {name: _equations(equations[name], options) for name in names}
    tables["StochasticSIR"] = _epidemics(options)
    for name in list(MIXED)[: 1 if options.quick else None]:
        tables[name] = _sampler(name, options)
    for name, rows in tables.items():
        _show(name, rows)
    steps = _step_errors(options)
    _show("StochasticSIR: what the step changes", steps)
    result = {**dataclasses.asdict(options), "tables": tables, "step_errors": steps}
    finish("stochastic", result, store=options.store and not options.quick)


def _measure(runs: dict[str, Run], arguments: tuple, count: int, rounds: int) -> dict[str, dict]:
    """By row: results a CPU second, the ratio of times to the second row's, and the outcome."""
    outcomes = {name: jax.block_until_ready(run(*arguments)) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if sum(seconds[name]) > ENOUGH_SECONDS:
                continue
            # Once untimed, so that no row pays for what the row before left in the caches.
            jax.block_until_ready(run(*arguments))
            start = time.process_time()
            jax.block_until_ready(run(*arguments))
            seconds[name].append(time.process_time() - start)
    reference = np.asarray(seconds[list(runs)[1]])
    return {
        name: {
            "per_cpu_second": count / float(np.median(spent)),
            "ratio": float(np.median(np.asarray(spent) / reference[: len(spent)])),
            "outcome": outcomes[name],
        }
        for name, spent in seconds.items()
    }


# Simulators ---------------------------------------------------------------------------------------


def _worlds(simulator: Any, options: Options) -> tuple[Array, dict[str, Array]]:
    keys = jax.random.split(jax.random.key(options.seed), options.batch)
    draw = jax.vmap(lambda key: sample_prior(key, simulator.prior))
    thetas = jax.jit(draw)(jax.random.split(jax.random.key(options.seed + 1), options.batch))
    return keys, jax.block_until_ready(thetas)


def _equations(simulator: AbstractSDESimulator, options: Options) -> list[dict[str, Any]]:
    def same(seeds, step, size):
        return [samplers.normal_at(seeds, step * size + place) for place in range(size)]

    def threefry(keys, step, size):
        normal = lambda key: jax.random.normal(jax.random.fold_in(key, step), (size,))
        return list(jax.vmap(normal, out_axes=1)(keys))

    runs = {
        "sgjax": jax.jit(lambda k, t: tuple(simulator.simulate_batch(k, t).states)),
        "lax.scan, the same numbers": _scan(simulator, same, samplers.seeds),
        "lax.scan, jax.random.normal": _scan(simulator, threefry, lambda keys: keys),
        "diffrax, VirtualBrownianTree": _stock(simulator),
    }
    rows = _measure(runs, _worlds(simulator, options), options.batch, options.rounds)
    ours, scan = (np.stack(rows[name].pop("outcome")) for name in list(runs)[:2])
    difference = np.abs(ours - scan.transpose(0, 2, 1)) / np.abs(ours).max()
    rows["sgjax"]["largest_difference"] = float(difference.max())
    return _listed(rows)


def _scan(simulator: AbstractSDESimulator, normals: Callable, prepare: Callable) -> Run:
    """Euler and Maruyama's method as written by hand: one array over the batch a quantity."""
    h = GAP / SUBSTEPS

    def run(keys, thetas):
        source = prepare(keys)
        start = jax.vmap(lambda theta: tuple(jnp.asarray(x) for x in _start(simulator, theta)))
        form = type(simulator.initial_state(jax.tree.map(lambda leaf: leaf[0], thetas)))

        def substep(state, step):
            drift = jax.vmap(simulator.drift, (None, 0, 0))(step * h, form(*state), thetas)
            noise = jax.vmap(simulator.diffusion, (None, 0, 0))(step * h, form(*state), thetas)
            parts = zip(state, drift, noise, normals(source, step, len(state)), strict=True)
            return tuple(y + f * h + g * (z * np.sqrt(h)) for y, f, g, z in parts), None

        def interval(state, save):
            steps = save * SUBSTEPS + jnp.arange(SUBSTEPS, dtype=jnp.uint32)
            state, _ = jax.lax.scan(substep, state, steps)
            return state, state

        return jax.lax.scan(interval, start(thetas), jnp.arange(SAVED, dtype=jnp.uint32))[1]

    return jax.jit(run)


def _start(simulator: Any, theta: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), simulator.initial_state(theta))


def _stock(simulator: AbstractSDESimulator) -> Run:
    """As in diffrax's documentation, under `vmap`."""

    def run(key, theta):
        start = _start(simulator, theta)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), start)
        path = diffrax.VirtualBrownianTree(0.0, SAVED * GAP, 1e-3, shapes, key)
        diffusion = lambda t, y, args: lineax.DiagonalLinearOperator(
            simulator.diffusion(t, y, args)
        )
        drift = lambda t, y, args: simulator.drift(t, y, args)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            diffrax.Euler(),
            t0=0.0,
            t1=SAVED * GAP,
            dt0=GAP / SUBSTEPS,
            y0=start,
            args=theta,
            saveat=diffrax.SaveAt(ts=jnp.asarray(simulator.ts)),
        )
        return tuple(solution.ys)  # pyright: ignore[reportArgumentType]

    return jax.jit(jax.vmap(run))


EPIDEMIC = StochasticSIR(
    initial_infectious=10.0,
    prior={"beta": dist.Uniform(0.3, 0.6), "gamma": dist.Uniform(0.1, 0.2)},
    ts=range(1, SAVED + 1),
    num_substeps=SUBSTEPS,
)


def _epidemics(options: Options) -> list[dict[str, Any]]:
    runs = {
        "sgjax": jax.jit(lambda k, t: EPIDEMIC.simulate_batch(k, t).states.I),
        "lax.scan, the same numbers": _chain(samplers.seeds, samplers.binomial_at),
        "lax.scan, jax.random.binomial": _chain(
            lambda keys: keys,
            lambda keys, place, n, p: jax.vmap(
                lambda key, n, p: jax.random.binomial(jax.random.fold_in(key, place), n, p)
            )(keys, n, p),
        ),
    }
    rows = _measure(runs, _worlds(EPIDEMIC, options), options.batch, options.rounds)
    ours, scan = (np.asarray(rows[name].pop("outcome")) for name in list(runs)[:2])
    rows["sgjax"]["largest_difference"] = float(np.abs(ours - scan.T).max())
    return _listed(rows)


def _chain(prepare: Callable, binomial: Callable) -> Run:
    """A chain-binomial SIR as written by hand."""
    h = jnp.float32(GAP / SUBSTEPS)

    def run(keys, thetas):
        source = prepare(keys)

        def substep(state, step):
            S, I = state  # noqa: E741
            infection = -jnp.expm1(-thetas["beta"] * I / EPIDEMIC.population * h)
            infected = binomial(source, 2 * step, S, infection)
            healed = binomial(source, 2 * step + 1, I, -jnp.expm1(-thetas["gamma"] * h))
            return (S - infected, I + infected - healed), None

        def interval(state, save):
            steps = save * SUBSTEPS + jnp.arange(SUBSTEPS, dtype=jnp.uint32)
            state, _ = jax.lax.scan(substep, state, steps)
            return state, state[1]

        infectious = jnp.full(keys.shape, EPIDEMIC.initial_infectious)
        start = EPIDEMIC.population - infectious, infectious
        return jax.lax.scan(interval, start, jnp.arange(SAVED, dtype=jnp.uint32))[1]

    return jax.jit(run)


def _step_errors(options: Options) -> list[dict[str, Any]]:
    """What is seen of epidemics at a step, at half of it, and so on."""
    size = 4 * options.batch
    theta = {"beta": jnp.full(size, 0.8), "gamma": jnp.full(size, 0.4)}
    keys = jax.random.split(jax.random.key(options.seed), size)
    rows = []
    for substeps in (4, 8) if options.quick else (1, 2, 4, 8, 16, 32):
        simulator = StochasticSIR(ts=range(1, 61), num_substeps=substeps)
        states = jax.jit(lambda k, t, s=simulator: s.simulate_batch(k, t).states)(keys, theta)
        share = np.asarray(states.R[:, -1] + states.I[:, -1], float) / simulator.population
        large = share > 0.1
        rows.append(
            {
                "row": f"1/{substeps} day",
                "died_out": float(1 - large.mean()),
                "size_of_the_others": float(share[large].mean()),
                "mean_peak": float(np.asarray(states.I.max(axis=1), float)[large].mean()),
            }
        )
    return rows


# Samplers -----------------------------------------------------------------------------------------


def _mixed(size: int, seed: int) -> dict[str, Array]:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    between = lambda low, high: jnp.exp(
        jax.random.uniform(next(keys), (size,), minval=np.log(low), maxval=np.log(high))
    )
    return {
        "rate": between(0.1, 1e4),
        "overdispersion": between(0.01, 1.0),
        "total": jnp.ceil(between(1.0, 1e4)),
        "probability": between(1e-3, 0.5),
    }


def _negative_binomial(key: Array, mean: Array, overdispersion: Array) -> Array:
    keys = jax.random.split(key)
    factor = overdispersion * jax.random.gamma(keys[0], 1 / overdispersion)
    return jax.random.poisson(keys[1], mean * factor).astype(float)


MIXED: dict[str, tuple[tuple[str, ...], Run, Run, Callable]] = {
    "poisson": (
        ("rate",),
        samplers.poisson,
        lambda key, rate: jax.random.poisson(key, rate).astype(float),
        lambda rate: stats.poisson(rate),
    ),
    "gamma": (("rate",), samplers.gamma, jax.random.gamma, lambda rate: stats.gamma(rate)),
    "negative_binomial": (
        ("rate", "overdispersion"),
        samplers.negative_binomial,
        _negative_binomial,
        lambda m, a: stats.nbinom(1 / a, 1 / (1 + a * m)),
    ),
    "binomial": (
        ("total", "probability"),
        samplers.binomial,
        jax.random.binomial,
        lambda n, p: stats.binom(n, p),
    ),
}


def _sampler(name: str, options: Options) -> list[dict[str, Any]]:
    names, ours, theirs, law_of = MIXED[name]
    given = _mixed(options.draws, options.seed)
    parameters = [given[parameter] for parameter in names]
    runs = {"sgjax": jax.jit(ours), "jax.random": jax.jit(theirs)}
    key = jax.random.key(options.seed)
    rows = _measure(runs, (key, *parameters), options.draws, options.rounds)
    law = law_of(*(np.asarray(value, np.float64) for value in parameters))
    uniform = np.random.default_rng(options.seed).uniform(size=options.draws)
    for row in rows.values():
        draws = np.asarray(row.pop("outcome"), np.float64)
        ranks = law.cdf(draws)
        if name != "gamma":
            ranks = ranks - uniform * law.pmf(draws)
        row["p_value"] = float(stats.kstest(ranks, "uniform").pvalue)
    return _listed(rows)


# Tables -------------------------------------------------------------------------------------------


def _listed(rows: dict[str, dict]) -> list[dict[str, Any]]:
    for row in rows.values():
        row.pop("outcome", None)
    return [{"row": name, **row} for name, row in rows.items()]


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column.replace("_", " "))
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        shown.add_row(*(cell if isinstance(cell, str) else f"{cell:,.3g}" for cell in cells))
    Console().print(shown)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
