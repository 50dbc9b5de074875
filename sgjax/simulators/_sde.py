"""Stochastic mechanisms: `(key, theta) -> Latent` by a stochastic differential equation."""

import abc
from itertools import pairwise
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from sgjax._types import PRNGKey, Theta
from sgjax.simulators._base import AbstractSimulator, Latent, fill_lanes, in_default_precision
from sgjax.solvers import step_grid


class AbstractSDESimulator(AbstractSimulator):
    r"""A mechanism given by $dy = f(t, y; \theta)\,dt + g(t, y; \theta)\,dW$, $g$ diagonal.

    The equation is meant in Itô's sense and solved by Euler and Maruyama's method: `num_substeps`
    equal steps from one saved time to the next. In the step its strong order is 1/2 (1 where $g$
    does not depend on $y$) and the weak order is 1, so the mean and variance of a trajectory carry
    an error in proportion to the step. An equation in Stratonovich's sense needs the drift
    $f + g\,\partial_y g / 2$ here.

    A trajectory is a pure function of its key: step `i` draws from `fold_in(key, i)`. Another
    `num_substeps` is therefore another realisation, not the same one more finely resolved.
    """

    t0: eqx.AbstractVar[float]
    num_substeps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def initial_state(self, theta: Theta) -> PyTree[Array]:
        """The state at `t0`."""

    @abc.abstractmethod
    def drift(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The deterministic part, in the form of the state, per unit of time."""

    @abc.abstractmethod
    def diffusion(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The noise of each quantity, in the form of the state, per square root of time."""

    @abc.abstractmethod
    def readout(self, trajectory: Any, theta: Theta) -> Float[Array, "times channels"]:
        """What an ideal instrument would see of a trajectory (time leading), a column a channel."""

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
        # As for ODEs, the batch lives inside the state and only drift and diffusion are vmapped.
        size = keys.shape[0]
        # Apart, since derivatives pass through the parameters and cannot through keys.
        keys, thetas = fill_lanes(keys, size), fill_lanes(thetas, size)
        with jax.default_matmul_precision("highest"):
            state = in_default_precision(jax.vmap(self.initial_state)(thetas))
            trajectory = self._solve(keys, state, thetas)
            trajectory = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), trajectory)
            latent = jax.vmap(self._latent)(trajectory, thetas)
        return jax.tree.map(lambda leaf: leaf[:size], latent)

    def _solve(self, keys: PRNGKey, state: PyTree[Array], thetas: Theta) -> PyTree[Array]:
        knots, kept = step_grid(self.t0, self.ts)
        if knots.size == 1:
            return jax.tree.map(lambda leaf: leaf[None], state)
        stops = jnp.asarray(_subdivide(knots, self.num_substeps), float)

        def drift(t, states, thetas):
            return jax.vmap(self.drift, in_axes=(None, 0, 0))(t, states, thetas)

        def diffusion(t, states, thetas):
            noise = jax.vmap(self.diffusion, in_axes=(None, 0, 0))(t, states, thetas)
            return lineax.DiagonalLinearOperator(noise)

        one = jax.tree.map(lambda leaf: leaf[0], state)
        path = KeyedBrownianPath(t0=stops[0], t1=stops[-1], keys=keys, stops=stops, example=one)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            diffrax.Euler(),
            t0=stops[0],
            t1=stops[-1],
            dt0=None,
            y0=state,
            args=thetas,
            stepsize_controller=diffrax.StepTo(stops),
            saveat=diffrax.SaveAt(t0=True, steps=self.num_substeps),
            max_steps=stops.size - 1,
            throw=False,
        )
        return jax.tree.map(lambda leaf: leaf[kept], solution.ys)

    def _latent(self, trajectory: PyTree[Array], theta: Theta) -> Latent:
        values = self.readout(trajectory, theta)
        return Latent(jnp.asarray(self.ts, values.dtype), values, trajectory)


class KeyedBrownianPath(diffrax.AbstractBrownianPath):
    """Brownian motion of many simulations on a fixed grid: step `i` draws from `fold_in(key, i)`.

    `diffrax.VirtualBrownianTree` answers at any time, for some fifty times the cost of this.
    """

    t0: Any
    t1: Any
    keys: PRNGKey
    stops: Float[Array, " stops"]
    example: PyTree[Array]
    """The state of one simulation, whose form the increments have."""
    levy_area: Any = eqx.field(static=True, default=diffrax.BrownianIncrement)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increments over one step of the grid, from `t0` to `t1`."""
        del left
        if t1 is None or use_levy:
            raise ValueError("This path knows increments over the steps of its grid only.")
        # The middle, so that rounding of t0 cannot find the step before.
        middle = (t0 + t1) / 2
        step = jnp.searchsorted(self.stops, middle, method="compare_all") - 1
        flat, unravel = ravel_pytree(self.example)

        def increment(key):
            # In float32, since the same key draws other numbers in float64.
            normal = jax.random.normal(jax.random.fold_in(key, step), flat.shape, jnp.float32)
            return unravel(jnp.sqrt(t1 - t0).astype(flat.dtype) * normal.astype(flat.dtype))

        return jax.vmap(increment)(self.keys)


def _subdivide(knots: np.ndarray, count: int) -> np.ndarray:
    """Each gap between knots in `count` equal parts."""
    inner = [np.linspace(a, b, count + 1)[1:] for a, b in pairwise(knots)]
    return np.concatenate([knots[:1], *inner])
