"""Lotka-Volterra: predators and their prey."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class LotkaVolterraState(NamedTuple):
    """Individuals (or thousands of pelts)."""

    prey: Array
    predator: Array


class LotkaVolterra(AbstractODESimulator):
    r"""Predators that live on prey alone, and prey that only predators limit.

    $$\dot x = \alpha x - \beta x y, \quad \dot y = \delta x y - \gamma y$$

    Rates $\alpha, \gamma$ per year and $\beta, \delta$ per year and individual; prey $x$, predators
    $y$. The channels are both.

    **Expected behaviour:** closed cycles about $(\gamma/\delta, \alpha/\beta)$, predators a quarter
    of a period behind their prey, small ones of period $2\pi/\sqrt{\alpha\gamma}$;
    $\delta x - \gamma \ln x + \beta y - \alpha \ln y$ stays as it is.

    **Good values:** $\alpha = 0.55$, $\beta = 0.028$, $\gamma = 0.8$, $\delta = 0.024$ from 34 prey
    and 6 predators: ten-year cycles, as hare and lynx of Hudson Bay (Carpenter, 2018).

    Source: Lotka (1925); Volterra (1926).
    """

    initial_prey: float = 34.0
    initial_predator: float = 6.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "alpha": dist.LogNormal(-0.6, 0.3),
            "beta": dist.LogNormal(-3.5, 0.3),
            "gamma": dist.LogNormal(-0.2, 0.3),
            "delta": dist.LogNormal(-3.7, 0.3),
            "initial_prey": dist.LogNormal(3.5, 0.3),
            "initial_predator": dist.LogNormal(1.8, 0.3),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(21))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=8)

    channels = ("prey", "predator")

    def initial_state(self, theta):
        return LotkaVolterraState(
            self.quantity(theta, "initial_prey"), self.quantity(theta, "initial_predator")
        )

    def vector_field(self, t, state, theta):
        meeting = state.prey * state.predator
        return LotkaVolterraState(
            theta["alpha"] * state.prey - theta["beta"] * meeting,
            theta["delta"] * meeting - theta["gamma"] * state.predator,
        )

    def readout(self, trajectory, theta):
        return jnp.stack([trajectory.prey, trajectory.predator], axis=-1)

    def conserved(self, state, theta):
        prey = theta["delta"] * state.prey - theta["gamma"] * jnp.log(state.prey)
        return prey + theta["beta"] * state.predator - theta["alpha"] * jnp.log(state.predator)
