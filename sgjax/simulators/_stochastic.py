"""What stochastic mechanisms share: a batch in one state, and one stream of numbers for each."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from sgjax._types import PRNGKey, Theta
from sgjax.samplers import Seed
from sgjax.simulators._base import AbstractSimulator, Latent, fill_lanes, in_default_precision


class AbstractStochasticSimulator(AbstractSimulator):
    """A mechanism whose course is random: `num_substeps` equal steps between saved times.

    A trajectory is a pure function of its key, which seeds one stream of numbers; each step uses
    numbers at places of its own. Another `num_substeps` is therefore another realisation, not the
    same one more finely resolved.
    """

    t0: eqx.AbstractVar[float]
    num_substeps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def initial_state(self, theta: Theta) -> PyTree[Array]:
        """The state at `t0`."""

    @abc.abstractmethod
    def readout(self, trajectory: Any, theta: Theta) -> Float[Array, "times channels"]:
        """What an ideal instrument would see of a trajectory (time leading), a column a channel."""

    @abc.abstractmethod
    def _solve(self, keys: PRNGKey, state: PyTree[Array], thetas: Theta) -> PyTree[Array]:
        """The states of a batch at `ts`: time leads, the batch follows."""

    def __check_init__(self):
        if self.ts[0] < self.t0:
            raise ValueError(
                f"The first time {self.ts[0]} of `ts` lies before the start t0 = {self.t0}; "
                "move `t0` or the times."
            )
        if self.num_substeps < 1:
            raise ValueError(f"`num_substeps` must be at least 1; got {self.num_substeps}.")

    def simulate(self, key: PRNGKey, theta: Theta) -> Latent:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], theta)
        return jax.tree.map(lambda leaf: leaf[0], self.simulate_batch(key[None], batch))

    def simulate_batch(self, keys: PRNGKey, thetas: Theta) -> Latent:
        # As for ODEs, the batch lives inside the state and only the equations are vmapped.
        size = keys.shape[0]
        # Apart, since derivatives pass through the parameters and cannot through keys.
        keys, thetas = fill_lanes(keys, size), fill_lanes(thetas, size)
        with jax.default_matmul_precision("highest"):
            state = in_default_precision(jax.vmap(self.initial_state)(thetas))
            trajectory = self._solve(keys, state, thetas)
            trajectory = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), trajectory)
            latent = jax.vmap(self._latent)(trajectory, thetas)
        return jax.tree.map(lambda leaf: leaf[:size], latent)

    def _latent(self, trajectory: PyTree[Array], theta: Theta) -> Latent:
        values = self.readout(trajectory, theta)
        return Latent(jnp.asarray(self.ts, values.dtype), values, trajectory)


def places(
    seeds: Seed, first: UInt32[Array, ""], shape: tuple[int, ...]
) -> tuple[Seed, UInt32[Array, "..."]]:
    """Where the streams hold `prod(shape)` numbers from `first` on: seeds to broadcast, indices."""
    lift = lambda half: half.reshape(half.shape + (1,) * len(shape))
    index = first + np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    return (lift(seeds[0]), lift(seeds[1])), index
