"""SIRS: immunity is lost again."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class SIRSState(NamedTuple):
    """Persons in each compartment."""

    S: Array
    I: Array  # noqa: E741 (the field's own letter)
    R: Array


class SIRS(AbstractODESimulator):
    r"""An epidemic whose immunity wanes at the rate $\omega$.

    $$\dot S = -\beta S I / N + \omega R, \quad \dot I = \beta S I / N - \gamma I, \quad
      \dot R = \gamma I - \omega R$$

    Rates $\beta, \gamma, \omega$ per day, $R_0 = \beta / \gamma$; time in days, counts in persons.
    The channel is the number infectious, $I$.

    **Expected behaviour:** a first wave as in SIR, then waves that die down to the endemic level
    $I = N (1 - 1/R_0) \omega / (\gamma + \omega)$ if $R_0 > 1$; SIR for $\omega = 0$;
    $S + I + R = N$.

    **Good values:** $\beta = 0.6$, $\gamma = 0.2$, $\omega = 0.02$ with one infectious among 1000:
    a peak near day 25, endemic at 61.

    Source: Kermack and McKendrick (1932).
    """

    population: float = 1000.0
    initial_infectious: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "beta": dist.LogNormal(-0.5, 0.4),
            "gamma": dist.LogNormal(-1.6, 0.4),
            "omega": dist.LogNormal(-4.0, 0.7),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(2, 202, 2))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("infectious",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        susceptible = self.quantity(theta, "population") - infectious
        return SIRSState(susceptible, infectious, jnp.zeros(()))

    def vector_field(self, t, state, theta):
        # So bracketed, the division is of constants and leaves the loop over the steps.
        infection = (theta["beta"] / self.quantity(theta, "population")) * state.S * state.I
        recovery = theta["gamma"] * state.I
        waning = theta["omega"] * state.R
        return SIRSState(waning - infection, infection - recovery, recovery - waning)

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]

    def conserved(self, state, theta):
        return state.S + state.I + state.R
