"""Importance weights: log weights -> smoothed weights, and how far to trust them."""

import numpy as np
from jaxtyping import Float

from sgjax.references.posterior import LEVELS, weighted_quantile

MAX_PARETO_K = 0.7
"""Above it, the error of the weighted averages is itself unreliable (Vehtari et al., 2024)."""

MIN_ESS = 400
"""Fewer effective draws leave the tails of a posterior to chance."""

PRIOR_TAIL = 10
"""How many imagined tail draws pull k towards 1/2 where the real ones are few."""


def pareto_smooth(
    log_weights: Float[np.ndarray, " draws"],
) -> tuple[Float[np.ndarray, " draws"], float]:
    r"""Replaces the largest weights by quantiles of a generalised Pareto fit to them, and gives k.

    The tail is the $\min(n / 5, 3 \sqrt n)$ largest. Its shape $\hat k$ says whether the weights
    have a finite variance (below 1/2) or mean (below 1); no smoothed weight passes the largest raw
    one. $\hat k$ is 0 where the tail does not vary and infinite where it holds fewer than 5 draws.
    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    """
    size = log_weights.size
    tail = int(np.ceil(min(0.2 * size, 3 * np.sqrt(size))))
    finite = np.isfinite(log_weights).sum()
    if tail < 5 or finite <= tail:
        return log_weights, np.inf
    order = np.argsort(log_weights)
    largest, cut = log_weights[order[-1]], log_weights[order[-tail - 1]]
    threshold = np.exp(cut - largest)
    exceedances = np.exp(log_weights[order[-tail:]] - largest) - threshold
    if exceedances[-1] <= 0:
        return log_weights, 0.0
    k, scale = fit_generalised_pareto(np.maximum(exceedances, np.finfo(float).tiny))
    shares = (np.arange(tail) + 0.5) / tail
    stretch = -np.log1p(-shares) if abs(k) < 1e-9 else np.expm1(-k * np.log1p(-shares)) / k
    smoothed = log_weights.copy()
    smoothed[order[-tail:]] = largest + np.log(np.minimum(threshold + scale * stretch, 1.0))
    return smoothed, k


def fit_generalised_pareto(exceedances: Float[np.ndarray, " tail"]) -> tuple[float, float]:
    r"""Shape $k$ and scale $\sigma$ of $P(X > x) = (1 + k x / \sigma)^{-1/k}$; ascending input.

    The posterior mean of $b = -k / \sigma$ over a profile likelihood on a grid, as quick as it is
    steady (Zhang and Stephens, 2009); $k$ is then pulled towards 1/2 by ten draws (Vehtari et al.,
    2024).
    """
    size = exceedances.size
    points = 30 + int(np.sqrt(size))
    quarter = exceedances[int(size / 4 + 0.5) - 1]
    steps = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = 1 / exceedances[-1] + steps / (3 * quarter)
    shapes = np.mean(np.log1p(-b[:, None] * exceedances), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = size * (np.log(-b / shapes) - shapes - 1)
    usable = np.isfinite(profile)  # b = 0, the exponential limit, has no finite number
    weights = np.exp(profile[usable] - profile[usable].max())
    centre = weights @ b[usable] / weights.sum()
    k = float(np.mean(np.log1p(-centre * exceedances)))
    scale = -k / centre
    return (size * k + PRIOR_TAIL * 0.5) / (size + PRIOR_TAIL), scale


def weigh(log_weights: Float[np.ndarray, " draws"]) -> tuple[dict, np.ndarray]:
    """Diagnostics and normalised weights, smoothed; the evidence is that of the raw ones."""
    size, largest = log_weights.size, log_weights.max()
    raw = np.exp(log_weights - largest)
    smoothed, k = pareto_smooth(log_weights)
    weights = np.exp(smoothed - largest)
    weights /= weights.sum()
    ess = float(1 / np.sum(weights**2))
    trusted, verdict = _verdict(size, ess, k)
    return {
        "log_evidence": float(largest + np.log(raw.mean())),
        "log_evidence_error": float(raw.std() / raw.mean() / np.sqrt(size)),
        "ess": ess,
        "pareto_k": k,
        "num_samples": size,
        "trusted": trusted,
        "verdict": verdict,
    }, weights


def _verdict(size: int, ess: float, k: float) -> tuple[bool, str]:
    limit = min(MAX_PARETO_K, 1 - 1 / np.log10(size))
    facts = f"{ess:.0f} effective of {size} draws, Pareto k {k:.2f}"
    if k > limit:
        return False, (
            f"Do not trust it ({facts}, above {limit:.2f}): the amortised posterior misses part "
            "of the exact one. Give the prior a share (`prior_share`), train longer, or use "
            "`nuts_posterior`."
        )
    if ess < MIN_ESS:
        return False, f"Right but rough ({facts}): raise `num_samples`."
    return True, f"Exact to Monte Carlo error ({facts})."


def standard_errors(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Monte Carlo standard errors of mean, sd and quantiles of self-normalised weights."""

    def error(parts: np.ndarray) -> float:
        return float(np.sqrt(weights**2 @ (parts - weights @ parts) ** 2))

    squares = (values - weights @ values) ** 2
    errors = {"mean": error(values), "sd": error(squares) / (2 * np.sqrt(weights @ squares))}
    for label, level in LEVELS.items():
        spread = error((values <= weighted_quantile(values, weights, level)).astype(float))
        ends = np.clip([level - spread, level + spread], 0, 1)
        low, high = weighted_quantile(values, weights, ends)
        errors[label] = float(high - low) / 2
    return errors
