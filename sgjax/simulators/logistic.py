"""Logistic growth: slower the closer to the carrying capacity."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class LogisticState(NamedTuple):
    """Individuals."""

    size: Array


class Logistic(AbstractODESimulator):
    r"""Growth that slows in proportion to how full the habitat is.

    $$\dot y = r y (1 - y / K)$$

    Growth rate $r$ per unit of time; size $y$ and carrying capacity $K$ in individuals. The channel
    is $y$.

    **Expected behaviour:** an S, steepest at $y = K/2$ and symmetric about that point;
    $y(t) = K / (1 + (K/y_0 - 1) e^{-r t})$.

    **Good values:** $r = 1$, $K = 100$, $y_0 = 1$: half of $K$ at $t = 4.6$.

    Source: Verhulst (1838).
    """

    initial_size: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.LogNormal(0.0, 0.5),
            "carrying_capacity": dist.LogNormal(4.6, 0.5),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=2)

    channels = ("size",)

    def initial_state(self, theta):
        return LogisticState(self.quantity(theta, "initial_size"))

    def vector_field(self, t, state, theta):
        growth = theta["growth_rate"] * (1 - state.size / theta["carrying_capacity"])
        return LogisticState(growth * state.size)

    def readout(self, trajectory, theta):
        return trajectory.size[:, None]

    def analytic(self, theta):
        capacity = theta["carrying_capacity"]
        decay = jnp.exp(-theta["growth_rate"] * jnp.asarray(self.ts - self.t0))
        excess = capacity / self.quantity(theta, "initial_size") - 1
        return (capacity / (1 + excess * decay))[:, None]
