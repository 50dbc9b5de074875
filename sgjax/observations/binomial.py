"""Binomial counts: a survey of a sample."""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy
from jax.typing import ArrayLike
from jaxtyping import Array

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise
from sgjax.samplers import binomial


def binomial_log_mass(total: Array, probability: Array, values: Array) -> Array:
    r"""$\log \binom{n}{k} p^k (1 - p)^{n - k}$; minus infinity for $k$ outside 0 to $n$."""
    possible = (values >= 0) & (values <= total)
    possible &= (probability > 0) | (values == 0)
    possible &= (probability < 1) | (values == total)
    uncertain = possible & (probability > 0) & (probability < 1) & (total > 0)
    # Harmless numbers where the outcome is certain or impossible, so that no gradient is nan.
    p = jnp.where(uncertain, probability, 0.5)
    total, values = jnp.where(uncertain, total, 0.0), jnp.where(uncertain, values, 0.0)
    log_choose = -betaln(values + 1, total - values + 1) - jnp.log1p(total)
    log_mass = log_choose + xlogy(values, p) + xlog1py(total - values, -p)
    return jnp.where(possible, jnp.where(uncertain, log_mass, 0.0), -jnp.inf)


class Binomial(AbstractNoise):
    r"""How many of a sample of $n$ are positive: $k \sim \mathrm{Binomial}(n, \mu / N)$.

    A survey: at each time $n$, the `sample_size`, of a `population` of $N$ are tested, of whom
    $\mu$, the signal, are positive; a population of 1 takes the signal for a fraction. A signal
    outside 0 to $N$ counts as none or all. Mean $n \mu / N$; sampling with replacement, so $n$
    should be well below $N$. For counts that are each reported with some probability see
    `BinomialReporting`.

    **Good values:** $n$ from 50 (a ward) to 5000 (a national serosurvey).

    Source: Gelman et al., Bayesian Data Analysis (2013), chapter 2.
    """

    sample_size: ArrayLike = 100.0
    population: ArrayLike = 1000.0
    prior: Prior = eqx.field(default_factory=dict)
    lowest = 0.0

    def draw(self, key, theta, mean):
        return binomial(key, *self._trials(theta, mean))

    def log_density(self, theta, mean, values):
        return binomial_log_mass(*self._trials(theta, mean), values)

    def _trials(self, theta, mean):
        fraction = mean / self.level(theta, "population", mean)
        return self.level(theta, "sample_size", mean), jnp.clip(fraction, 0.0, 1.0)
