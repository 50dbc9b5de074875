"""The harmonic oscillator: a mass on a spring, without friction."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class OscillatorState(NamedTuple):
    """Displacement from rest, and its velocity."""

    position: Array
    velocity: Array


class HarmonicOscillator(AbstractODESimulator):
    r"""A mass on a spring, without friction.

    $$\dot x = v, \quad \dot v = -\omega^2 x$$

    The angular frequency $\omega$ in radians per unit of time. The channel is the position $x$.

    **Expected behaviour:** a sine of period $2\pi/\omega$ for ever,
    $x(t) = x_0 \cos \omega t + (v_0/\omega) \sin \omega t$; the energy $(v^2 + \omega^2 x^2)/2$
    stays as it is.

    **Good values:** $\omega = 1$, $x_0 = 1$, $v_0 = 0$: about three periods in 20 units of time.

    Source: Hooke (1678).
    """

    initial_position: float = 1.0
    initial_velocity: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "angular_frequency": dist.LogNormal(0.0, 0.3),
            "initial_velocity": dist.Normal(0.0, 1.0),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("position",)

    def initial_state(self, theta):
        return OscillatorState(
            self.quantity(theta, "initial_position"), self.quantity(theta, "initial_velocity")
        )

    def vector_field(self, t, state, theta):
        return OscillatorState(
            state.velocity, -jnp.square(theta["angular_frequency"]) * state.position
        )

    def readout(self, trajectory, theta):
        return trajectory.position[:, None]

    def conserved(self, state, theta):
        potential = jnp.square(theta["angular_frequency"] * state.position)
        return (jnp.square(state.velocity) + potential) / 2

    def analytic(self, theta):
        frequency = theta["angular_frequency"]
        phase = frequency * jnp.asarray(self.ts - self.t0)
        sine = self.quantity(theta, "initial_velocity") / frequency * jnp.sin(phase)
        return (self.quantity(theta, "initial_position") * jnp.cos(phase) + sine)[:, None]
