"""Growth with a strong Allee effect: below a threshold a population dies out."""

from typing import NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class AlleeState(NamedTuple):
    """Individuals."""

    size: Array


class Allee(AbstractODESimulator):
    r"""A population that needs a minimum of itself to grow (a strong Allee effect).

    $$\dot y = r y (1 - y / K) (y / A - 1)$$

    Rate $r$ per unit of time; size $y$, threshold $A$ and carrying capacity $K > A$ in individuals.
    The channel is $y$.

    **Expected behaviour:** two fates, set by the start: extinction at the rate $r$ from below $A$,
    the carrying capacity from above it; slow near $A$.

    **Good values:** $r = 0.5$, $A = 20$, $K = 100$: from 15 to extinction, from 25 to $K$.

    Source: Allee (1931); in this form Lewis and Kareiva (1993).
    """

    initial_size: float = 25.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.LogNormal(-0.7, 0.3),
            "threshold": dist.Uniform(10.0, 30.0),
            "carrying_capacity": dist.Uniform(50.0, 150.0),
            "initial_size": dist.Uniform(5.0, 50.0),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("size",)

    def initial_state(self, theta):
        return AlleeState(self.quantity(theta, "initial_size"))

    def vector_field(self, t, state, theta):
        room = 1 - state.size / theta["carrying_capacity"]
        company = state.size / theta["threshold"] - 1
        return AlleeState(theta["growth_rate"] * state.size * room * company)

    def readout(self, trajectory, theta):
        return trajectory.size[:, None]
