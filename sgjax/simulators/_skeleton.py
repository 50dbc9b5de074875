"""Copy this file to bring a mechanism of your own: a cup of coffee that cools, complete."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class MyState(NamedTuple):
    """What changes in time; one name a quantity, for ONE simulation."""

    temperature: Array


class MyMechanism(AbstractODESimulator):
    r"""One sentence on what it is, then the equation: here, cooling at the room's expense.

    $$\dot T = -k (T - T_r)$$

    Units: degrees Celsius, minutes. **Expected behaviour:** exponential approach to the room.
    **Good values:** $k = 0.1$, $T_r = 20$. Source: Newton (1701).
    """

    # Constants and initial values. Add one's name to the prior, and it is drawn per simulation.
    initial_temperature: float = 90.0
    room_temperature: float = 20.0
    # Parameters, by name; an entry may be a function of those before it.
    prior: Prior = eqx.field(default_factory=lambda: {"cooling_rate": dist.LogNormal(-2.3, 0.5)})
    # When an instrument looks. Afterwards let `calibrate_steps` choose the number of sub-steps.
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(0, 60, 2))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=2)

    channels = ("temperature",)

    def initial_state(self, theta):
        return MyState(self.quantity(theta, "initial_temperature"))

    def vector_field(self, t, state, theta):
        excess = state.temperature - self.quantity(theta, "room_temperature")
        return MyState(-theta["cooling_rate"] * excess)

    # What an ideal instrument sees, a column a channel; a trajectory is a state with time leading.
    def readout(self, trajectory, theta):
        return jnp.stack([trajectory.temperature], axis=-1)

    # Optional: `conserved(state, theta)` and `analytic(theta)`, which tests then hold it against.
