r"""Maximum likelihood of many series at once: `(study, mechanism, records) -> Fit`.

$\hat\theta = \arg\max_\theta \log p(x \mid \theta)$ for each record, and the information criteria
by which the field compares mechanisms. It runs the very simulator and observation model that the
stream trains on; all starts of all series go through optimistix' BFGS together, and a few Newton
steps after it, since in single precision a likelihood may be too rough to compare its values.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.references._climb import Problem, best_draws, climb, natural, repeated
from sgjax.references.bounds import Bounds, check_bounds
from sgjax.references.likelihood import log_joint
from sgjax.stream import Same
from sgjax.study import Study

AGREEING = 0.05
"""Log likelihoods this close are one maximum."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """The best fit of one mechanism to each of many series."""

    mechanism: str
    theta: dict[str, Float[np.ndarray, "series ..."]]
    """The estimates, in the parameters' own units."""
    log_likelihood: Float[np.ndarray, " series"]
    """At the estimates; -inf where no start gave a finite one."""
    converged: Bool[np.ndarray, " series"]
    """Whether the best start met the tolerance; estimates of the others are where it stopped."""
    agreeing: Int[np.ndarray, " series"]
    """How many starts ended within `AGREEING` of the best: 1 says that another may be better."""
    num_parameters: int
    num_values: Int[np.ndarray, " series"]
    """Recorded values of each series."""

    @property
    def aic(self) -> Float[np.ndarray, " series"]:
        r"""$2p - 2\hat\ell$ (Akaike, 1974): for prediction, not for naming the truth."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def aicc(self) -> Float[np.ndarray, " series"]:
        r"""AIC $+ 2p(p+1)/(n-p-1)$ (Hurvich and Tsai, 1989).

        Raises `ValueError` where a series has no more than p + 1 values.
        """
        p, n = self.num_parameters, self.num_values
        if np.any(n <= p + 1):
            raise ValueError(
                f"AICc of {p} parameters needs at least {p + 2} recorded values; a series has "
                f"{n.min()}. Use `aic`, or leave that series out."
            )
        return self.aic + 2 * p * (p + 1) / (n - p - 1)

    @property
    def bic(self) -> Float[np.ndarray, " series"]:
        r"""$p \ln n - 2\hat\ell$ (Schwarz, 1978)."""
        return self.num_parameters * np.log(self.num_values) - 2 * self.log_likelihood


def fit(
    study: Study,
    mechanism: str,
    observed: Observed,
    key: PRNGKey,
    *,
    bounds: Bounds = "prior",
    known: Theta | None = None,
    starts: int = 8,
    tolerance: float = 1e-3,
    max_steps: int = 192,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fits one mechanism to many series, each from several starts.

    **Arguments:** `observed`, with the series leading (`Simulation.observed` of a batch) or one
    series alone; `bounds`, where the fit may look (see `Bounds`); `known`, the values of the
    study's known parameters, the same for all series; `starts` for each series, the likeliest of
    1,024 draws of the prior and some less likely; `tolerance`, the gain of log likelihood that
    another Newton step may promise where a start counts as converged; `max_steps` of a start;
    `progress` hears how many optimisations are done, and of how many.

    A series that does not converge is told in `converged`, never dropped.

    Raises `ValueError` where the mechanism is not the study's, the record has other times or
    channels, the likelihood is no closed form (a stochastic mechanism, a chain of noises), or a
    series has no value at all.
    """
    if observed.values.ndim == 2:
        observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observed)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], observed)
    joint = log_joint(study, mechanism, first, known)
    check_bounds(joint.prior, bounds)
    check_records(observed)
    if starts < 1:
        raise ValueError(f"`starts` must be at least 1; got {starts}.")
    frozen = tuple(sorted(bounds.items())) if isinstance(bounds, Mapping) else bounds
    problem = Problem(Same(study), mechanism, frozen)
    begin = best_draws(problem, observed, joint.known, key, starts)
    series = np.repeat(np.arange(len(begin)), starts)
    vectors, values, converged = climb(
        problem, observed, repeated(joint.known, series.size),
        (begin.reshape(series.size, -1), series), (tolerance, max_steps), progress,
    )  # fmt: skip
    values, converged = values.reshape(-1, starts), converged.reshape(-1, starts)
    # An advantage that small is no reason to prefer a start that has not converged.
    best = np.argmin(values + np.where(converged, 0.0, tolerance), axis=1)
    at = np.arange(len(values)), best
    theta = problem.program(natural)(
        jnp.asarray(vectors.reshape(*values.shape, -1)[at]), repeated(joint.known, len(values))
    )
    return Fit(
        mechanism,
        {name: np.asarray(theta[name]) for name in joint.prior},
        -values[at],
        converged[at] & np.isfinite(values[at]),
        np.sum(values <= values[at][:, None] + AGREEING, axis=1),
        vectors.shape[1],
        np.asarray(jnp.sum(observed.mask, axis=(1, 2))),
    )


def fit_mechanisms(
    study: Study, observed: Observed, key: PRNGKey, **options: Any
) -> dict[str, Fit]:
    """`fit` of every mechanism of a study, by name; `options` are those of `fit`."""
    return {name: fit(study, name, observed, key, **options) for name in study.mechanisms}


def criterion_weights(
    criteria: Mapping[str, Float[np.ndarray, " series"]],
) -> dict[str, Float[np.ndarray, " series"]]:
    r"""Akaike weights $\propto \exp(-\Delta / 2)$ of mechanisms from AIC, AICc or BIC by name.

    Those of BIC approximate the mechanisms' posterior probabilities; those of AIC do not.
    Source: Burnham and Anderson (2002).
    """
    table = np.stack(list(criteria.values()))
    weights = np.exp(-(table - table.min(axis=0)) / 2)
    return dict(zip(criteria, weights / weights.sum(axis=0), strict=True))


def check_records(observed: Observed) -> None:
    """Raises `ValueError` for series without a value, or with one that is not finite."""
    empty = np.flatnonzero(~np.asarray(jnp.any(observed.mask, axis=(1, 2))))
    if empty.size:
        raise ValueError(f"The series {empty[:5].tolist()} have no recorded value; leave them out.")
    values = np.asarray(jnp.where(observed.mask, observed.values, 0.0))
    broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
    if broken.size:
        raise ValueError(f"The series {broken[:5].tolist()} have values that are not finite.")
