"""Burgers' equation: waves that steepen into shocks, and friction that wears them down."""

import equinox as eqx
import numpy as np
import numpyro.distributions as dist

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._ring import AbstractRingSimulator, RingState
from sgjax.solvers import ExponentialSteps, Steps


class Burgers(AbstractRingSimulator):
    r"""A flow on a ring that carries itself, with viscosity: the simplest model of shocks.

    $$u_t = -(u^2/2)_x + \nu\,u_{xx}$$

    The ring has length 1; velocities $u$ are in rings per unit of time, the viscosity $\nu$ in
    squared rings per unit of time. The channels are $u$ at `points` places, evenly spaced. The
    start is a sum of five waves with random cosines and sines, scaled so that its largest size is
    `amplitude`. A shock of height $h$ is about $4 \nu / h$ wide: the equation is solved on a grid
    `refinement` times as fine as what is seen, and smaller viscosities need a finer one.

    **Expected behaviour:** shocks within 0.1 units that travel, merge and decay as $1/t$, until the
    longest wave dies as $e^{-4 \pi^2 \nu t}$. The mean of $u$ stays 0, and $|u|$ never exceeds its
    first maximum.

    **Good values:** $\nu = 0.01$; the prior is $\nu$ from 0.002 to 0.02, log-uniform, and 0.001,
    which wants `refinement=16` and twice the sub-steps, lies outside of it.

    Source: Bateman (1915); Burgers (1948); in closed form Hopf (1950) and Cole (1951).
    """

    viscosity: float = 0.01
    amplitude: float = 1.0
    points: int = 64
    refinement: int = 8
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "viscosity": dist.LogUniform(2e-3, 2e-2),
            "waves": dist.Normal(0.0, 1.0).expand([2, 5]).to_event(2),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.04 * i for i in range(1, 26)]
    )
    t0: float = 0.0
    solver: Steps = ExponentialSteps(num_substeps=8)

    @property
    def wavenumber(self) -> np.ndarray:
        """Of each mode."""
        return 2 * np.pi * self.numbers

    def linear(self, theta):
        return RingState(-self.quantity(theta, "viscosity") * self.wavenumber**2)

    def nonlinear(self, t, state, theta):
        return self.steepening(state, self.wavenumber)
