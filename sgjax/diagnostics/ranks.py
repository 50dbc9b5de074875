r"""Where the truth lies among posterior draws: `draws, truth -> ranks, PIT values, coverage`.

The first axis counts simulations, the second draws. Under the exact posterior the truth and the
draws are exchangeable, so that every rank is equally likely, for any function of $(\theta, x)$.
Necessary only: the prior passes for every function of $\theta$ alone.
"""

import numpy as np
from jaxtyping import Float, Int

Draws = Float[np.ndarray, "simulations draws *quantities"]
Truth = Float[np.ndarray, "simulations *quantities"]
Ranks = Int[np.ndarray, "simulations *quantities"]


def sbc_ranks(draws: Draws, truth: Truth, seed: int = 0) -> Ranks:
    r"""$\#\{l : \theta_l < \theta^*\}$, uniform on 0 to the number of draws; ties at random.

    Simulation-based calibration (Talts et al., 2018). Give parameters, functions of them, or
    $\log p(x \mid \theta)$, which finds errors that no parameter shows (Modrák et al., 2023). What
    is not a number ranks below everything.
    """
    draws, truth = _lowest(draws), _lowest(truth)[:, None]
    less, ties = np.sum(draws < truth, axis=1), np.sum(draws == truth, axis=1)
    return less + np.random.default_rng(seed).integers(0, ties, endpoint=True)


def rank_pits(ranks: Ranks, num_draws: int, seed: int = 0) -> Truth:
    r"""$(r + v) / (L + 1)$, $v$ uniform: exactly uniform on (0, 1) where the ranks are uniform."""
    return (ranks + np.random.default_rng(seed).random(ranks.shape)) / (num_draws + 1)


def pit(below: Truth, at: Truth, seed: int = 0) -> Truth:
    r"""$u = F(y^-) + v \, (F(y) - F(y^-))$, $v$ uniform: the randomised integral transform.

    `below` is the probability predicted for less than what happened, `at` for at most that: for
    counts $F(y - 1)$ and $F(y)$, for continuous values the same number twice. Uniform where the
    prediction is right (Czado, Gneiting & Held, 2009).
    """
    below, at = np.asarray(below, float), np.asarray(at, float)
    return below + np.random.default_rng(seed).random(below.shape) * (at - below)


def expected_coverage(
    pits: Float[np.ndarray, " simulations"], levels: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, " levels"]:
    """The share of truths in the central interval of each level, from PIT values.

    From PIT values of the density at the truth among the density at draws, with the levels counted
    from the top, it is the coverage of highest-density regions (Hermans et al., 2022).
    """
    return np.mean(centrality(pits)[:, None] < np.asarray(levels), axis=0)


def centrality(pits: Float[np.ndarray, " simulations"]) -> Float[np.ndarray, " simulations"]:
    r"""$|2u - 1|$, the level of the narrowest central interval with the truth; uniform too."""
    return np.abs(2 * np.asarray(pits, float) - 1)


def _lowest(values: np.ndarray) -> np.ndarray:
    numbers = np.asarray(values)
    return np.where(np.isnan(numbers), -np.inf, numbers)
