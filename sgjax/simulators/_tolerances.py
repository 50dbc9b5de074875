"""Which tolerances an adaptive simulator needs, measured on prior draws."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from sgjax._types import PRNGKey, Theta
from sgjax.devices import jit
from sgjax.simulators._base import AbstractODESimulator
from sgjax.simulators._calibration import (
    draw_thetas,
    error_quantile,
    scaled_errors,
    simulate_thetas,
    solve_precisely,
)
from sgjax.solvers import AdaptiveSteps, LaneSteps

RARE = 0.01
"""The quantile over simulations that stands for the smallest size of a quantity."""

Adaptive = AdaptiveSteps | LaneSteps


class Tolerances(eqx.Module):
    """The outcome of `calibrate_tolerances`: the simulator to use, and what was measured."""

    simulator: Any
    """The simulator with the tolerances that were chosen."""
    relative: float
    absolute: float
    smallest: float
    """The smallest size of a quantity that matters, in the units of the state."""
    table: tuple[tuple[float, float, float, float, float], ...]
    """A row for each relative tolerance tried, then the median, 99%, 99.9% and largest error."""
    reference_error: float
    """The largest error of the chosen simulator against a float64 solution by diffrax."""


def calibrate_tolerances(
    simulator: AbstractODESimulator,
    key: PRNGKey,
    *,
    tolerance: float = 1e-3,
    quantile: float = 0.99,
    num_draws: int = 4096,
    candidates: Sequence[float] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    num_references: int = 16,
) -> Tolerances:
    r"""The loosest tolerances of adaptive steps whose error stays below `tolerance`.

    A step may err by $a + r |y|$. With $a = r \, y_{\min}$ the relative tolerance $r$ rules down to
    the smallest size that matters, $y_{\min}$: of what each quantity of the state begins with,
    where that is not 0, and of its largest value in the course of a simulation, the 1 % quantile
    over prior draws. (An outbreak that begins with a millionth of the population is decided at that
    size, which a relative tolerance alone, or an absolute one of $10^{-6}$, does not see.)

    The error of one simulation is its largest difference to the same steps in float64 at
    $r = 10^{-8}$, each channel in units of its own largest value; non-finite simulations count as
    infinite. The first of `candidates`, from the loosest on, whose `quantile` of errors is below
    `tolerance` is chosen, and `num_references` draws are then compared with diffrax's own adaptive
    solution in float64.

    Raises `ValueError` for other than adaptive steps, and, naming the parameters of the worst draw,
    where no candidate will do.
    """
    solver = _check_adaptive(simulator)
    thetas = draw_thetas(simulator, key, num_draws)
    tight = dataclasses.replace(
        solver, relative_tolerance=1e-8, absolute_tolerance=1e-14, max_steps=2**17
    )
    precise = solve_precisely(simulator, thetas, tight)
    if not np.isfinite(np.asarray(precise.values)).any():
        raise ValueError(f"{type(simulator).__name__}: no simulation is finite; check the prior.")
    starts = jit(jax.vmap(lambda theta: simulator.initial_state(theta)))(thetas)
    smallest = smallest_size(starts, precise.states)
    exact, table = np.asarray(precise.values), []
    chosen, errors = simulator, np.full(num_draws, np.inf)
    for candidate in sorted(candidates, reverse=True):
        absolute = candidate * smallest
        steps = dataclasses.replace(
            solver, relative_tolerance=candidate, absolute_tolerance=absolute
        )
        chosen = dataclasses.replace(simulator, solver=steps)
        values = np.asarray(simulate_thetas(chosen, thetas).values)
        errors = scaled_errors(values, exact)
        table.append((candidate, *(error_quantile(errors, q) for q in (0.5, 0.99, 0.999, 1.0))))
        if error_quantile(errors, quantile) <= tolerance:
            sound = np.flatnonzero(errors <= tolerance)[:num_references]
            few = {name: draw[sound] for name, draw in thetas.items()}
            reference = np.asarray(solve_precisely(chosen, few).values)
            error = float(scaled_errors(values[sound], reference).max())
            return Tolerances(chosen, candidate, absolute, smallest, tuple(table), error)
    raise ValueError(_explain(chosen, thetas, errors, quantile, tolerance))


def smallest_size(starts: PyTree, courses: PyTree) -> float:
    """The smallest size that matters of any quantity of the state, over many simulations."""
    sizes = []
    for start, course in zip(jax.tree.leaves(starts), jax.tree.leaves(courses), strict=True):
        start = np.abs(np.asarray(start, np.float64))
        sizes += [start, np.maximum(start, np.abs(np.asarray(course, np.float64)).max(axis=1))]
    present = [each[np.isfinite(each) & (each > 0)] for each in sizes]
    return float(min(np.quantile(each, RARE) for each in present if each.size))


def _check_adaptive(simulator: AbstractODESimulator) -> Adaptive:
    solver = getattr(simulator, "solver", None)
    if not isinstance(solver, Adaptive):
        raise ValueError(
            f"{type(simulator).__name__} has no adaptive steps: pass `solver=LaneSteps()`, or use "
            "`calibrate_steps` for steps on a grid."
        )
    return solver


def _explain(simulator, thetas: Theta, errors: np.ndarray, quantile: float, wanted: float) -> str:
    worst = int(np.argmax(errors))
    parameters = {name: np.asarray(draw[worst]).tolist() for name, draw in thetas.items()}
    return (
        f"{type(simulator).__name__}: no tolerance brings the {quantile:.4g} quantile of the error "
        f"below {wanted:.2g}; {simulator.solver.relative_tolerance:.0e} leaves "
        f"{error_quantile(errors, quantile):.2g}, and {np.mean(np.isinf(errors)):.2%} of the draws "
        f"are not finite. The worst draw is {parameters}. Narrow the prior there, raise "
        "`max_steps`, or give the solver `implicit=True` where the system is stiff."
    )
