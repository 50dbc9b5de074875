"""Lorenz's ring of 1996: weather on a circle of latitude."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class Lorenz96State(NamedTuple):
    """The quantity at each site of the ring, without unit."""

    x: Float[Array, " sites"]


class Lorenz96(AbstractODESimulator):
    r"""A quantity on a ring of sites that is carried, damped and driven.

    $$\dot x_i = (x_{i+1} - x_{i-2})\,x_{i-1} - x_i + F$$

    Without units; one unit of time is about five days of weather. Indices go round the ring, which
    has as many sites as the prior of `initial` is long (at least four). A channel a site.

    **Expected behaviour:** rest at $x_i = F$ for small $F$, waves from $F = 8/9$, chaos from about
    $F = 5$; the largest Lyapunov exponent of 40 sites is 1.69 at $F = 8$, so an error grows tenfold
    in 1.4 units. Rounding in float32 alone costs one draw in a thousand its third digit by $t = 2$,
    so the times stop at 1.44. The carrying terms keep $\sum x_i^2$. Values have mean 2.3 and sd 3.6
    at $F = 8$.

    **Good values:** $F = 8$, 40 sites.

    Source: Lorenz (1996).
    """

    prior: Prior = eqx.field(
        default_factory=lambda: {
            "forcing": dist.Uniform(6.0, 10.0),
            "initial": dist.Normal(2.3, 3.6).expand([40]).to_event(1),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.04 * i for i in range(1, 37)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4, method="carpenter_kennedy")

    @property
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sites by number."""
        return tuple(f"x{site}" for site in range(sites(self.prior)))

    def __check_init__(self):
        if sites(self.prior) < 4:
            raise ValueError(
                "The prior needs `initial`, a distribution of vectors with one entry a site, at "
                "least four, such as Normal(2.3, 3.6).expand([40]).to_event(1)."
            )

    def initial_state(self, theta):
        return Lorenz96State(theta["initial"])

    def vector_field(self, t, state, theta):
        x = state.x
        carried = (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1)
        return Lorenz96State(carried - x + theta["forcing"])

    def readout(self, trajectory, theta):
        return trajectory.x


def sites(prior: Prior) -> int:
    """How many entries the initial state has; 0 where the prior does not say."""
    shape = getattr(prior.get("initial"), "event_shape", ())
    return shape[0] if len(shape) == 1 else 0
