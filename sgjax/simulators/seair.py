"""SEAIR: susceptible, exposed, asymptomatic, infectious with symptoms, recovered."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class SEAIRState(NamedTuple):
    """Persons in each compartment."""

    S: Array
    E: Array
    A: Array
    I: Array  # noqa: E741 (the field's own letter)
    R: Array


class SEAIR(AbstractODESimulator):
    r"""An epidemic of which a share $p$ passes without symptoms, and less infectious by $\kappa$.

    $$\dot S = -\lambda S, \quad \dot E = \lambda S - \sigma E, \quad
      \lambda = \beta (I + \kappa A) / N$$
    $$\dot A = p \sigma E - \gamma_A A, \quad \dot I = (1 - p) \sigma E - \gamma I, \quad
      \dot R = \gamma I + \gamma_A A$$

    Rates $\beta, \sigma, \gamma, \gamma_A$ per day, $R_0 = \beta (p \kappa / \gamma_A +
    (1 - p) / \gamma)$; time in days, counts in persons. The channel is the number infectious with
    symptoms, $I$.

    **Expected behaviour:** as SEIR, but the visible part understates the wave by about $1 - p$;
    SEIR for $p = 0$; $S + E + A + I + R = N$ throughout.

    **Good values:** $\beta = 3$, $\gamma = \gamma_A = 0.5$, $\sigma = 1$, $p = 0.3$, $\kappa = 0.5$
    with one infectious among 1000.

    Source: Longini, Halloran, Nizam and Yang (2004).
    """

    population: float = 1000.0
    initial_infectious: float = 1.0
    initial_asymptomatic: float = 0.0
    initial_exposed: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "beta": dist.TruncatedNormal(2.0, 1.0, low=0.0),
            "gamma": dist.TruncatedNormal(0.4, 0.5, low=0.0),
            "gamma_asymptomatic": dist.TruncatedNormal(0.4, 0.5, low=0.0),
            "sigma": dist.LogNormal(0.0, 0.5),
            "asymptomatic_share": dist.Uniform(0.1, 0.6),
            "relative_infectiousness": dist.Uniform(0.1, 0.9),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 15))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("infectious",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        asymptomatic = self.quantity(theta, "initial_asymptomatic")
        exposed = self.quantity(theta, "initial_exposed")
        susceptible = self.quantity(theta, "population") - infectious - asymptomatic - exposed
        return SEAIRState(susceptible, exposed, asymptomatic, infectious, jnp.zeros(()))

    def vector_field(self, t, state, theta):
        source = state.I + theta["relative_infectiousness"] * state.A
        # So bracketed, the division is of constants and leaves the loop over the steps.
        infection = (theta["beta"] / self.quantity(theta, "population")) * state.S * source
        onset = theta["sigma"] * state.E
        silent = theta["asymptomatic_share"] * onset
        recovery = theta["gamma"] * state.I
        silent_recovery = theta["gamma_asymptomatic"] * state.A
        return SEAIRState(
            -infection,
            infection - onset,
            silent - silent_recovery,
            onset - silent - recovery,
            recovery + silent_recovery,
        )

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]

    def conserved(self, state, theta):
        return state.S + state.E + state.A + state.I + state.R
