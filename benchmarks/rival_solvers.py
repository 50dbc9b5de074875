"""How others solve the same ensembles: settings from cheap to dear, as their users write them."""

from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import Problem
from sgjax.simulators import AbstractODESimulator

Settings = Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]


def starts(simulator: AbstractODESimulator, thetas: dict[str, Any]) -> list[np.ndarray]:
    """The initial states, a leaf each, the simulations leading."""

    def start(theta):
        return [
            jnp.asarray(leaf, float) for leaf in jax.tree.leaves(simulator.initial_state(theta))
        ]

    return [np.asarray(leaf) for leaf in jax.jit(jax.vmap(start))(thetas)]


def once(prepare: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """`prepare(thetas)`, kept: laying arrays out is no part of a solve."""
    kept: dict[int, Any] = {}

    def prepared(thetas):
        if id(thetas) not in kept:
            kept[id(thetas)] = prepare(thetas), thetas  # held, so that no other takes its identity
        return kept[id(thetas)][0]

    return prepared


def diffrax_fixed(problem: Problem, substeps: tuple[int, ...]) -> Settings:
    """Tsit5 in equal steps under `vmap`."""
    simulator = problem.simulator
    ts = np.asarray(simulator.ts)

    def solve(theta, count: int) -> list:
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
        return jax.tree.leaves(solution.ys)

    for count in substeps:
        yield f"{count} sub-steps", jax.jit(jax.vmap(lambda theta, n=count: solve(theta, n)))


def scipy(problem: Problem, kind: str, tolerances: list[tuple[float, float]]) -> Settings:
    """`solve_ivp`, one simulation after the other, the right-hand side in NumPy."""
    from scipy.integrate import solve_ivp

    simulator = problem.simulator
    ts, field = np.asarray(simulator.ts), _in_numpy(simulator)
    begins = once(lambda thetas: starts(simulator, thetas))

    def run(thetas, rtol: float, atol: float) -> list[np.ndarray]:
        begin, made = begins(thetas), []
        first = [leaf[0] for leaf in begin]
        ends = np.cumsum([leaf.size for leaf in first])[:-1]
        for index in range(begin[0].shape[0]):
            theta = {name: np.asarray(value[index], float) for name, value in thetas.items()}

            def slope(t, flat, theta=theta):
                parts = np.split(flat, ends)
                leaves = [part.reshape(leaf.shape) for part, leaf in zip(parts, first, strict=True)]
                return np.concatenate([np.ravel(rate) for rate in field(leaves, theta)])

            y0 = np.concatenate([np.ravel(leaf[index]) for leaf in begin])
            span = (simulator.t0, ts[-1])
            solved = solve_ivp(slope, span, y0, method=kind, t_eval=ts, rtol=rtol, atol=atol)
            made.append(solved.y.T)
        return [np.stack(made)]

    for rtol, atol in tolerances:
        yield f"rtol {rtol:.0e}", lambda thetas, r=rtol, a=atol: run(thetas, r, a)


def _in_numpy(simulator: AbstractODESimulator) -> Callable:
    """The right-hand side as a NumPy user writes it."""
    return {
        "SIR": _sir,
        "LotkaVolterra": _lotka_volterra,
        "Lorenz63": _lorenz63,
        "Lorenz96": _lorenz96,
        "Gravity": _gravity,
        "Robertson": _robertson,
    }[type(simulator).__name__]


def _sir(y, p):
    infection, recovery = p["beta"] * y[0] * y[1] / 1e6, p["gamma"] * y[1]
    return -infection, infection - recovery, recovery


def _lotka_volterra(y, p):
    meetings = y[0] * y[1]
    return (
        p["alpha"] * y[0] - p["beta"] * meetings,
        p["delta"] * meetings - p["gamma"] * y[1],
    )


def _lorenz63(y, p):
    return (
        p["sigma"] * (y[1] - y[0]),
        y[0] * (p["rho"] - y[2]) - y[1],
        y[0] * y[1] - p["beta"] * y[2],
    )


def _lorenz96(y, p):
    x = y[0]
    return ((np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + p["forcing"],)


def _gravity(y, p):
    apart = y[0][:, None, :] - y[0][:, :, None]
    near = np.sum(apart**2, axis=0) + 0.25
    return y[1], np.sum(apart * (p["mass"] / near**1.5), axis=2)


def _robertson(y, p):
    first, second, third = p["k1"] * y[0], p["k2"] * y[1] * y[1], p["k3"] * y[1] * y[2]
    return third - first, first - second - third, second


def torchdiffeq(problem: Problem, tolerances: list[tuple[float, float]]) -> Settings:
    """dopri5 with one step size for the whole batch, the only way torchdiffeq has."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]

    simulator = problem.simulator
    times = torch.tensor([simulator.t0, *np.asarray(simulator.ts)], dtype=torch.float32)
    torch.set_num_threads(1)

    field = _in_torch(simulator)

    @once
    def tensors(thetas) -> tuple[dict, tuple]:
        # A parameter or quantity each, the simulations behind: fields broadcast as for one.
        last = lambda array: torch.tensor(np.moveaxis(np.array(array, np.float32), 0, -1))
        parameters = {name: last(value) for name, value in thetas.items()}
        return parameters, tuple(last(leaf) for leaf in starts(simulator, thetas))

    def run(thetas, rtol: float, atol: float) -> list[np.ndarray]:
        parameters, begin = tensors(thetas)
        with torch.no_grad():
            solved = odeint(lambda t, y: field(y, parameters), begin, times, rtol=rtol, atol=atol)
        return [np.moveaxis(leaf[1:].numpy(), -1, 0) for leaf in solved]

    for rtol, atol in tolerances:
        yield f"rtol {rtol:.0e}", lambda thetas, r=rtol, a=atol: run(thetas, r, a)


def _in_torch(simulator: AbstractODESimulator) -> Callable:
    import torch  # pyright: ignore[reportMissingImports]

    def ring(y, p):
        x, roll = y[0], lambda by: torch.roll(y[0], by, 0)
        return ((roll(-1) - roll(2)) * roll(1) - x + p["forcing"],)

    def bodies(y, p):
        apart = y[0][:, None] - y[0][:, :, None]
        near = torch.sum(apart**2, dim=0) + 0.25
        return y[1], torch.sum(apart * (p["mass"] / near**1.5), dim=2)

    name = type(simulator).__name__
    return {"Lorenz96": ring, "Gravity": bodies}.get(name) or _in_numpy(simulator)
