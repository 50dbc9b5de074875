r"""Losses: proper scoring rules, `(prediction, values, mask) -> one number`; no batch axis.

A rule $S(q, y)$ is proper where the expected score over $y \sim p$ is least at $q = p$, so that
training towards a low mean score makes a predictor report what it believes. Lower is better. Where
`mask` is false a component does not exist: its value is never read.
"""

import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax
from jaxtyping import Array, ArrayLike, Bool, Float

Vector = Float[Array, " size"]
Mask = Bool[Array, " size"]
Score = Float[Array, ""]


def squared_error(prediction: Vector, values: Vector, mask: Mask | None = None) -> Score:
    r"""$(y - a)^2$, mean over components. Least at the mean (Gauss, 1809)."""
    return masked_mean((_existing(values, mask) - prediction) ** 2, mask)


def absolute_error(prediction: Vector, values: Vector, mask: Mask | None = None) -> Score:
    r"""$|y - a|$, mean over components. Least at the median (Laplace, 1774)."""
    return masked_mean(jnp.abs(_existing(values, mask) - prediction), mask)


def pinball(
    quantiles: Float[Array, "size levels"],
    values: Vector,
    levels: Float[ArrayLike, " levels"],
    mask: Mask | None = None,
) -> Score:
    r"""$\max(\tau (y - q_\tau), (\tau - 1)(y - q_\tau))$, mean over levels and components.

    Least at the quantiles of levels $\tau$ (Koenker & Bassett, 1978). Over a dense grid of levels
    its mean is half the continuous ranked probability score.
    """
    above = _existing(values, mask)[:, None] - quantiles
    rank = jnp.asarray(levels, quantiles.dtype)[None]
    return masked_mean(jnp.maximum(rank * above, (rank - 1) * above).mean(-1), mask)


def interval_score(
    lower: Vector, upper: Vector, values: Vector, level: float = 0.9, mask: Mask | None = None
) -> Score:
    r"""$(u - l) + \frac{2}{\alpha}(l - y)_+ + \frac{2}{\alpha}(y - u)_+$, $\alpha = 1 -$ `level`.

    Mean over components. Least at the central interval, from quantile $\alpha/2$ to $1 - \alpha/2$
    (Gneiting & Raftery, 2007).
    """
    values = _existing(values, mask)
    outside = jnp.maximum(lower - values, 0) + jnp.maximum(values - upper, 0)
    return masked_mean(upper - lower + 2 / (1 - level) * outside, mask)


def gaussian_log_score(
    mean: Vector,
    factor: Float[Array, "size size"],
    values: Vector,
    mask: Mask | None = None,
) -> Score:
    r"""$-\log \mathcal N(y; \mu, (L L^\top)^{-1})$ with `factor` $L$ lower triangular.

    $$z = L^\top (y - \mu), \quad S = \tfrac12 |z|^2 - \sum_i \log L_{ii} + \tfrac n2 \log 2\pi$$

    A sum, not a mean: one density of all components. Rows and columns of $L$ where `mask` is false
    are removed, which leaves a normal density of the $n$ others. Least at the mean and covariance
    of any distribution; also at the distribution itself where that is normal (Dawid & Sebastiani,
    1999).
    """
    whitened, log_determinant = whiten(mean, factor, values, mask)
    count = mean.size if mask is None else jnp.sum(mask)
    return 0.5 * jnp.sum(whitened**2) - log_determinant + 0.5 * np.log(2 * np.pi) * count


def whiten(
    mean: Vector,
    factor: Float[Array, "size size"],
    values: Vector,
    mask: Mask | None = None,
) -> tuple[Vector, Score]:
    r"""$z = L^\top (y - \mu)$, 0 where `mask` is false, and $\log |\partial z / \partial y|$.

    $L$ is `factor`, of which only rows and columns where `mask` is true are read.
    """
    exists = jnp.ones(mean.shape, bool) if mask is None else mask
    residual = jnp.where(exists, _existing(values, mask) - mean, 0)
    whitened = jnp.where(exists, residual @ factor, 0)
    return whitened, jnp.sum(jnp.log(jnp.where(exists, jnp.diagonal(factor), 1)))


def log_score(logits: Float[Array, " classes"], values: Float[Array, " classes"]) -> Score:
    r"""$-\sum_k y_k \log p_k$, $p = \operatorname{softmax}(\text{logits})$; `values` is one-hot.

    Least at the probabilities of the classes (Good, 1952).
    """
    return -jnp.sum(values * log_softmax(logits))


def brier_score(probabilities: Float[Array, " classes"], values: Float[Array, " classes"]) -> Score:
    r"""$\sum_k (y_k - p_k)^2$, `values` one-hot. Least at the probabilities (Brier, 1950)."""
    return jnp.sum((values - probabilities) ** 2)


def crps_ensemble(
    samples: Float[Array, "num size"],
    values: Vector,
    mask: Mask | None = None,
    *,
    fair: bool = True,
) -> Score:
    r"""$\frac1m \sum_i |x_i - y| - \frac{1}{2 m (m-1)} \sum_{ij} |x_i - x_j|$.

    The continuous ranked probability score of an ensemble, mean over components. Fair: its
    expectation is least where the members are drawn from the law of $y$, for any number of members
    $m \ge 2$ (Ferro, 2014). With `fair=False` the divisor is $2 m^2$, which scores the ensemble as
    a distribution by itself and rewards members that are too close together.
    """
    num = _members(samples)
    accuracy = jnp.abs(samples - _existing(values, mask)[None]).mean(0)
    weights = jnp.arange(1 - num, num, 2, dtype=samples.dtype)
    # The sum of |x_i - x_j| over all ordered pairs is twice this weighted sum of order statistics.
    spread = weights @ jnp.sort(samples, axis=0)
    return masked_mean(accuracy - spread / (num * (num - 1) if fair else num**2), mask)


def energy_score(
    samples: Float[Array, "num size"],
    values: Vector,
    mask: Mask | None = None,
    *,
    fair: bool = True,
) -> Score:
    r"""$\frac1m \sum_i \|x_i - y\| - \frac{1}{2 m (m-1)} \sum_{ij} \|x_i - x_j\|$, Euclidean norm.

    One number for all components together. Fair: least in expectation where the members are drawn
    from the joint law of $y$ (Gneiting & Raftery, 2007); `fair=False` as in `crps_ensemble`.
    """
    num = _members(samples)
    exists = jnp.ones(values.shape, bool) if mask is None else mask
    samples = jnp.where(exists[None], samples, 0)
    accuracy = _norm(samples - _existing(values, mask)[None]).mean()
    spread = _norm(samples[:, None] - samples[None]).sum()
    return accuracy - spread / (2 * (num * (num - 1) if fair else num**2))


def masked_mean(scores: Vector, mask: Mask | None = None) -> Score:
    """The mean over components that exist; 0 where none does."""
    if mask is None:
        return jnp.mean(scores)
    return jnp.sum(jnp.where(mask, scores, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _existing(values: Array, mask: Array | None) -> Array:
    """`values` with 0 where masked: even a NaN there reaches neither the score nor its gradient."""
    return values if mask is None else jnp.where(mask, values, 0)


def _members(samples: Array) -> int:
    if samples.shape[0] < 2:
        raise ValueError("An ensemble score needs at least 2 samples; draw more.")
    return samples.shape[0]


def _norm(vectors: Array) -> Array:
    """Euclidean norm over the last axis, with gradient 0 instead of NaN at 0."""
    squares = jnp.sum(vectors**2, -1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
