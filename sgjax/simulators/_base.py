"""What every simulator is: `(key, theta) -> Latent`, one simulation at a time."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from sgjax._types import Prior, PRNGKey, Theta, Times
from sgjax.solvers import Steps


class Latent(eqx.Module):
    """The noiseless course of one simulation: what an ideal instrument would see, and the state."""

    ts: Float[Array, "*batch times"]
    values: Float[Array, "*batch times channels"]
    states: Any
    """The trajectory, a record of named quantities with time leading."""


class AbstractSimulator(eqx.Module):
    """A mechanism with a prior over its parameters.

    A field may become random, one value per simulation, by adding its name to the prior; read such
    fields through `self.quantity(theta, name)`.
    """

    prior: eqx.AbstractVar[Prior]
    ts: eqx.AbstractVar[Times]
    channels: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def simulate(self, key: PRNGKey, theta: Theta) -> Latent:
        """One simulation."""

    def simulate_batch(self, keys: PRNGKey, thetas: Theta) -> Latent:
        """Many simulations: the batch leads every array of the result. May be overridden."""
        return jax.vmap(self.simulate)(keys, thetas)

    def quantity(self, theta: Theta, name: str) -> Any:
        """The value of a field: from the parameters where the prior names it, else the field's."""
        return theta[name] if name in self.prior else getattr(self, name)

    @property
    def mechanisms(self) -> "dict[str, AbstractSimulator]":
        """The mechanisms by name; one for all but a mixture."""
        return {type(self).__name__: self}

    @property
    def mechanism_table(self) -> np.ndarray:
        """Which mechanism simulation `i` has: entry `i mod len(table)`."""
        return np.zeros(1, np.int32)


