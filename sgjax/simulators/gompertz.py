"""Gompertz growth: the growth rate itself decays exponentially."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class GompertzState(NamedTuple):
    """Individuals."""

    size: Array


class Gompertz(AbstractODESimulator):
    r"""Growth whose rate per head decays exponentially: tumours, mortality, outbreaks.

    $$\dot y = r y \ln(K / y)$$

    Rate $r$ per unit of time; size $y$ and carrying capacity $K$ in individuals. The channel is
    $y$.

    **Expected behaviour:** an S that is steepest at $y = K/e$, early, and then approaches $K$
    slowly; $y(t) = K \exp(\ln(y_0/K) e^{-r t})$.

    **Good values:** $r = 0.4$, $K = 100$, $y_0 = 1$: steepest at $t = 3.8$.

    Source: Gompertz (1825); as a growth curve, Winsor (1932).
    """

    initial_size: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.LogNormal(-0.9, 0.5),
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
        return GompertzState(self.quantity(theta, "initial_size"))

    def vector_field(self, t, state, theta):
        growth = theta["growth_rate"] * jnp.log(theta["carrying_capacity"] / state.size)
        return GompertzState(growth * state.size)

    def readout(self, trajectory, theta):
        return trajectory.size[:, None]

    def analytic(self, theta):
        capacity = theta["carrying_capacity"]
        decay = jnp.exp(-theta["growth_rate"] * jnp.asarray(self.ts - self.t0))
        share = self.quantity(theta, "initial_size") / capacity
        return (capacity * jnp.exp(jnp.log(share) * decay))[:, None]
