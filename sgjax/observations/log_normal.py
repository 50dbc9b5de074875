"""Multiplicative log-normal noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise


class LogNormal(AbstractNoise):
    r"""An error that multiplies: $y = \mu e^{\sigma z}$, $z \sim N(0, 1)$.

    The signal $\mu$ is the *median*; the mean is $\mu e^{\sigma^2/2}$ and the coefficient of
    variation $\sqrt{e^{\sigma^2} - 1} \approx \sigma$. $\sigma$ is `log_sd`, without unit: one
    number, or one per channel. A signal of zero or below is recorded as 0 without error.

    **Good values:** $\sigma$ of 0.05 (assays) to 0.5 (field counts); about 0.25 in the lynx and
    hare pelts.

    Source: Limpert, Stahel and Abbt (2001).
    """

    log_sd: ArrayLike = 0.25
    prior: Prior = eqx.field(default_factory=lambda: {"log_sd": dist.HalfNormal(0.5)})
    lowest = 0.0

    def draw(self, key, theta, mean):
        # Drawn in float32 and then cast: in float64 the same key gives other numbers.
        z = jax.random.normal(key, mean.shape, jnp.float32)
        return jnp.maximum(mean, 0.0) * jnp.exp(self.level(theta, "log_sd", mean) * z)

    def log_density(self, theta, mean, values):
        proper = (mean > 0) & (values > 0)
        # Harmless numbers where there is no logarithm, or its gradient would be nan.
        log_mean = jnp.log(jnp.where(proper, mean, 1.0))
        log_values = jnp.log(jnp.where(proper, values, 1.0))
        log_sd = self.level(theta, "log_sd", mean)
        log_density = norm.logpdf(log_values, log_mean, log_sd) - log_values
        certain = (mean <= 0) & (values == 0)
        return jnp.where(proper, log_density, jnp.where(certain, 0.0, -jnp.inf))
