"""Worlds with a known answer, for several test files."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sgjax as sg


class Constant(sg.simulators.AbstractSimulator):
    """A level that never changes."""

    prior = {"level": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["level"], (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)
