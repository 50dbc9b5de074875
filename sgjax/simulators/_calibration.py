"""How many sub-steps a simulator needs, measured on prior draws."""

import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sgjax._types import PRNGKey, Theta
from sgjax.devices import jit
from sgjax.priors import sample_prior
from sgjax.simulators._base import AbstractODESimulator, Latent
from sgjax.simulators._checks import check_equations
from sgjax.solvers import AdaptiveSteps, GridSteps, Steps


class Calibration(eqx.Module):
    """The outcome of `calibrate_steps`: the simulator to use, and what was measured."""

    simulator: Any
    """The simulator with the number of sub-steps that was chosen."""
    num_substeps: int
    table: tuple[tuple[int, float, float, float, float], ...]
    """A row for each candidate tried: n, then the median, 99%, 99.9% and largest error."""
    reference_error: float
    """The largest error of the chosen simulator against a float64 adaptive solution."""
    num_references: int
    """How many draws were held against that solution."""


def shipped_errors() -> dict[str, dict[str, Any]]:
    """By mechanism, the error of the sub-steps that it ships with, over 4,096 draws of its prior.

    Each entry has `method`, `num_substeps`, the `median`, `q99`, `q999` and `largest` error as
    `calibrate_steps` defines it, and the largest error of 32 draws `against_float64`. Measured by
    the benchmark `step_errors`; another prior or other times need `calibrate_steps` again.
    """
    file = importlib.resources.files("sgjax") / "simulators" / "step_errors.json"
    return json.loads(file.read_text(encoding="utf-8"))


def calibrate_steps(
    simulator: AbstractODESimulator,
    key: PRNGKey,
    *,
    tolerance: float = 1e-3,
    quantile: float = 0.999,
    num_draws: int = 4096,
    candidates: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    num_references: int = 32,
) -> Calibration:
    """The smallest number of sub-steps whose error stays below `tolerance`, from prior draws.

    The error of one simulation at n sub-steps is the largest difference to the same simulation at
    2n, each channel in units of its own largest value; non-finite simulations count as infinite.
    The first n whose `quantile` of errors is below the tolerance is chosen, and `num_references`
    draws are then compared with a float64 adaptive solution, which sees what n against 2n cannot:
    rounding.

    Raises `ValueError`, naming the parameters of the worst draw, where no candidate will do.
    """
    solver = _check_solver(simulator)
    check_equations(simulator)
    thetas = draw_thetas(simulator, key, num_draws)
    if not candidates:
        raise ValueError(
            "`candidates` is empty; give numbers of sub-steps to try, such as (1, 2, 4)."
        )
    solved: dict[int, np.ndarray] = {}

    def values(num_substeps: int) -> np.ndarray:
        if num_substeps not in solved:
            stepped = _with_substeps(simulator, solver, num_substeps)
            solved[num_substeps] = _values(stepped, thetas)
        return solved[num_substeps]

    table: list[tuple[int, float, float, float, float]] = []
    errors = np.zeros(num_draws)
    for candidate in sorted(candidates):
        errors = scaled_errors(values(candidate), values(2 * candidate))
        median, common, rare, largest = (error_quantile(errors, q) for q in (0.5, 0.99, 0.999, 1.0))
        table.append((candidate, median, common, rare, largest))
        if error_quantile(errors, quantile) <= tolerance:
            chosen = _with_substeps(simulator, solver, candidate)
            sound = np.flatnonzero(errors <= tolerance)[:num_references]
            reference_error = _check_reference(chosen, thetas, values(candidate), sound, tolerance)
            return Calibration(chosen, candidate, tuple(table), reference_error, sound.size)
    raise ValueError(_explain(simulator, thetas, errors, quantile, tolerance, table))


