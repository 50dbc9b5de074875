r"""Weights, lines and shares of clouds of neighbours; many queries at once, in NumPy float64.

A neighbour at distance $d$ of $h$, the distance of the farthest, weighs $1 - (d / h)^2$
(Epanechnikov, 1969). A line fitted with these weights moves each neighbour's parameters to where
the query is (Beaumont, Zhang and Balding, 2002),

$$\theta_i^* = \theta_i - (s_i - s) \beta$$

with regressors $s$, the predictor's means: this takes the bias of first order out of the cloud. For
mechanisms, which have no residual, a multinomial logistic fit takes the line's place
(Beaumont, 2008).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RIDGE = 1e-3
"""Added to the correlations of the regressors, which are nearly collinear near a query."""

NEWTON_STEPS = 30

SHRINKAGE = 1.0
"""Penalty of the squared slopes of the logistic fit, in neighbours."""


def epanechnikov(distances: Float[np.ndarray, "queries k"]) -> Float[np.ndarray, "queries k"]:
    """Weights that sum to 1 and fall to 0 at the farthest; equal where all are as far."""
    farthest = distances[:, -1:]
    ratio = np.divide(distances, farthest, out=np.zeros_like(distances), where=farthest > 0)
    weights = 1 - ratio**2
    weights[weights.sum(axis=1) <= 1e-12] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)


def normalised(
    weights: Float[np.ndarray, "queries k"], kept: Bool[np.ndarray, "queries k"]
) -> Float[np.ndarray, "queries k"]:
    """The weights of those kept, summing to 1; 0 throughout where none has weight."""
    inside = np.where(kept, weights, 0.0)
    total = inside.sum(axis=1, keepdims=True)
    return np.divide(inside, total, out=np.zeros_like(inside), where=total > 0)


def effective(weights: Float[np.ndarray, "queries k"]) -> Float[np.ndarray, " queries"]:
    r"""$(\sum w)^2 / \sum w^2$: how many equally weighted draws are worth as much (Kish, 1965)."""
    squares = (weights**2).sum(axis=1)
    ones = np.zeros_like(squares)
    return np.divide(weights.sum(axis=1) ** 2, squares, out=ones, where=squares > 0)


class Line(NamedTuple):
    """What a local line does to the clouds of many queries."""

    values: Float[np.ndarray, "queries k size"]
    """Moved along the line to the query."""
    effective: Float[np.ndarray, " queries"]
    r"""$1 / \sum l_i^2$ of the weights $l$ that the line's value at the query has in all values."""


def local_line(
    values: Float[np.ndarray, "queries k size"],
    regressors: Float[np.ndarray, "queries k regressors"],
    at: Float[np.ndarray, "queries regressors"],
    weights: Float[np.ndarray, "queries k"],
) -> Line:
    """The weighted ridge regression of `values` on `regressors`, taken out up to `at`.

    `weights` sum to 1 in each row; a row of zeros is left as it is.
    """
    mean = np.einsum("qk,qkr->qr", weights, regressors)
    centred = regressors - mean[:, None]
    sd = np.sqrt(np.einsum("qk,qkr->qr", weights, centred**2))
    sd = np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, np.inf)  # one that never varies has slope 0
    scaled, offset = centred / sd[:, None], (at - mean) / sd
    weighted = scaled * weights[..., None]
    gram = np.einsum("qkr,qks->qrs", weighted, scaled) + RIDGE * np.eye(at.shape[1])
    slopes = np.linalg.solve(gram, np.einsum("qkr,qkd->qrd", weighted, values))
    moved = values - np.einsum("qkr,qrd->qkd", scaled - offset[:, None], slopes)
    reach = np.linalg.solve(gram, offset[..., None])[..., 0]
    share = weights * (1 + np.einsum("qkr,qr->qk", scaled, reach))
    squares = (share**2).sum(axis=1)
    return Line(moved, np.divide(1, squares, out=np.zeros_like(squares), where=squares > 0))


class Shares(NamedTuple):
    """Shares of the mechanisms at each query."""

    values: Float[np.ndarray, "queries mechanisms"]
    effective: Float[np.ndarray, " queries"]
    """So many draws would know the shares as well."""


