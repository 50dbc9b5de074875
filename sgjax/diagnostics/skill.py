r"""What a posterior knows beyond the prior: contraction, log score; calibration of probabilities.

A posterior may be right and know nothing: the prior is. These numbers say how much it knows.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

ROWS = 500
"""Null draws made at once, for memory."""


@dataclasses.dataclass(frozen=True)
class Skill:
    """A measure of knowledge with its Monte Carlo standard error: 0 for the prior."""

    value: float
    standard_error: float

    @property
    def informative(self) -> bool:
        """Whether it is above 0 by more than three standard errors, and than rounding."""
        return self.value > max(3 * self.standard_error, 1e-5)


def contraction(
    estimates: Float[np.ndarray, " simulations"], truths: Float[np.ndarray, " simulations"]
) -> Skill:
    r"""$c = 1 - E(T - \hat T)^2 / \operatorname{Var}(T)$, 1 where the data decide, 0 for the prior.

    With the posterior mean as $\hat T$ it estimates $1 - E[\operatorname{Var}(T \mid x)] /
    \operatorname{Var}(T)$ (Schad, Betancourt & Vasishth, 2021), from below where the network is
    imperfect. The standard error is that of a ratio of means.
    """
    return remaining((truths - estimates) ** 2, (truths - np.mean(truths)) ** 2)


def remaining(
    after: Float[np.ndarray, " simulations"], before: Float[np.ndarray, " simulations"]
) -> Skill:
    """1 less the ratio of two means over the same simulations, with its standard error."""
    ratio = after.mean() / before.mean()
    influence = (after - ratio * before) / before.mean()
    return Skill(float(1 - ratio), float(influence.std() / np.sqrt(before.size)))


def log_score_gain(
    log_densities: Float[np.ndarray, " simulations"], log_prior: Float[np.ndarray, " simulations"]
) -> Skill:
    r"""$E[\log q(\theta^* \mid x) - \log p(\theta^*)]$ in nats: what the data told the predictor.

    For the exact posterior the mutual information of parameters and data, for any other less, by
    its Kullback-Leibler divergence (Good, 1952). Works for class probabilities too.
    """
    gains = log_densities - log_prior
    return Skill(float(gains.mean()), float(gains.std() / np.sqrt(gains.size)))


@dataclasses.dataclass(frozen=True)
class ECE:
    """Expected calibration error, an interval for what endless simulations would give, and a null.

    From few simulations it is never 0: `null` holds its values for truths drawn from the
    probabilities themselves.
    """

    value: float
    low: float
    high: float
    null: Float[np.ndarray, " draws"]

    @property
    def p_value(self) -> float:
        """The share of right predictors whose error is as large."""
        return float((1 + np.sum(self.null >= self.value)) / (1 + self.null.size))


def expected_calibration_error(
    probabilities: Float[np.ndarray, "simulations classes"],
    truths: Int[np.ndarray, " simulations"],
    *,
    bins: int = 15,
    level: float = 0.9,
    num_resamples: int = 1000,
    num_null: int = 1000,
    seed: int = 0,
) -> ECE:
    r"""$\sum_b \frac{n_b}{n} |\text{accuracy}_b - \text{confidence}_b|$ in bins of equal counts.

    The confidence is the largest probability, the accuracy how often its class was true (Naeini,
    Cooper & Hauskrecht, 2015). `level` is that of the interval, the basic bootstrap's.
    """
    random = np.random.default_rng(seed)
    confidence, chosen = probabilities.max(axis=1), probabilities.argmax(axis=1)
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], (chosen == truths)[order].astype(float)
    parts = np.array_split(np.arange(right.size), min(bins, right.size))
    starts = [int(part[0]) for part in parts]

    def error(excess: Float[np.ndarray, "draws simulations"]) -> Float[np.ndarray, " draws"]:
        return np.abs(np.add.reduceat(excess, starts, axis=1)).sum(axis=1) / right.size

    value, size = float(error((right - confidence)[None])[0]), right.size
    # Positions are in the order of confidence, so that sorted ones fall into bins again.
    picks = np.sort(random.integers(0, size, (num_resamples, size)), axis=1)
    resampled = error((right - confidence)[picks])
    # Resampling adds as much to the error as sampling did: reflected, the interval takes both off.
    high, low = 2 * value - np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    null = [
        error((random.random((rows, size)) < confidence) - confidence)
        for rows in np.diff(np.r_[0:num_null:ROWS, num_null]).tolist()
    ]
    return ECE(value, max(float(low), 0.0), max(float(high), 0.0), np.concatenate(null))
