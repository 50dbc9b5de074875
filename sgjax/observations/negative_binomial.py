"""Negative-binomial counts."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise
from sgjax.samplers import negative_binomial


class NegativeBinomial(AbstractNoise):
    r"""Counts with mean $\mu$ and variance $\mu + \alpha \mu^2$.

    $\alpha$ is the overdispersion, $1/\phi$ in the notation of Stan; $\alpha \to 0$ is Poisson.
    A mean of zero or below gives no counts. One $\alpha$, or one per channel.

    **Good values:** $\alpha$ from 0.005 (near Poisson) to 0.3 (noisy surveillance).

    Source: Lloyd-Smith (2007).
    """

    overdispersion: ArrayLike = 0.1
    prior: Prior = eqx.field(default_factory=lambda: {"overdispersion": dist.Exponential(5.0)})
    lowest = 0.0

    def draw(self, key, theta, mean):
        # An explicit solver may dip a hair below zero where a population has died out.
        return negative_binomial(
            key, jnp.maximum(mean, 0.0), self.level(theta, "overdispersion", mean)
        )

    def log_density(self, theta, mean, values):
        alpha = self.level(theta, "overdispersion", mean)
        positive = mean > 0
        mean = jnp.where(positive, mean, 1.0)
        ratio = alpha * mean
        # The beta function keeps its digits at small alpha, where a difference of two gamma
        # functions loses them all.
        log_choose = -betaln(1 / alpha, values + 1) - jnp.log(values + 1 / alpha)
        log_mass = log_choose + values * jnp.log(ratio / (1 + ratio)) - jnp.log1p(ratio) / alpha
        return jnp.where(positive, log_mass, jnp.where(values == 0, 0.0, -jnp.inf))
