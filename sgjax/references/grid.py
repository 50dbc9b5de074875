"""Exact posteriors on a grid: `(study, mechanism, record) -> ReferencePosterior`, with evidence.

The trapezoid rule converges exponentially fast for a smooth integrand that vanishes at the border,
so two or three points per standard deviation suffice, once the grid has the posterior's own place,
scale and directions.
"""

import jax.numpy as jnp
import numpy as np

from sgjax._types import Theta
from sgjax.observations import Observed
from sgjax.references._placement import (
    Grid,
    fit_sides,
    full_grid,
    locate,
    log_density,
    prior_draws,
    refined,
)
from sgjax.references.likelihood import LogJoint, log_joint, quantities
from sgjax.references.posterior import ReferencePosterior, largest_change
from sgjax.study import Study

POINTS = {1: 1024, 2: 160, 3: 56, 4: 44}
"""Points per direction by default, by the number of unknowns."""

_DROP = 14.0


def grid_posterior(
    study: Study,
    mechanism: str,
    observed: Observed,
    *,
    known: Theta | None = None,
    points: int | None = None,
    max_border: float = 1e-5,
    max_outside: float = 1e-3,
) -> ReferencePosterior:
    """The posterior of up to 4 unknown numbers, to many digits, with the log evidence.

    **Arguments:** `points` per direction (`POINTS` by default); `max_border`, the largest share of
    the posterior on the border of the grid; `max_outside`, the largest share outside it, as some
    thousand draws of the prior see it.

    **Diagnostics:** `points`; `evaluations`; `border_mass`; `outside_mass`; `log_evidence_error`
    and `summary_error`, the change of the log evidence and the largest change of a mean, sd or
    quantile in standard deviations, against a grid of 4/5 as many points per direction: bounds
    on the errors, far from tight since convergence is exponential.

    Raises `ValueError` for more than 4 unknowns and for a share above its limit.
    """
    joint = log_joint(study, mechanism, observed, known)
    if joint.size not in POINTS:
        raise ValueError(
            f"{mechanism} has {joint.size} unknowns; a grid serves {min(POINTS)} to {max(POINTS)}. "
            "Use `nuts_posterior`, or declare some of them known."
        )
    density = log_density(joint)
    draws, likelihood = prior_draws(joint, density)
    centre, covariance = locate(density, draws, likelihood)
    axes = np.linalg.cholesky(covariance)
    low, high = fit_sides(density, centre, axes, _DROP)
    number = POINTS[joint.size] if points is None else points
    fine, coarse = (
        refined(density, full_grid(density, centre, axes, low, high, count / 2))
        for count in (number, 0.8 * number)
    )
    outside = likelihood[~fine.holds(draws)] - fine.log_evidence
    share = float(np.exp(outside).sum() / len(draws))
    _check_shares(fine.border_mass, max_border, share, max_outside)
    posterior, check = (_posterior(study, mechanism, joint, grid) for grid in (fine, coarse))
    posterior.diagnostics.update(
        points=number,
        evaluations=fine.size,
        border_mass=fine.border_mass,
        outside_mass=share,
        log_evidence_error=abs(fine.log_evidence - coarse.log_evidence),
        summary_error=largest_change(posterior, check),
    )
    return posterior


def _posterior(study: Study, mechanism: str, joint: LogJoint, grid: Grid) -> ReferencePosterior:
    return ReferencePosterior(
        mechanism,
        "grid",
        quantities(joint, study.task, jnp.asarray(grid.vectors)),
        grid.weights[np.isfinite(grid.density)],
        grid.log_evidence,
        {},
    )


def _check_shares(border: float, max_border: float, outside: float, max_outside: float) -> None:
    if border > max_border:
        raise ValueError(
            f"A share of {border:.1e} of the posterior lies on the border of the grid, more than "
            f"{max_border:.0e}; take more `points`, a tighter prior, or raise `max_border`."
        )
    if outside > max_outside:
        raise ValueError(
            f"A share of {outside:.1e} of the posterior lies outside the grid, more than "
            f"{max_outside:.0e}: there is a second mode. Use a prior that holds one of them, or "
            "`nuts_posterior` with many chains."
        )
