"""SEIR: susceptible, exposed, infectious, recovered."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class SEIRState(NamedTuple):
    """Persons in each compartment."""

    S: Array
    E: Array
    I: Array  # noqa: E741 (the field's own letter)
    R: Array


class SEIR(AbstractODESimulator):
    r"""An epidemic with a latent period of mean $1/\sigma$ between infection and infectiousness.

    $$\dot S = -\beta S I / N, \quad \dot E = \beta S I / N - \sigma E, \quad
      \dot I = \sigma E - \gamma I, \quad \dot R = \gamma I$$

    Rates $\beta, \sigma, \gamma$ per day, $R_0 = \beta / \gamma$; time in days, counts in persons.
    The channel is the number infectious, $I$.

    **Expected behaviour:** as SIR but slower for the same $R_0$: early growth at the positive root
    $r$ of $(r + \sigma)(r + \gamma) = \beta \sigma$; SIR in the limit $\sigma \to \infty$;
    $S + E + I + R = N$ throughout.

    **Good values:** $\beta = 4$, $\sigma = 1$, $\gamma = 0.5$ with one infectious among 763.

    Source: Anderson and May (1991).
    """

    population: float = 1000.0
    initial_infectious: float = 1.0
    initial_exposed: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "beta": dist.TruncatedNormal(2.0, 1.0, low=0.0),
            "gamma": dist.TruncatedNormal(0.4, 0.5, low=0.0),
            "sigma": dist.LogNormal(0.0, 0.5),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 15))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("infectious",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        exposed = self.quantity(theta, "initial_exposed")
        susceptible = self.quantity(theta, "population") - infectious - exposed
        return SEIRState(susceptible, exposed, infectious, jnp.zeros(()))

    def vector_field(self, t, state, theta):
        # So bracketed, the division is of constants and leaves the loop over the steps.
        infection = (theta["beta"] / self.quantity(theta, "population")) * state.S * state.I
        onset = theta["sigma"] * state.E
        recovery = theta["gamma"] * state.I
        return SEIRState(-infection, infection - onset, onset - recovery, recovery)

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]

    def conserved(self, state, theta):
        return state.S + state.E + state.I + state.R
