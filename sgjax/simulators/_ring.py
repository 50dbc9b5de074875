"""Partial differential equations on a ring: `rates, rest by Fourier mode -> Latent`."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from sgjax._types import Prior
from sgjax.simulators._semilinear import AbstractSemilinearSimulator

SAMPLES = 64
"""Places a wave among which the largest size of the start is sought: it is found to 0.1 %."""


class RingState(NamedTuple):
    """Fourier coefficients of a real function on a ring, from the mean upwards."""

    modes: Inexact[Array, " modes"]


class AbstractRingSimulator(AbstractSemilinearSimulator):
    r"""A real function $u(x, t)$ of a place on a ring, by its Fourier modes.

    It starts as a sum of waves with random cosines and sines, the rows of `waves`, scaled so that
    its largest size is `amplitude`. It is seen at `points` places; the grid that it is
    computed on has `refinement` times as many, and of its modes those that products of two do not
    fold onto one another, a third of the points on either side of the mean (Orszag, 1971).
    """

    amplitude: eqx.AbstractVar[float]
    points: eqx.AbstractVar[int]
    refinement: eqx.AbstractVar[int]

    @property
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The places by number."""
        return tuple(f"u{place}" for place in range(self.points))

    def __check_init__(self):
        if waves(self.prior) < 1:
            raise ValueError(
                "The prior needs `waves`, a distribution of 2 x waves arrays: the cosines, then "
                "the sines, such as Normal(0.0, 1.0).expand([2, 5]).to_event(2)."
            )
        if self.refinement < 1 or waves(self.prior) > self.highest:
            raise ValueError(
                f"{self.points} `points`, {self.refinement} times refined, cannot hold the "
                f"{waves(self.prior)} waves of the start: they need more than three a wave."
            )

    @property
    def highest(self) -> int:
        """The number of the shortest wave that is computed."""
        return (self.points * self.refinement - 1) // 3

    @property
    def numbers(self) -> np.ndarray:
        """How often each mode goes up and down on the ring."""
        return np.arange(self.highest + 1)

    def initial_state(self, theta):
        cosines, sines = jnp.asarray(theta["waves"])
        start = jax.lax.complex(cosines, -sines) / 2
        # On a grid of its own, so that a finer one for the equation leaves the start as it is.
        places = SAMPLES * start.size
        largest = jnp.max(jnp.abs(jnp.fft.irfft(jnp.pad(start, (1, 0)), places, norm="forward")))
        scale = self.quantity(theta, "amplitude") / largest
        return RingState(scale * jnp.pad(start, (1, self.highest - start.size)))

    def readout(self, trajectory, theta):
        return self.on_grid(trajectory.modes)[..., :: self.refinement]

    def on_grid(self, modes: Inexact[Array, "*times modes"]) -> Array:
        """The function at the points it is computed on; modes above the highest are 0."""
        return jnp.fft.irfft(modes, self.points * self.refinement, norm="forward")

    def steepening(self, state: Any, wavenumber: Any) -> RingState:
        r"""The rate $-(u^2/2)_x$ at which what is higher overtakes what is lower."""
        squares = jnp.fft.rfft(jnp.square(self.on_grid(state.modes)), norm="forward")
        return RingState(-0.5j * wavenumber * squares[: self.highest + 1])


def waves(prior: Prior) -> int:
    """How many columns the waves of the start have; 0 where the prior does not say."""
    shape = getattr(prior.get("waves"), "event_shape", ())
    return shape[1] if len(shape) == 2 and shape[0] == 2 else 0
