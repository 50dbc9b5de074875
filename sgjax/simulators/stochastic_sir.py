"""Stochastic SIR: an epidemic of whole persons, which may die out by chance."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._chain_binomial import AbstractChainBinomialSimulator


class StochasticSIRState(NamedTuple):
    """Persons in each compartment, whole numbers."""

    S: Array
    I: Array  # noqa: E741 (the field's own letter)
    R: Array


class StochasticSIR(AbstractChainBinomialSimulator):
    r"""An epidemic by chance in a closed, well-mixed population of constant size $N$.

    $$S \to I \text{ at rate } \beta (I + \iota) / N, \quad I \to R \text{ at rate } \gamma$$

    per person, in the steps of a chain-binomial model (Greenwood, 1931; Bailey, 1975). Rates
    $\beta, \gamma$ per day, $R_0 = \beta / \gamma$; $\iota$ is the mean number of infectious
    visitors (`imported_infectious`, 0 by default). Time in days. The channel is $I$.

    **Expected behaviour:** without visitors the infection dies out early with probability
    $\min(1, 1 / R_0)^{I_0}$ in a large population, and else makes one wave, that of `SIR` where
    $N$ is large; $S + I + R = N$ exactly. The number infectious stays at 0 once there.

    **Steps:** the error is of first order in the step $\tau$, 1/8 day by default. A person is
    infectious for $\tau / (1 - e^{-\gamma \tau})$ days on average, so the chain's $R_0$ exceeds
    $\beta / \gamma$ by the share $\gamma \tau / 2$: 3 % for $\gamma = 0.5$. The derivative by any
    parameter is 0, since counts jump.

    **Good values:** $\beta = 0.8$, $\gamma = 0.4$ with one infectious among 1000: half of all
    introductions die out.

    Source: Bailey (1975).
    """

    population: float = 1000.0
    initial_infectious: float = 1.0
    imported_infectious: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "beta": dist.TruncatedNormal(2.0, 1.0, low=0.0),
            "gamma": dist.TruncatedNormal(0.4, 0.5, low=0.0),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 15))
    t0: float = 0.0
    num_substeps: int = 8

    channels = ("infectious",)
    transitions = ("S -> I", "I -> R")

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        susceptible = self.quantity(theta, "population") - infectious
        return StochasticSIRState(susceptible, infectious, jnp.zeros(()))

    def rates(self, t, state, theta):
        visitors = self.quantity(theta, "imported_infectious")
        pressure = theta["beta"] * (state.I + visitors) / self.quantity(theta, "population")
        return pressure, theta["gamma"]

    def readout(self, trajectory, theta):
        return trajectory.I[:, None]

    def conserved(self, state, theta):
        return state.S + state.I + state.R
