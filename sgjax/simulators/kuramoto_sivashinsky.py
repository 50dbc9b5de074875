"""The equation of Kuramoto and Sivashinsky: chaos in space and time."""

import equinox as eqx
import numpy as np
import numpyro.distributions as dist

from sgjax._types import Prior, Theta, Times, as_times
from sgjax.simulators._ring import AbstractRingSimulator, RingState
from sgjax.solvers import ExponentialSteps, Steps


class KuramotoSivashinsky(AbstractRingSimulator):
    r"""A flame front, or a film that runs down a wall: long waves feed, short ones are worn down.

    $$u_t = -(u^2/2)_x - u_{xx} - u_{xxxx}$$

    Without units; $u$ is the slope of the front on a ring of length $L$. The channels are $u$ at
    `points` places, evenly spaced. The start is a sum of five waves with random cosines and sines,
    scaled so that its largest size is `amplitude`.

    **Expected behaviour:** a small wave of number $k$ grows at the rate $k^2 - k^4$, fastest at
    wavelength 8.9, until steepening passes what it gains on to shorter ones: a pattern of cells
    with $|u|$ up to 3 that drift, merge and split, chaotic on most rings longer than 22. The mean
    of $u$ stays 0. Errors of float32 grow tenfold in some 10 units, so the times stop at 20.

    **Good values:** $L = 22$, whose largest Lyapunov exponent is 0.05. The prior is $L$ from 18 to
    40; 60, outside of it, wants `points=96`. To see the attractor alone, begin earlier: `t0=-150.0`
    warms up for 150 units before time 0 (in steps up to twice as long), and rounding then decides
    the course.

    Source: Kuramoto and Tsuzuki (1976); Sivashinsky (1977).
    """

    length: float = 22.0
    amplitude: float = 1.0
    points: int = 64
    refinement: int = 1
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "length": dist.Uniform(18.0, 40.0),
            "waves": dist.Normal(0.0, 1.0).expand([2, 5]).to_event(2),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = ExponentialSteps(num_substeps=8)

    def wavenumber(self, theta: Theta):
        """Of each mode."""
        return 2 * np.pi * self.numbers / self.quantity(theta, "length")

    def linear(self, theta):
        square = self.wavenumber(theta) ** 2
        return RingState(square - square**2)

    def nonlinear(self, t, state, theta):
        return self.steepening(state, self.wavenumber(theta))
