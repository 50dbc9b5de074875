r"""Tests of accuracy with random points (TARP): `draws, truths, references -> shares`.

For a reference point $r$ the share of posterior draws that are nearer to $r$ than the truth is
uniform under the exact posterior, whatever $r$ is, as long as it knows of the truth no more than
the data do. With references that depend on the data uniformity is also sufficient; with fixed ones
the prior passes. Source: Lemos et al. (2023).
"""

import numpy as np
from jaxtyping import Float

from sgjax.diagnostics.ranks import rank_pits, sbc_ranks

Truths = Float[np.ndarray, "simulations dimensions"]


def tarp(
    draws: Float[np.ndarray, "simulations draws dimensions"],
    truths: Truths,
    references: Truths,
    seed: int = 0,
) -> Float[np.ndarray, " simulations"]:
    """The share of draws nearer to its reference than the truth is, one number per simulation.

    Distances are Euclidean, in units of the truths' standard deviations. Made continuous by a
    uniform number between neighbouring ranks, so that it is exactly uniform where the posterior is
    right: judge it with `uniformity`.
    """
    scale = np.std(truths, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    distances = np.linalg.norm((draws - references[:, None]) / scale, axis=-1)
    reach = np.linalg.norm((truths - references) / scale, axis=-1)
    return rank_pits(sbc_ranks(distances, reach, seed), draws.shape[1], seed + 1)


def uniform_references(truths: Truths, seed: int = 0) -> Truths:
    """Fixed references: uniform in the box of all truths, whatever the data."""
    random = np.random.default_rng(seed)
    return random.uniform(truths.min(axis=0), truths.max(axis=0), truths.shape)


def neighbour_references(
    data: Float[np.ndarray, "simulations features"],
    other_data: Float[np.ndarray, "others features"],
    other_truths: Float[np.ndarray, "others dimensions"],
) -> Truths:
    """References that depend on the data: the truth of the most similar of *other* simulations.

    Similar by Euclidean distance in units of each feature's standard deviation. The others must not
    be judged themselves: two simulations that refer to each other would not be independent.
    """
    shift, scale = other_data.mean(axis=0), other_data.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    ours, theirs = (data - shift) / scale, (other_data - shift) / scale
    half_squares = np.sum(theirs**2, axis=1) / 2
    return other_truths[np.argmin(half_squares - ours @ theirs.T, axis=1)]


def area_to_curve(pits: Float[np.ndarray, " simulations"]) -> float:
    r"""$\int_{1/2}^1 (\mathrm{ECP}(\alpha) - \alpha) \, d\alpha$ of the expected coverage.

    0 where right; below for posteriors that are too narrow, above for too wide ones.
    """
    return float(np.mean(np.minimum(1 - np.asarray(pits), 0.5)) - 0.375)
