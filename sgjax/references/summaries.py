r"""Exact posteriors of many series in numbers: `(study, mechanism, records) -> means, quantiles`.

What a grid or NUTS gives for one series, for ten thousand: by adaptive importance sampling (see
`_adaptive`), self-normalised, $E[f \mid x] \approx \sum_i w_i f(\theta_i) / \sum_i w_i$. What the
estimates are worth comes with them, series by series.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.references._adaptive import prepared, weighted_draws
from sgjax.references._mirror import thetas_of
from sgjax.references.likelihood import LogJoint, compiled
from sgjax.references.weights import MAX_PARETO_K
from sgjax.study import Study


@dataclasses.dataclass(frozen=True)
class Summaries:
    """Posterior means, sds and quantiles of each of many series, within one mechanism."""

    mechanism: str
    mean: dict[str, Float[np.ndarray, " series"]]
    sd: dict[str, Float[np.ndarray, " series"]]
    quantiles: dict[str, Float[np.ndarray, "series levels"]]
    error: dict[str, Float[np.ndarray, " series"]]
    """Monte Carlo standard errors of the means."""
    levels: tuple[float, ...]
    ess: Float[np.ndarray, " series"]
    """Effective draws."""
    pareto_k: Float[np.ndarray, " series"]
    """The shape of the weights' tail: above 0.7 the errors themselves cannot be trusted."""
    num_samples: Int[np.ndarray, " series"]

    @property
    def trusted(self) -> Bool[np.ndarray, " series"]:
        """Whether k is below 0.7 and a hundred draws are effective."""
        return (self.pareto_k < MAX_PARETO_K) & (self.ess >= 100)


def posterior_summaries(
    study: Study,
    mechanism: str,
    observed: Observed,
    key: PRNGKey,
    quantities: Mapping[str, Callable[[Theta], Array]],
    *,
    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    known: Theta | None = None,
    num_samples: int = 2048,
    min_ess: float = 1000.0,
    max_samples: int = 2**15,
    progress: Callable[[int, int], None] | None = None,
) -> Summaries:
    """The exact posterior of each of many series, in numbers.

    **Arguments:** `observed`, with the series leading, or one series alone; `quantities`, what is
    asked, functions `theta -> number`; `levels` of the quantiles; `known`, the values of the
    study's known parameters, the same for all; `num_samples` draws for each series, in parts of
    1,024, and as many as seem needed, up to `max_samples`, where fewer than `min_ess` are
    effective or Pareto's k is above 0.7; `progress` hears how many series are done, of how many.

    Two calls with two keys give estimates whose errors are independent: a product of both
    differences, $(f - m_1)(f - m_2)$, has the expectation $(f - m)^2$ without the references' own
    error.

    Raises `ValueError` where the mechanism is not the study's, a record has other times or
    channels, the likelihood is no closed form, a series has no value at all, nothing is asked, or
    a level is not within (0, 1).
    """
    if not quantities:
        raise ValueError("`quantities` is empty; name at least one function of the parameters.")
    if any(not 0 < level < 1 for level in levels):
        raise ValueError(f"`levels` must be within (0, 1); got {list(levels)}.")
    joint, observed = prepared(study, mechanism, observed, known)
    count = observed.values.shape[0]
    numbers = lambda *shape: {name: np.full((count, *shape), np.nan) for name in quantities}
    mean, sd, error, quantiles = numbers(), numbers(), numbers(), numbers(len(levels))
    ess, pareto_k, taken = np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
    program = compiled(joint, _program(tuple(quantities.items())))
    limits = num_samples, min_ess, max_samples
    for draws in weighted_draws(joint, observed, key, limits, progress):
        at = draws.series
        ess[at], pareto_k[at], taken[at] = draws.ess, draws.pareto_k, draws.log_weights.size
        if draws.ess == 0.0:
            continue
        weights = np.exp(draws.log_weights - draws.log_weights.max())
        weights /= weights.sum()
        for name, single in program(jnp.asarray(draws.points)).items():
            values = np.asarray(single, np.float64)
            mean[name][at] = average = weights @ values
            sd[name][at] = np.sqrt(weights @ (values - average) ** 2)
            error[name][at] = np.sqrt(weights**2 @ (values - average) ** 2)
            quantiles[name][at] = weighted_quantiles(values, weights, levels)
    return Summaries(mechanism, mean, sd, quantiles, error, tuple(levels), ess, pareto_k, taken)


def weighted_quantiles(
    values: Float[np.ndarray, " draws"],
    weights: Float[np.ndarray, " draws"],
    levels: Sequence[float],
) -> Float[np.ndarray, " levels"]:
    """Quantiles of weighted draws: a draw stands at the middle of its weight, linear between."""
    order = np.argsort(values)
    places = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(levels, places, values[order])


@functools.lru_cache(maxsize=16)
def _program(functions: tuple[tuple[str, Callable[[Theta], Array]], ...]) -> Callable:
    """The functions of points, as one program for `compiled`."""

    def run(joint: LogJoint, points: Array) -> dict[str, Array]:
        thetas = thetas_of(joint, points)
        return {name: jax.vmap(function)(thetas) for name, function in functions}

    return run
