"""Poisson counts."""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import gammaln

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise
from sgjax.samplers import poisson


class Poisson(AbstractNoise):
    r"""Counts with mean and variance $\mu$: $P(k) = \mu^k e^{-\mu} / k!$.

    The signal is the expected count in each interval. A mean of zero or below gives no counts.

    **Good values:** nothing to choose. Right for independent events such as decays or cell counts;
    surveillance is nearly always noisier, see `NegativeBinomial`.

    Source: Poisson (1837).
    """

    prior: Prior = eqx.field(default_factory=dict)
    lowest = 0.0

    def draw(self, key, theta, mean):
        return poisson(key, jnp.maximum(mean, 0.0))

    def log_density(self, theta, mean, values):
        positive = mean > 0
        mean = jnp.where(positive, mean, 1.0)
        log_mass = values * jnp.log(mean) - mean - gammaln(values + 1)
        return jnp.where(positive, log_mass, jnp.where(values == 0, 0.0, -jnp.inf))
