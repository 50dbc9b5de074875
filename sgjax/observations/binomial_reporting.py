"""Binomial reporting: each case is reported or not."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractNoise
from sgjax.observations.binomial import binomial_log_mass
from sgjax.samplers import binomial


class BinomialReporting(AbstractNoise):
    r"""Each case is reported with probability $\rho$: $k \sim \mathrm{Binomial}([\mu], \rho)$.

    $[\mu]$ is the signal rounded to whole cases, none below zero. Mean $\rho [\mu]$, variance
    $\rho (1 - \rho) [\mu]$: less than that of `UnderReporting` with count noise after it, whose
    variance is $\rho \mu$ at least. Right where the signal itself is a count, as in stochastic
    simulators. The likelihood has no gradient in the signal, since rounding has none.

    **Good values:** $\rho$ from 0.05 (early in a new epidemic) to 0.85.

    Source: Bretó, He, Ionides and King (2009).
    """

    reporting_rate: ArrayLike = 0.5
    prior: Prior = eqx.field(default_factory=lambda: {"reporting_rate": dist.Uniform(0.05, 0.95)})
    lowest = 0.0

    def draw(self, key, theta, mean):
        return binomial(key, *self._trials(theta, mean))

    def log_density(self, theta, mean, values):
        return binomial_log_mass(*self._trials(theta, mean), values)

    def _trials(self, theta, mean):
        cases = jnp.round(jnp.maximum(mean, 0.0))
        return cases, self.level(theta, "reporting_rate", mean)
