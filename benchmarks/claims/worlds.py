"""The worlds of the claims: daily new cases of an epidemic without or with a latent period."""

from typing import Literal

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

import sgjax as sg
from sgjax._types import Theta
from sgjax.simulators import SEIR, SIR, MechanismMixture
from sgjax.simulators.seir import SEIRState
from sgjax.solvers import FixedSteps

Seeding = Literal["on the growing direction", "none exposed"]
"""How many are exposed at the start of SEIR: as many as in the epidemic's own growth, so that the
start tells nothing, or none, so that the first days give the latent period away."""

POPULATION = 1e5


class Cases(SIR):
    """SIR whose channel is the number newly infected since the time before."""

    channels = ("cases",)

    def readout(self, trajectory, theta):
        start = self.initial_state(theta).S
        return -jnp.diff(trajectory.S, prepend=start)[:, None]


class LatentCases(SEIR):
    """SEIR whose channel is the number that became infectious since the time before."""

    seeding: Seeding = "none exposed"
    channels = ("cases",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        exposed = jnp.zeros(())
        if self.seeding == "on the growing direction":
            exposed = infectious * (growth_rate(theta) + theta["gamma"]) / theta["sigma"]
        susceptible = self.quantity(theta, "population") - infectious - exposed
        return SEIRState(susceptible, exposed, infectious, jnp.zeros(()))

    def readout(self, trajectory, theta):
        start = self.initial_state(theta)
        waiting = trajectory.S + trajectory.E
        return -jnp.diff(waiting, prepend=start.S + start.E)[:, None]


def growth_rate(theta: Theta) -> Float[Array, ""]:
    r"""The positive root r of $(r + \sigma)(r + \gamma) = \beta \sigma$, or the larger one."""
    sigma, gamma, beta = theta["sigma"], theta["gamma"], theta["beta"]
    return (jnp.sqrt((sigma - gamma) ** 2 + 4 * beta * sigma) - sigma - gamma) / 2


def latent_or_not(days: int, overdispersion: float, seeding: Seeding) -> sg.Study:
    """SIR or SEIR, equally probable: negative-binomial counts of new cases, day by day."""
    rates = {
        "beta": dist.Uniform(0.2, 0.6),
        "gamma": dist.Uniform(0.1, 0.3),
        "initial_infectious": dist.LogUniform(5.0, 50.0),
    }
    latent = {"sigma": dist.Uniform(0.15, 0.6)}
    world = {"population": POPULATION, "ts": range(1, days + 1), "solver": FixedSteps(4)}
    return sg.Study(
        MechanismMixture(
            {
                "SIR": Cases(prior=rates, **world),
                "SEIR": LatentCases(prior=rates | latent, seeding=seeding, **world),
            },
            table_size=2,
        ),
        sg.observations.NegativeBinomial(overdispersion=overdispersion, prior={}),
        sg.tasks.Identify(),
        name="latent_or_not",
    )
