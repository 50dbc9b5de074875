"""Lorenz's convection of 1963, the first strange attractor."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class Lorenz63State(NamedTuple):
    """Speed of the roll, and two temperature differences, without unit."""

    x: Array
    y: Array
    z: Array


class Lorenz63(AbstractODESimulator):
    r"""Three amplitudes of convection between a warm plate and a cold one.

    $$\dot x = \sigma (y - x), \quad \dot y = x (\rho - z) - y, \quad \dot z = x y - \beta z$$

    Without units. The channels are $x$, $y$ and $z$.

    **Expected behaviour:** rest for $\rho < 1$, steady rolls up to $\rho = 24.74$, chaos on two
    wings above (at $\sigma = 10$, $\beta = 8/3$). Errors grow as $e^{0.9 t}$ at $\rho = 28$, and
    faster near the wings' crossing: rounding in float32 alone costs one draw in a thousand its
    third digit by $t = 2$, so the times stop at 1.5 and a prior over longer ones is one of noise.

    **Good values:** $\sigma = 10$, $\rho = 28$, $\beta = 8/3$.

    Source: Lorenz (1963).
    """

    initial_x: float = 1.0
    initial_y: float = 1.0
    initial_z: float = 20.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "sigma": dist.Uniform(8.0, 12.0),
            "rho": dist.Uniform(20.0, 35.0),
            "beta": dist.Uniform(2.0, 3.5),
            "initial_x": dist.Uniform(2.0, 10.0),
            "initial_y": dist.Uniform(2.0, 10.0),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.05 * i for i in range(1, 31)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("x", "y", "z")

    def initial_state(self, theta):
        return Lorenz63State(
            self.quantity(theta, "initial_x"),
            self.quantity(theta, "initial_y"),
            self.quantity(theta, "initial_z"),
        )

    def vector_field(self, t, state, theta):
        x, y, z = state
        return Lorenz63State(
            theta["sigma"] * (y - x),
            x * (theta["rho"] - z) - y,
            x * y - theta["beta"] * z,
        )

    def readout(self, trajectory, theta):
        return jnp.stack(trajectory, axis=-1)
