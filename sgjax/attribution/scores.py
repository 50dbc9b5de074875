"""Proper scores of weighted clouds, one number a query; many queries at once, in NumPy."""

import numpy as np
from jaxtyping import Float

SHIFTS = 16
"""Pairs of points are sampled by shifting a cloud against itself so many times."""


def crps(
    points: Float[np.ndarray, "queries k"],
    weights: Float[np.ndarray, "queries k"],
    truth: Float[np.ndarray, " queries"],
) -> Float[np.ndarray, " queries"]:
    r"""$\sum_i w_i |\theta_i - \theta| - \tfrac12 \sum_{ij} w_i w_j |\theta_i - \theta_j|$.

    The continuous ranked probability score of the weighted points as they are; weights sum to 1.
    """
    order = np.argsort(points, axis=1)
    points = np.take_along_axis(points, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    accuracy = (weights * np.abs(points - truth[:, None])).sum(axis=1)
    # Half the sum over all pairs, from the order statistics.
    spread = (weights * points * (2 * np.cumsum(weights, axis=1) - weights - 1)).sum(axis=1)
    return accuracy - spread


def energy_score(
    points: Float[np.ndarray, "queries k size"],
    weights: Float[np.ndarray, "queries k"],
    truth: Float[np.ndarray, "queries size"],
) -> Float[np.ndarray, " queries"]:
    r"""The same of vectors, with Euclidean norms (Gneiting and Raftery, 2007).

    The double sum, of $k^2$ terms, is estimated without bias in the choice of pairs from `SHIFTS`
    of the k - 1 ways to pair each point with the one so many places behind it.
    """
    k = points.shape[1]
    accuracy = (weights * np.linalg.norm(points - truth[:, None], axis=2)).sum(axis=1)
    every = np.arange(1, k)
    random = np.random.default_rng(0)
    shifts = every if k - 1 <= SHIFTS else random.choice(every, SHIFTS, replace=False)
    spread = np.zeros(len(points))
    for shift in shifts:
        apart = np.linalg.norm(points - np.roll(points, shift, axis=1), axis=2)
        spread += (weights * np.roll(weights, shift, axis=1) * apart).sum(axis=1)
    return accuracy - spread * (k - 1) / max(len(shifts), 1) / 2


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
