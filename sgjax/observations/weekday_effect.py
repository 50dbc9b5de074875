"""Weekday effect: more is reported on some days of the week than on others."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike

from sgjax._types import Prior
from sgjax.observations._base import AbstractTransform

_FACTORS = (1.2, 1.0, 1.0, 1.0, 0.9, 0.6, 0.4)


class WeekdayEffect(AbstractTransform):
    r"""A factor for each day of a cycle: $f_{(\lfloor t \rfloor + o) \bmod 7} \mu_t / \bar f$.

    `weekday_factors` run from Monday to Sunday and are divided by their mean, so that whole weeks
    of a constant signal keep their sum. Their number is the period; $o$ is `first_weekday`, the
    day on which time 0 falls, 0 being Monday. Time in days.

    **Good values:** Monday 1.2, Friday 0.9, Saturday 0.6, Sunday 0.4, others 1, each with a
    log-sd of 0.1 to 0.2; nearer to 1 for deaths.

    Source: Bergman et al. (2020).
    """

    weekday_factors: tuple[float, ...] | ArrayLike = _FACTORS
    first_weekday: int = eqx.field(default=0, static=True)
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "weekday_factors": dist.LogNormal(jnp.log(jnp.array(_FACTORS)), 0.15)
        }
    )

    def transform(self, theta, signal):
        factors = jnp.asarray(self.quantity(theta, "weekday_factors"), signal.values.dtype)
        days = jnp.floor(signal.ts).astype(jnp.int32) + self.first_weekday
        effect = (factors / jnp.mean(factors))[days % factors.size]
        return signal.with_values(signal.values * effect[:, None])
