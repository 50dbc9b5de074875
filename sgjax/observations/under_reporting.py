"""Under-reporting: a constant share of the signal is seen."""

import equinox as eqx
import numpyro.distributions as dist
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractTransform


class UnderReporting(AbstractTransform):
    r"""A constant share of the signal reaches the record: $\rho \mu$.

    $\rho$ is the reporting rate, without unit. It changes the mean; the noise is left to a later
    stage, so Poisson counts after it have variance $\rho \mu$. From a single series $\rho$ is
    hard to tell from the size of the population: give it a narrow prior, or fix it.

    **Good values:** $\rho$ from 0.05 (early in a new epidemic) to 0.85; 0.5 to 0.8 for notified
    cases of a known disease.

    Source: Gibbons et al. (2014).
    """

    reporting_rate: ArrayLike = 0.5
    prior: Prior = eqx.field(default_factory=lambda: {"reporting_rate": dist.Uniform(0.05, 0.95)})

    def transform(self, theta, signal):
        return signal.with_values(signal.values * self.quantity(theta, "reporting_rate"))
