r"""Evidence of many series at once: `(study, mechanism, records) -> log p(x | mechanism)`.

$p(x) = \int p(x \mid \theta) \, p(\theta) \, d\theta$ by adaptive importance sampling (see
`_adaptive`), without bias. What the estimate is worth comes with it, series by series.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.references._adaptive import Draws, prepared, weighted_draws
from sgjax.references.weights import MAX_PARETO_K
from sgjax.study import Study


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence of one mechanism for each of many series."""

    mechanism: str
    log_evidence: Float[np.ndarray, " series"]
    error: Float[np.ndarray, " series"]
    """Monte Carlo standard errors of `log_evidence`."""
    ess: Float[np.ndarray, " series"]
    """Effective draws."""
    pareto_k: Float[np.ndarray, " series"]
    """The shape of the weights' tail: above 0.7 the errors themselves cannot be trusted."""
    num_samples: Int[np.ndarray, " series"]

    @property
    def trusted(self) -> Bool[np.ndarray, " series"]:
        """Whether k is below 0.7 and a hundred draws are effective."""
        return (self.pareto_k < MAX_PARETO_K) & (self.ess >= 100)


def evidence(
    study: Study,
    mechanism: str,
    observed: Observed,
    key: PRNGKey,
    *,
    known: Theta | None = None,
    num_samples: int = 2048,
    min_ess: float = 1000.0,
    max_samples: int = 2**15,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """The log evidence of one mechanism for many series.

    **Arguments:** `observed`, with the series leading, or one series alone; `known`, the values of
    the study's known parameters, the same for all; `num_samples` draws for each series, in
    parts of 1,024, and as many as seem needed, up to `max_samples`, where fewer than `min_ess` are
    effective or Pareto's k is above 0.7; `progress` hears how many series are done, of how many.

    Raises `ValueError` where the mechanism is not the study's, a record has other times or
    channels, the likelihood is no closed form, or a series has no value at all.
    """
    joint, observed = prepared(study, mechanism, observed, known)
    count = observed.values.shape[0]
    found = {name: np.zeros(count) for name in ("log_evidence", "error", "ess", "pareto_k")}
    taken = np.zeros(count, np.int64)
    limits = num_samples, min_ess, max_samples
    for draws in weighted_draws(joint, observed, key, limits, progress):
        log_evidence, error = _mean_weight(draws)
        worth = {"ess": draws.ess, "pareto_k": draws.pareto_k}
        for name, value in ({"log_evidence": log_evidence, "error": error} | worth).items():
            found[name][draws.series] = value
        taken[draws.series] = draws.log_weights.size
    return Evidence(mechanism, num_samples=taken, **found)


def mechanism_posterior(
    evidences: Mapping[str, Evidence], prior: Mapping[str, float] | None = None
) -> dict[str, Float[np.ndarray, " series"]]:
    r"""$P(M \mid x) \propto P(M) \, p(x \mid M)$ of each series; `prior` is equal by default."""
    shares = dict.fromkeys(evidences, 1.0) if prior is None else prior
    logs = np.stack([each.log_evidence + np.log(shares[n]) for n, each in evidences.items()])
    weights = np.exp(logs - logs.max(axis=0))
    return dict(zip(evidences, weights / weights.sum(axis=0), strict=True))


def _mean_weight(draws: Draws) -> tuple[float, float]:
    """The logarithm of the mean weight and its standard error."""
    largest, size = draws.log_weights.max(), draws.log_weights.size
    if not np.isfinite(largest):
        return -np.inf, np.inf
    weights = np.exp(draws.log_weights - largest)
    # So many are of each part, so each varies by itself.
    parts = np.split(weights, [size - draws.from_prior])
    variance = sum(part.size * part.var() for part in parts if part.size) / size
    mean = weights.mean()
    return float(largest + np.log(mean)), float(np.sqrt(variance / size) / mean)
