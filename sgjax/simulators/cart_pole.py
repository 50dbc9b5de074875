"""The cart-pole: a pole on a hinge on a cart, which is pushed along a track."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._held import AbstractControlledSimulator
from sgjax.solvers import FixedSteps, Steps


class CartPoleState(NamedTuple):
    """Of the cart its place and velocity; of the pole the angle from upright, and its rate."""

    position: Array
    velocity: Array
    angle: Array
    rate: Array


class CartPole(AbstractControlledSimulator):
    r"""A pole that turns freely on a cart, which a held force pushes along a track.

    $$\dot x = v, \quad \dot v = a - m l \dot\omega \cos\vartheta / (M + m), \quad
    a = (F + m l \omega^2 \sin\vartheta) / (M + m)$$
    $$\dot\vartheta = \omega, \quad \dot\omega = \frac{g \sin\vartheta - a \cos\vartheta}
    {l\,(4/3 - m \cos^2\vartheta / (M + m))}$$

    Metres, kilograms, seconds, newtons; $\vartheta$ in radians from upright, $l$ half the pole's
    length, $M$ and $m$ the masses of cart and pole; no friction, no ends of the track. The force
    $F$ is the `control`, 100 holds of 0.02 s unless prior and times say otherwise; it is not
    clipped. Channels are $x$, $v$, $\sin\vartheta$, $\cos\vartheta$ and $\omega$, which, unlike an
    angle that counts turns, are the same wherever the pole is.

    **Expected behaviour:** upright the pole falls, errors growing by a factor $e$ in
    $\sqrt{l\,(4/3 - m / (M + m)) / g}$ (0.25 s); hanging, it swings. The force does work: `energy`
    grows at the rate $F v$, and stays as it is where $F = 0$.

    **Good values:** $M = 1$, $m = 0.1$, $l = 0.5$, $g = 9.8$, $|F| \le 10$. The prior has masses
    and half-length at 0.5 to 1.5 of these, and starts within 0.05 of upright rest; twice these are
    out of its distribution.

    Source: Barto, Sutton and Anderson (1983), the equations as corrected by Florian (2007).
    """

    gravity: float = 9.8
    initial_position: float = 0.0
    initial_velocity: float = 0.0
    initial_angle: float = 0.0
    initial_rate: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "cart_mass": dist.Uniform(0.5, 1.5),
            "pole_mass": dist.Uniform(0.05, 0.15),
            "half_length": dist.Uniform(0.25, 0.75),
            "initial_position": dist.Uniform(-0.05, 0.05),
            "initial_velocity": dist.Uniform(-0.05, 0.05),
            "initial_angle": dist.Uniform(-0.05, 0.05),
            "initial_rate": dist.Uniform(-0.05, 0.05),
            "control": dist.Uniform(-10.0, 10.0).expand([100]).to_event(1),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.02 * i for i in range(1, 101)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=1)

    channels = ("position", "velocity", "sin_angle", "cos_angle", "rate")

    def initial_state(self, theta):
        names = (f"initial_{name}" for name in CartPoleState._fields)
        return CartPoleState(*(self.quantity(theta, name) for name in names))

    def vector_field(self, t, state, theta):
        length, pole = theta["half_length"], theta["pole_mass"]
        whole = theta["cart_mass"] + pole
        sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
        push = (theta["control"] + pole * length * jnp.square(state.rate) * sine) / whole
        tipping = self.quantity(theta, "gravity") * sine - push * cosine
        turn = tipping / (length * (4 / 3 - pole * jnp.square(cosine) / whole))
        speed_up = push - pole * length * turn * cosine / whole
        return CartPoleState(state.velocity, speed_up, state.rate, turn)

    def readout(self, trajectory, theta):
        sine, cosine = jnp.sin(trajectory.angle), jnp.cos(trajectory.angle)
        columns = (trajectory.position, trajectory.velocity, sine, cosine, trajectory.rate)
        return jnp.stack(columns, axis=-1)

    def energy(self, state, theta):
        """In joules; it would be `conserved` without the force."""
        length, pole = theta["half_length"], theta["pole_mass"]
        cosine = jnp.cos(state.angle)
        motion = (theta["cart_mass"] + pole) * jnp.square(state.velocity) / 2
        turning = (2 / 3) * pole * jnp.square(length * state.rate)
        both = pole * length * state.velocity * state.rate * cosine
        return motion + turning + both + pole * self.quantity(theta, "gravity") * length * cosine
