"""Rosenzweig-MacArthur: limited prey, and predators that can be full."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class RosenzweigMacArthurState(NamedTuple):
    """Biomass, in any one unit."""

    prey: Array
    predator: Array


class RosenzweigMacArthur(AbstractODESimulator):
    r"""Prey that grow logistically, and predators whose appetite saturates.

    $$\dot x = r x (1 - x / K) - \frac{a x y}{1 + a h x}, \quad
      \dot y = \frac{e a x y}{1 + a h x} - m y$$

    Rates $r, m$ per unit of time; attack rate $a$, handling time $h$, conversion $e$, carrying
    capacity $K$. The channels are prey $x$ and predators $y$.

    **Expected behaviour:** no predators if $K < x^* = m / (a (e - m h))$; a steady state, reached
    in waves that die down, for $K$ above that; a limit cycle for
    $K > 2 x^* + 1 / (a h)$, wider the richer the prey (the paradox of enrichment).

    **Good values:** $r = 1$, $a = 1$, $h = 0.5$, $e = 0.5$, $m = 0.3$, $K = 3$: a steady state at
    $x^* = 0.86$; a limit cycle at $K = 5$.

    Source: Rosenzweig and MacArthur (1963).
    """

    attack_rate: float = 1.0
    handling_time: float = 0.5
    initial_prey: float = 1.0
    initial_predator: float = 0.5
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.LogNormal(0.0, 0.3),
            "carrying_capacity": dist.Uniform(1.0, 6.0),
            "conversion": dist.Uniform(0.4, 0.6),
            "mortality": dist.LogNormal(-1.2, 0.2),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 101)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=2)

    channels = ("prey", "predator")

    def initial_state(self, theta):
        return RosenzweigMacArthurState(
            self.quantity(theta, "initial_prey"), self.quantity(theta, "initial_predator")
        )

    def vector_field(self, t, state, theta):
        attacks = self.quantity(theta, "attack_rate") * state.prey
        eaten = attacks * state.predator / (1 + self.quantity(theta, "handling_time") * attacks)
        room = 1 - state.prey / theta["carrying_capacity"]
        return RosenzweigMacArthurState(
            theta["growth_rate"] * state.prey * room - eaten,
            theta["conversion"] * eaten - theta["mortality"] * state.predator,
        )

    def readout(self, trajectory, theta):
        return jnp.stack([trajectory.prey, trajectory.predator], axis=-1)