def counted_shares(
    mechanism: Int[np.ndarray, "queries k"], weights: Float[np.ndarray, "queries k"], count: int
) -> Shares:
    """Weighted frequencies; `weights` sum to 1 in each row."""
    values = [np.where(mechanism == index, weights, 0).sum(axis=1) for index in range(count)]
    return Shares(np.stack(values, axis=1), effective(weights))


def logistic_shares(
    mechanism: Int[np.ndarray, "queries k"],
    log_odds: Float[np.ndarray, "queries k regressors"],
    at: Float[np.ndarray, "queries regressors"],
    weights: Float[np.ndarray, "queries k"],
    count: int,
) -> Shares:
    """Shares at the query by multinomial logistic regression on log odds, by Newton's method.

    Neighbours count by their weights as many as they are worth together; half a neighbour of each
    mechanism at the query keeps the fit finite where all are of one (Jeffreys, 1946), and slopes
    have a ridge.
    """
    worth = effective(weights)
    regressors = log_odds - at[:, None]
    sd = np.sqrt(np.einsum("qk,qkr->qr", weights, regressors**2))
    regressors = regressors / np.where(sd > 1e-12, sd, np.inf)[:, None]
    design = np.concatenate([np.ones((*mechanism.shape, 1)), regressors], axis=2)
    mass = weights * worth[:, None]
    others = np.arange(count - 1)
    target = (mechanism[..., None] == others).astype(float)
    size = design.shape[2]
    slopes = np.zeros((len(at), count - 1, size))
    ridge = np.diag(np.tile([0.0] + [SHRINKAGE] * (size - 1), count - 1))
    for _ in range(NEWTON_STEPS):
        p = _softmax(np.einsum("qkr,qcr->qkc", design, slopes))
        centre = _softmax(slopes[:, :, 0])
        gradient = np.einsum("qk,qkc,qkr->qcr", mass, target - p, design)
        gradient[:, :, 0] += 0.5 - 0.5 * count * centre
        gradient[:, :, 1:] -= SHRINKAGE * slopes[:, :, 1:]
        hessian = ridge + _information(mass, p, design)
        hessian.reshape(len(at), count - 1, size, count - 1, size)[:, :, 0, :, 0] += (
            0.5 * count * _covariance(centre)
        )
        step = np.linalg.solve(hessian, gradient.reshape(len(at), -1, 1)).reshape(slopes.shape)
        # Newton's step is cut where it is long: the likelihood is concave, but not quadratic.
        slopes = (
            slopes
            + step * np.minimum(1, 3 / np.maximum(np.abs(step).max((1, 2)), 1e-12))[:, None, None]
        )
        if np.abs(step).max(initial=0) < 1e-8:
            break
    centre = _softmax(slopes[:, :, 0])
    values = np.concatenate([centre, 1 - centre.sum(axis=1, keepdims=True)], axis=1)
    zeros = np.zeros((*mechanism.shape, 1))
    return Shares(values, local_line(zeros, log_odds, at, weights).effective)


def _softmax(scores: Float[np.ndarray, "*batch others"]) -> Float[np.ndarray, "*batch others"]:
    """Probabilities of all classes but the last, whose score is 0."""
    largest = np.maximum(scores.max(axis=-1, keepdims=True), 0)
    exponentials = np.exp(scores - largest)
    return exponentials / (exponentials.sum(axis=-1, keepdims=True) + np.exp(-largest))


def _covariance(p: Float[np.ndarray, "queries others"]) -> Float[np.ndarray, "queries o o"]:
    return p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None]


def _information(mass: np.ndarray, p: np.ndarray, design: np.ndarray) -> np.ndarray:
    """The Fisher information of all slopes, one square matrix a query."""
    queries, _, others = p.shape
    size = design.shape[2]
    blocks = np.empty((queries, others, size, others, size))
    for a in range(others):
        for b in range(others):
            spread = mass * p[..., a] * ((a == b) - p[..., b])
            blocks[:, a, :, b, :] = np.einsum("qkr,qks->qrs", design * spread[..., None], design)
    return blocks.reshape(queries, others * size, others * size)
