"""Advection: a wave that travels as it is."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._ring import SAMPLES, AbstractRingSimulator, RingState
from sgjax.solvers import ExponentialSteps, Steps


class Advection(AbstractRingSimulator):
    r"""A quantity on a ring that a steady wind carries round.

    $$u_t = -c\,u_x$$

    The ring has length 1; the speed $c$ is in rings per unit of time. The channels are $u$ at
    `points` places, evenly spaced. The start is a sum of five waves with random cosines and sines,
    scaled so that its largest size is `amplitude`.

    **Expected behaviour:** the start, shifted by $c t$, and so the start again after each $1/c$;
    mean and mean square stay as they are. The steps are exact, however long they are.

    **Good values:** $c = 1$; the prior is $c$ from 0.5 to 2, and 3 lies well outside of it.

    Source: d'Alembert (1747), whose waves on a string are two of these.
    """

    speed: float = 1.0
    amplitude: float = 1.0
    points: int = 64
    refinement: int = 1
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "speed": dist.Uniform(0.5, 2.0),
            "waves": dist.Normal(0.0, 1.0).expand([2, 5]).to_event(2),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.05 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = ExponentialSteps(num_substeps=1)

    def linear(self, theta):
        return RingState(-2j * np.pi * self.numbers * self.quantity(theta, "speed"))

    def nonlinear(self, t, state, theta):
        return RingState(jnp.zeros_like(state.modes))

    def conserved(self, state, theta):
        return 2 * jnp.sum(jnp.square(jnp.abs(state.modes)))  # the mean square; the mean is 0

    def analytic(self, theta):
        cosines, sines = theta["waves"]
        number = self.numbers[1 : cosines.size + 1]

        def start(places):
            # The turns come first: an angle of many would lose its last digits.
            angle = 2 * np.pi * jnp.mod(places[..., None] * number, 1.0)
            return jnp.cos(angle) @ cosines + jnp.sin(angle) @ sines

        samples = SAMPLES * cosines.size
        largest = jnp.max(jnp.abs(start(np.arange(samples) / samples)))
        scale = self.quantity(theta, "amplitude") / largest
        shift = self.quantity(theta, "speed") * (self.ts - self.t0)
        return scale * start(np.arange(self.points) / self.points - shift[:, None])
