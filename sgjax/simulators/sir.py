"""SIR: susceptible, infectious, recovered."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class SIRState(NamedTuple):
    """Persons in each compartment."""

    S: Array
    I: Array  # noqa: E741 (the field's own letter)
    R: Array


class SIR(AbstractODESimulator):
    r"""An epidemic in a closed, well-mixed population of constant size $N$.

    $$\dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I, \quad \dot R = \gamma I$$

    Rates $\beta, \gamma$ per day, $R_0 = \beta / \gamma$; time in days, counts in persons. The
    channel is the number infectious, $I$.

    **Expected behaviour:** one wave if $R_0 > 1$; $I$ grows while $S > N \gamma / \beta$, then
    decays at a rate that tends to $\gamma - \beta S_\infty / N$; $S + I + R = N$.

    **Good values:** $\beta = 1.7$, $\gamma = 0.5$ with one infectious among 763 peaks about day 6.

    Source: Kermack and McKendrick (1927).
    """

    population: float = 1000.0
    initial_infectious: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "beta": dist.TruncatedNormal(2.0, 1.0, low=0.0),
            "gamma": dist.TruncatedNormal(0.4, 0.5, low=0.0),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 15))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("infectious",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        susceptible = self.quantity(theta, "population") - infectious
        return SIRState(susceptible, infectious, jnp.zeros(()))

    def vector_field(self, t, state, theta):
        # So bracketed, the division is of constants and leaves the loop over the steps.
        infection = (theta["beta"] / self.quantity(theta, "population")) * state.S * state.I
        recovery = theta["gamma"] * state.I
        return SIRState(-infection, infection - recovery, recovery)

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]

    def conserved(self, state, theta):
        return state.S + state.I + state.R