class AbstractODESimulator(AbstractSimulator):
    r"""A mechanism given by $\dot y = f(t, y; \theta)$, solved by diffrax.

    The state is a `NamedTuple` of scalars (or of vectors), so that equations read as equations and
    each quantity is one contiguous array over the ensemble.
    """

    t0: eqx.AbstractVar[float]
    solver: eqx.AbstractVar[Steps]

    @abc.abstractmethod
    def initial_state(self, theta: Theta) -> PyTree[Array]:
        """The state at `t0`."""

    @abc.abstractmethod
    def vector_field(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The time derivative of the state, in the form of the state."""

    @abc.abstractmethod
    def readout(self, trajectory: Any, theta: Theta) -> Float[Array, "times channels"]:
        """What an ideal instrument would see of a trajectory (time leading), a column a channel."""

    def parameters_at_start(self, theta: Theta) -> Theta:
        """The parameters as `vector_field` sees them at `t0`. May be overridden."""
        return theta

    def conserved(self, state: Any, theta: Theta) -> Array | None:
        """Optional: a quantity that the exact flow keeps, for one state."""
        del state, theta
        return None

    def analytic(self, theta: Theta) -> Float[Array, "times channels"] | None:
        """Optional: the exact readout at `ts`."""
        del theta
        return None

    def __check_init__(self):
        if self.ts[0] < self.t0:
            raise ValueError(
                f"The first time {self.ts[0]} of `ts` lies before the start t0 = {self.t0}; "
                "move `t0` or the times."
            )

    def simulate(self, key: PRNGKey, theta: Theta) -> Latent:
        # A batch of one, so that a simulation is the same numbers alone and among others.
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], theta)
        return jax.tree.map(lambda leaf: leaf[0], self.simulate_batch(key[None], batch))

    def simulate_batch(self, keys: PRNGKey, thetas: Theta) -> Latent:
        # TF32 on GPUs would break step control and conservation.
        with jax.default_matmul_precision("highest"):
            if not self.solver.together:
                return jax.vmap(self._latent)(jax.vmap(self._solve_alone)(thetas), thetas)
            first = jax.tree.map(lambda leaf: leaf[0], thetas)
            one = jax.eval_shape(
                lambda theta: in_default_precision(self.initial_state(theta)), first
            )

            def block(thetas: Theta) -> Latent:
                return jax.vmap(self._latent)(self._solve_together(one, thetas), thetas)

            largest = block_size(one) if self.solver.blocks else None
            return in_blocks(block, thetas, keys.shape[0], largest)

    def _solve_together(self, one: PyTree[jax.ShapeDtypeStruct], thetas: Theta) -> PyTree[Array]:
        # The batch lives inside the state and only the vector field is vmapped: vmapping the whole
        # solve costs several times more (see `sgjax.solvers`).
        solver = self.solver.for_state(one)
        axis = -1 if solver.batch_last and wants_batch_last(one) else 0
        state = in_default_precision(jax.vmap(self.initial_state, out_axes=axis)(thetas))
        thetas = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), thetas)
        trajectory = self._trajectory(solver, self.field_of_many(axis), state, thetas, axis)
        # From time leading to simulation, time, shape.
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis or 1, 0), trajectory)

    def field_of_many(self, axis: int = 0) -> Callable[[Any, Any, Theta], Any]:
        """The vector field of a batch, along one axis of every array of states and parameters."""

        def field(t, states, thetas):
            along = 0 if jnp.ndim(t) else None  # one time, or one for each simulation
            many = jax.vmap(self.vector_field, in_axes=(along, axis, axis), out_axes=axis)
            return many(t, states, thetas)

        return field

    def _solve_alone(self, theta: Theta) -> PyTree[Array]:
        state = in_default_precision(self.initial_state(theta))
        field = lambda t, y, args: self.vector_field(t, y, args)
        return self._trajectory(self.solver, field, state, theta, None)

    def _trajectory(
        self, solver: Steps, field: Callable, state: PyTree[Array], thetas: Theta, axis: int | None
    ) -> PyTree[Array]:
        """The states at `ts`, time leading, of a batch along `axis`, or (`None`) of one simulation.

        May be overridden where the times are not one solve.
        """
        del axis
        return solver.solve(field, state, self.t0, self.ts, thetas)

    def _latent(self, trajectory: PyTree[Array], theta: Theta) -> Latent:
        values = self.readout(trajectory, theta)
        return Latent(jnp.asarray(self.ts, values.dtype), values, trajectory)


def in_default_precision(state: PyTree) -> PyTree[Array]:
    """A state whose every leaf is at least of the default real type: 763 persons are 763.0."""
    real = jnp.result_type(float)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), real)), state
    )


LANES = 16
"""The widest vector of any processor, in numbers of 32 bits."""

CACHE = 2**18
"""Bytes that the state and stages of the simulations that step together may take on a CPU."""


def wants_batch_last(state: PyTree) -> bool:
    """Whether such a state holds arrays whose last axis would fill no vector of a processor."""
    return any(leaf.ndim and leaf.shape[-1] < LANES for leaf in jax.tree.leaves(state))


def block_size(state: PyTree) -> int | None:
    """How many simulations with such a state step together: as many as a core's cache holds.

    `None` for all of them: elsewhere than on CPUs, the more the better.
    """
    if jax.default_backend() != "cpu":
        return None
    # Eight registers: the state, the stages of a step, the point where a stage is computed.
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    return max(LANES, CACHE // (8 * 4 * max(1, numbers)) // LANES * LANES)


def in_blocks(function: Callable, batch: PyTree[Array], size: int, block: int | None) -> Any:
    """`function(batch)`, block after block where the batch is larger than one.

    A batch is filled up with copies of its last member to a multiple of 16. Compilers finish the
    odd members of a batch in code of their own, which rounds differently; full vectors make a
    simulation the same numbers in a batch of any size.
    """
    count = 1 if block is None else -(-size // block)
    each = -(-size // (count * LANES)) * LANES
    batch = _filled(batch, count * each - size)
    if count == 1:
        return jax.tree.map(lambda leaf: leaf[:size], function(batch))
    blocks = jax.tree.map(lambda leaf: leaf.reshape(count, each, *leaf.shape[1:]), batch)
    made = jax.lax.map(function, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], made)


def _filled(batch: PyTree[Array], missing: int) -> PyTree[Array]:
    if missing == 0:
        return batch
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
    # The barrier hides from the compiler that the copies are copies.
    return jax.lax.optimization_barrier(jax.tree.map(fill, batch))


def fill_lanes(batch: PyTree[Array], size: int) -> PyTree[Array]:
    """A batch filled up to a multiple of 16; see `in_blocks`."""
    return _filled(batch, -size % LANES)
