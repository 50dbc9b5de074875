"""Richards growth: logistic with a shape of its own."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class RichardsState(NamedTuple):
    """Individuals."""

    size: Array


class Richards(AbstractODESimulator):
    r"""Logistic growth with an exponent that moves the steepest point up or down.

    $$\dot y = r y \left(1 - (y / K)^\nu\right)$$

    Growth rate $r$ per unit of time; size $y$ and carrying capacity $K$ in individuals; $\nu > 0$
    without unit. The channel is $y$.

    **Expected behaviour:** an S that is steepest at $y = K (1 + \nu)^{-1/\nu}$; logistic for
    $\nu = 1$; exponential up to a sharp stop for large $\nu$;
    $y(t) = K (1 + ((K/y_0)^\nu - 1) e^{-r \nu t})^{-1/\nu}$.

    **Good values:** $r = 1$, $K = 100$, $\nu = 0.5$, $y_0 = 1$.

    Source: Richards (1959).
    """

    initial_size: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.LogNormal(0.0, 0.5),
            "carrying_capacity": dist.LogNormal(4.6, 0.5),
            "exponent": dist.LogNormal(0.0, 0.5),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("size",)

    def initial_state(self, theta):
        return RichardsState(self.quantity(theta, "initial_size"))

    def vector_field(self, t, state, theta):
        fullness = (state.size / theta["carrying_capacity"]) ** theta["exponent"]
        return RichardsState(theta["growth_rate"] * state.size * (1 - fullness))

    def readout(self, trajectory, theta):
        return trajectory.size[:, None]

    def analytic(self, theta):
        capacity, exponent = theta["carrying_capacity"], theta["exponent"]
        decay = jnp.exp(-theta["growth_rate"] * exponent * jnp.asarray(self.ts - self.t0))
        excess = (capacity / self.quantity(theta, "initial_size")) ** exponent - 1
        return (capacity * (1 + excess * decay) ** (-1 / exponent))[:, None]
