"""Exponential decay: a quantity that is lost at a constant rate."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class DecayState(NamedTuple):
    """The quantity that is left."""

    quantity: Array


class ExponentialDecay(AbstractODESimulator):
    r"""A quantity that is lost at a constant rate per unit of it: radioactivity, first-order loss.

    $$\dot y = -k y$$

    The rate $k$ per unit of time; $y$ in any unit. The channel is $y$.

    **Expected behaviour:** a straight line on a logarithmic axis; half is left after $\ln 2 / k$;
    $y(t) = y_0 e^{-k t}$.

    **Good values:** $k = 0.5$, $y_0 = 1$ leaves 0.7% after 10 units of time.

    Source: Rutherford and Soddy (1902).
    """

    initial_quantity: float = 1.0
    prior: Prior = eqx.field(default_factory=lambda: {"rate": dist.LogNormal(-0.7, 0.5)})
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 21)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=2)

    channels = ("quantity",)

    def initial_state(self, theta):
        return DecayState(self.quantity(theta, "initial_quantity"))

    def vector_field(self, t, state, theta):
        return DecayState(-theta["rate"] * state.quantity)

    def readout(self, trajectory, theta):
        return trajectory.quantity[:, None]

    def analytic(self, theta):
        elapsed = jnp.asarray(self.ts - self.t0)
        left = self.quantity(theta, "initial_quantity") * jnp.exp(-theta["rate"] * elapsed)
        return left[:, None]
