"""Bodies that attract each other: the n-body problem of Newton, softened."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import Steps, SymplecticSteps


class GravityState(NamedTuple):
    """Where the bodies are, and how fast they move; a row an axis."""

    position: Float[Array, "3 bodies"]
    velocity: Float[Array, "3 bodies"]


class Gravity(AbstractODESimulator):
    r"""Bodies in space that attract each other, none harder than Plummer's softening allows.

    $$\ddot r_i = \sum_j \frac{m_j\,(r_j - r_i)}{(|r_j - r_i|^2 + \varepsilon^2)^{3/2}}$$

    In units where the constant of gravitation is 1; $\varepsilon$ is the `softening` length. There
    are as many bodies as the prior of `position` has columns. Channels are the bodies' coordinates,
    $x$ of all, then $y$, then $z$. All masses are `mass` unless the prior draws one a body.

    **Expected behaviour:** ellipses for two bodies far apart; chaos for three and more, where every
    close passage multiplies small errors. Momentum, angular momentum and energy stay as they are,
    the energy $\sum m v^2 / 2 - \sum_{i<j} m_i m_j (r_{ij}^2 + \varepsilon^2)^{-1/2}$.

    **Good values:** five bodies of mass 1 with positions and velocities of order 1 and
    $\varepsilon = 0.5$, some two crossings of the group in 3 units of time.

    Source: Newton (1687); Plummer (1911).
    """

    mass: float = 1.0
    softening: float = 0.5
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "mass": dist.LogNormal(0.0, 0.3).expand([5]).to_event(1),
            "position": dist.Normal(0.0, 1.0).expand([3, 5]).to_event(2),
            "velocity": dist.Normal(0.0, 0.5).expand([3, 5]).to_event(2),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.1 * i for i in range(1, 31)]
    )
    t0: float = 0.0
    solver: Steps = SymplecticSteps(positions=("position",), num_substeps=4, method="yoshida4")

    @property
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The coordinates of the bodies by number."""
        return tuple(f"{axis}{body}" for axis in "xyz" for body in range(bodies(self.prior)))

    def __check_init__(self):
        if bodies(self.prior) < 2:
            raise ValueError(
                "The prior needs `position`, a distribution of 3 x bodies arrays with at least two "
                "bodies, such as Normal(0.0, 1.0).expand([3, 5]).to_event(2)."
            )
        if not self.softening > 0:
            raise ValueError(f"`softening` must be positive; got {self.softening}.")

    def initial_state(self, theta):
        return GravityState(theta["position"], theta["velocity"])

    def vector_field(self, t, state, theta):
        apart = state.position[:, None, :] - state.position[:, :, None]
        near = jnp.sum(jnp.square(apart), axis=0) + self.softening**2
        pull = self._masses(theta) / (near * jnp.sqrt(near))
        return GravityState(state.velocity, jnp.sum(apart * pull, axis=2))

    def readout(self, trajectory, theta):
        return trajectory.position.reshape(trajectory.position.shape[0], -1)

    def conserved(self, state, theta):
        mass = self._masses(theta)
        motion = jnp.sum(mass * jnp.square(state.velocity)) / 2
        apart = state.position[:, None, :] - state.position[:, :, None]
        distance = jnp.sqrt(jnp.sum(jnp.square(apart), axis=0) + self.softening**2)
        pairs = jnp.triu(mass[:, None] * mass / distance, k=1)
        return motion - jnp.sum(pairs)

    def _masses(self, theta):
        masses = jnp.asarray(self.quantity(theta, "mass"), theta["position"].dtype)
        return jnp.broadcast_to(masses, theta["position"].shape[1:])


def bodies(prior: Prior) -> int:
    """How many columns the initial positions have; 0 where the prior does not say."""
    shape = getattr(prior.get("position"), "event_shape", ())
    return shape[1] if len(shape) == 2 and shape[0] == 3 else 0
