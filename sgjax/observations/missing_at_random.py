"""Values missing at random."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractMissingness


class MissingAtRandom(AbstractMissingness):
    r"""Each value is lost with probability $q$, independently of all else.

    $q$ is the `missing_rate`, without unit.

    **Good values:** $q$ from 0 to 0.1 a week in routine surveillance, to 0.5 in field studies.

    Source: Rubin (1976).
    """

    missing_rate: ArrayLike = 0.1
    prior: Prior = eqx.field(default_factory=lambda: {"missing_rate": dist.Uniform(0.0, 0.3)})

    def keep(self, key, theta, signal):
        uniform = jax.random.uniform(key, signal.values.shape, jnp.float32)
        return uniform >= self.quantity(theta, "missing_rate")
