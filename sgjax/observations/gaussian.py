"""Additive Gaussian noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise


class Gaussian(AbstractNoise):
    r"""An error that is added, the same at every level: $y = \mu + \sigma z$, $z \sim N(0, 1)$.

    $\sigma$ is the standard deviation `sd` in the unit of the channel: one number, or one per
    channel. Values may be negative.

    **Good values:** $\sigma$ of 1 % (laboratory) to 10 % (field) of the range of the signal; the
    default suits signals of order 1.

    Source: Gauss (1809).
    """

    sd: ArrayLike = 0.1
    prior: Prior = eqx.field(default_factory=lambda: {"sd": dist.HalfNormal(0.2)})

    def draw(self, key, theta, mean):
        # Drawn in float32 and then cast: in float64 the same key gives other numbers.
        z = jax.random.normal(key, mean.shape, jnp.float32)
        return mean + self.level(theta, "sd", mean) * z

    def log_density(self, theta, mean, values):
        return norm.logpdf(values, mean, self.level(theta, "sd", mean))
