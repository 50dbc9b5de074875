"""Exact posteriors on a grid: `(study, mechanism, record) -> ReferencePosterior`, with evidence.

The trapezoid rule converges exponentially fast for a smooth integrand that vanishes at the border,
so two or three points per standard deviation suffice, once the grid has the posterior's own place,
scale and directions.
"""

import numpy as np

from sgjax._types import Theta
from sgjax.observations import Observed
from sgjax.references._placement import Grid, fine_grid, log_density, place, prior_draws
from sgjax.references.likelihood import LogJoint, log_joint, quantities
from sgjax.references.posterior import ReferencePosterior, largest_change
from sgjax.study import Study

POINTS = {1: 1024, 2: 160, 3: 56, 4: 36}
"""Points per direction by default, by the number of unknowns."""

_DROP = 14.0


def grid_posterior(
    study: Study,
    mechanism: str,
    observed: Observed,
    *,
    known: Theta | None = None,
    points: float | None = None,
    tolerance: float = 1e-3,
    max_evaluations: int = 2**23,
    max_border: float = 1e-5,
    max_outside: float = 1e-3,
) -> ReferencePosterior:
    """The posterior of up to 4 unknown numbers, to many digits, with the log evidence.

    Grids with ever more points are laid over it until neither the log evidence nor any mean, sd or
    quantile (in standard deviations) changes by more than `tolerance` from one to the next; since
    convergence is exponential, the last one is much closer than that.

    **Arguments:** `points` per direction to begin with (`POINTS` by default); `max_evaluations` of
    the density in one grid; `max_border`, the largest share of the posterior on the border of the
    grid; `max_outside`, the largest share outside it, as some thousand draws of the prior see it.

    **Diagnostics:** `points` per direction; `evaluations`; `border_mass`; `outside_mass`;
    `log_evidence_error` and `summary_error`, those last changes.

    Raises `ValueError` for more than 4 unknowns and where a limit is passed.
    """
    joint = log_joint(study, mechanism, observed, known)
    if joint.size not in POINTS:
        raise ValueError(
            f"{mechanism} has {joint.size} unknowns; a grid serves {min(POINTS)} to {max(POINTS)}. "
            "Use `nuts_posterior`, or declare some of them known."
        )
    density = log_density(joint)
    draws, likelihood = prior_draws(joint, density)
    frame = place(density, draws, likelihood, _DROP)
    number = POINTS[joint.size] if points is None else points
    check = fine_grid(density, frame, 0.8 * number)
    finest = _posterior(joint, check)
    while True:
        grid = fine_grid(density, frame, number)
        outside = _mass_outside(grid, draws, likelihood)
        _check_shares(grid.border_mass, max_border, outside, max_outside)
        coarser, finest = finest, _posterior(joint, grid)
        change = abs(grid.log_evidence - check.log_evidence)
        errors = change, largest_change(finest, coarser)
        if max(errors) <= tolerance:
            break
        check, number = grid, 1.25 * number
        _check_evaluations(grid.size * 1.25**joint.size, max_evaluations, max(errors), tolerance)
    finest.diagnostics.update(
        points=number,
        evaluations=grid.size,
        border_mass=grid.border_mass,
        outside_mass=outside,
        log_evidence_error=errors[0],
        summary_error=errors[1],
    )
    return finest


def _posterior(joint: LogJoint, grid: Grid) -> ReferencePosterior:
    return ReferencePosterior(
        joint.mechanism,
        "grid",
        quantities(joint, grid.vectors),
        grid.weights[np.isfinite(grid.density)],
        grid.log_evidence,
        {},
    )


def _mass_outside(grid: Grid, draws: np.ndarray, likelihood: np.ndarray) -> float:
    """The posterior mass outside the grid, estimated without bias from draws of the prior."""
    outside = likelihood[~grid.holds(draws)] - grid.log_evidence
    return float(np.exp(outside).sum() / len(draws))


def _check_evaluations(needed: float, limit: int, error: float, tolerance: float) -> None:
    if needed > limit:
        raise ValueError(
            f"The grid still changes by {error:.1e}, more than the tolerance {tolerance:.0e}, and "
            f"the next one needs {needed:.1e} evaluations. A density with a jump, as where the "
            "solver's steps become unstable, converges slowly: take finer steps. Else raise "
            "`max_evaluations` or `tolerance`, or use `nuts_posterior`."
        )


def _check_shares(border: float, max_border: float, outside: float, max_outside: float) -> None:
    if border > max_border:
        raise ValueError(
            f"A share of {border:.1e} of the posterior lies on the border of the grid, more than "
            f"{max_border:.0e}; take more `points`, a tighter prior, finer steps of the solver if "
            "they become unstable there, or raise `max_border`."
        )
    if outside > max_outside:
        raise ValueError(
            f"A share of {outside:.1e} of the posterior lies outside the grid, more than "
            f"{max_outside:.0e}: there is a second mode. Use a prior that holds one of them, or "
            "`nuts_posterior` with many chains."
        )