def scaled_errors(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Per simulation, the largest difference over times and channels, in units of the channel."""
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = np.abs(values - reference).max(axis=1)
        ratios = np.where(differences == 0, 0.0, differences / np.abs(reference).max(axis=1))
    return np.where(np.isfinite(ratios), ratios, np.inf).max(axis=-1)


def _check_solver(simulator: AbstractODESimulator) -> GridSteps:
    name = type(simulator).__name__
    if not isinstance(simulator, AbstractODESimulator):
        raise ValueError(f"{name} solves no ODE, so there are no sub-steps to calibrate.")
    if not isinstance(simulator.solver, GridSteps):
        raise ValueError(
            f"{name} has adaptive steps: use `calibrate_tolerances`, or pass "
            "`solver=FixedSteps()` to calibrate fixed ones."
        )
    return simulator.solver


def draw_thetas(simulator: AbstractODESimulator, key: PRNGKey, num_draws: int) -> Theta:
    """Parameters from the simulator's prior, many at once."""
    draw = lambda key: sample_prior(key, simulator.prior)
    return jit(jax.vmap(draw))(jax.random.split(key, num_draws))


def _with_substeps(simulator: Any, solver: GridSteps, num_substeps: int) -> Any:
    solver = dataclasses.replace(solver, num_substeps=num_substeps)
    return dataclasses.replace(simulator, solver=solver)


def simulate_thetas(simulator: AbstractODESimulator, thetas: Theta) -> Latent:
    """One simulation for each of the parameters, on the host."""
    size = jax.tree.leaves(thetas)[0].shape[0]
    keys = jax.random.split(jax.random.key(0), size)  # an ODE ignores them
    batch = jit(lambda keys, thetas: simulator.simulate_batch(keys, thetas))
    return jax.device_get(batch(keys, thetas))


def _values(simulator: AbstractODESimulator, thetas: Theta) -> np.ndarray:
    return np.asarray(simulate_thetas(simulator, thetas).values)


def solve_precisely(simulator: Any, thetas: Theta, solver: Steps | None = None) -> Latent:
    """A few simulations to some nine digits: adaptive steps in float64."""
    implicit = getattr(simulator.solver, "implicit", False)
    steps = solver or AdaptiveSteps(1e-9, 1e-12, implicit=implicit, max_steps=2**17)
    precise = dataclasses.replace(simulator, solver=steps)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(draw), float) for name, draw in thetas.items()}
        return simulate_thetas(precise, wide)


def _check_reference(simulator, thetas, values, lanes, tolerance) -> float:
    if lanes.size == 0:
        return float("nan")
    few = {name: draw[lanes] for name, draw in thetas.items()}
    precise = solve_precisely(simulator, few)
    error = float(scaled_errors(values[lanes], np.asarray(precise.values)).max())
    # Twice the tolerance: for a method of order one, n against 2n shows half the error of n.
    if not error <= 2 * tolerance:
        raise ValueError(
            f"{type(simulator).__name__} agrees with itself at twice the sub-steps, yet differs by "
            f"{error:.2g} from a float64 adaptive solution: rounding, or a right-hand side that "
            "jumps. Rescale the state, smooth the jump, or shorten a chaotic run."
        )
    return error


def error_quantile(errors: np.ndarray, probability: float) -> float:
    """A quantile of errors of which some may be infinite."""
    # An observed value, since interpolation next to an infinite error gives NaN.
    return float(np.quantile(errors, probability, method="higher"))


def _explain(simulator, thetas, errors, quantile, tolerance, table) -> str:
    worst = int(np.argmax(errors))
    parameters = {name: np.asarray(draw[worst]).tolist() for name, draw in thetas.items()}
    left = error_quantile(errors, quantile)
    return (
        f"{type(simulator).__name__}: no candidate brings the {quantile:.4g} quantile of the error "
        f"below {tolerance:.2g}; {table[-1][0]} sub-steps leave {left:.2g}, "
        f"and {np.mean(np.isinf(errors)):.2%} of the draws are not finite. The worst draw is "
        f"{parameters}. Narrow the prior there, add times to `ts`, raise `candidates`, or use "
        "`LaneSteps` (with `implicit=True` where the system is stiff)."
    )
