"""Proper scores of weighted clouds, one number a query; many queries at once, in NumPy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

PAIRS = 4096
"""Pairs of points that the spread of a larger cloud is estimated from."""


class Score(NamedTuple):
    r"""A score, and how much of it is there since the points are few.

    So many independent draws of a law score worse by `excess`, on average, than the law itself: by
    their spread times $\sum_i w_i^2 / (1 - \sum_i w_i^2)$, which is 1 / (k - 1) for equal weights.
    """

    value: Float[np.ndarray, " queries"]
    excess: Float[np.ndarray, " queries"]


def crps(
    points: Float[np.ndarray, "queries k"],
    weights: Float[np.ndarray, "queries k"],
    truth: Float[np.ndarray, " queries"],
) -> Score:
    r"""$\sum_i w_i |\theta_i - \theta| - \tfrac12 \sum_{ij} w_i w_j |\theta_i - \theta_j|$.

    The continuous ranked probability score of the weighted points as they are; weights sum to 1.
    """
    order = np.argsort(points, axis=1)
    points = np.take_along_axis(points, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    accuracy = (weights * np.abs(points - truth[:, None])).sum(axis=1)
    # Half the sum over all pairs, from the order statistics.
    spread = (weights * points * (2 * np.cumsum(weights, axis=1) - weights - 1)).sum(axis=1)
    return _score(accuracy, spread, weights)


def energy_score(
    points: Float[np.ndarray, "queries k size"],
    weights: Float[np.ndarray, "queries k"],
    truth: Float[np.ndarray, "queries size"],
) -> Score:
    r"""The same of vectors, with Euclidean norms (Gneiting and Raftery, 2007).

    Of clouds with more than `PAIRS` pairs, the double sum is estimated without bias from as many
    pairs drawn by weight, other ones for each query, so that their error averages out.
    """
    accuracy = (weights * np.linalg.norm(points - truth[:, None], axis=2)).sum(axis=1)
    random = np.random.default_rng(0)
    spread = [_spread(cloud, own, random) for cloud, own in zip(points, weights, strict=True)]
    return _score(accuracy, np.array(spread) / 2, weights)


def _score(
    accuracy: Float[np.ndarray, " queries"],
    spread: Float[np.ndarray, " queries"],
    weights: Float[np.ndarray, "queries k"],
) -> Score:
    alone = (weights**2).sum(axis=1)
    return Score(accuracy - spread, spread * alone / np.maximum(1 - alone, 1e-9))


def _spread(
    points: Float[np.ndarray, "k size"],
    weights: Float[np.ndarray, " k"],
    random: np.random.Generator,
) -> float:
    """The mean distance of two points drawn by weight."""
    (there,) = np.nonzero(weights)
    points, weights = points[there], weights[there]
    if weights.size**2 <= PAIRS:
        apart = np.linalg.norm(points[:, None] - points, axis=2)
        return float(weights @ apart @ weights)
    # Strata of equal weight, one point of each, against the same in another order.
    levels = (np.arange(PAIRS) + random.random(PAIRS)) / PAIRS * weights.sum()
    first = np.searchsorted(np.cumsum(weights), levels).clip(max=weights.size - 1)
    second = random.permutation(first)
    return float(np.linalg.norm(points[first] - points[second], axis=1).mean())


class PriorRanks:
    r"""Maps coordinates to their ranks among draws of the prior, in standard deviations there.

    The score of a rank is that of the parameter with more weight where the prior has more; it is
    the same for a parameter and any increasing function of it, and finite whatever the tails.
    """

    def __init__(self, columns: list[Float[np.ndarray, " draws"]]):
        self._columns = [np.sort(column) for column in columns]

    def __call__(
        self, values: Float[np.ndarray, "*batch size"]
    ) -> Float[np.ndarray, "*batch size"]:
        ranked = [
            np.interp(values[..., index], column, (np.arange(column.size) + 0.5) / column.size)
            for index, column in enumerate(self._columns)
        ]
        return np.stack(ranked, axis=-1) * np.sqrt(12)  # a uniform variable has sd 1 / sqrt(12)
