"""Worlds with a known answer, for several test files."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sgjax as sg
from sgjax._types import Prior, Times, as_times
from sgjax.observations import Gaussian, Observed
from sgjax.simulators import AbstractSimulator, Latent

TIMES = np.linspace(-1.0, 1.0, 9)
SD = 0.7
VALUES = np.array([1.9, -0.4, 0.3, 1.0, 1.1, 0.2, 0.9, 2.5, 2.2])
MASK = np.array([True, True, True, False, True, True, True, True, True])


class Constant(sg.simulators.AbstractSimulator):
    """A level that never changes."""

    prior = {"level": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["level"], (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


class Polynomial(AbstractSimulator):
    """A polynomial in time whose coefficients are the parameters, in the order of the prior."""

    prior: Prior
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: TIMES)
    jitter: float = 0.0

    channels = ("level",)

    def simulate(self, key, theta):
        values = sum(theta[name] * self.ts**power for power, name in enumerate(self.prior))
        if self.jitter:
            values += self.jitter * jax.random.normal(key, self.ts.shape)
        return Latent(jnp.asarray(self.ts, values.dtype), values[:, None], None)


def record(values: np.ndarray, mask: np.ndarray | None = None) -> Observed:
    """A record of one channel at the times of `Polynomial`."""
    mask = np.ones(values.shape, bool) if mask is None else mask
    return Observed(
        jnp.asarray(TIMES, jnp.float32),
        jnp.asarray(np.where(mask, values, 0.0), jnp.float32)[:, None],
        jnp.asarray(mask)[:, None],
    )


def regression(size: int, **changes) -> sg.Study:
    """A linear-Gaussian world with `size` unknown coefficients."""
    prior = {f"c{power}": dist.Normal(0.3 * power, 1.0 + power) for power in range(size)}
    return sg.Study(
        simulator=Polynomial(prior, **changes),
        observation=Gaussian(sd=SD, prior={}),
        task=sg.Estimate(derived={"double": lambda theta: 2 * theta["c0"] + 1}),
    )
