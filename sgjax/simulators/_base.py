"""What every simulator is: `(key, theta) -> Latent`, one simulation at a time."""

import abc
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
        size = keys.shape[0]
        # TF32 on GPUs would break step control and conservation.
        with jax.default_matmul_precision("highest"):
            if self.solver.together:
                thetas = fill_lanes(thetas, size)
                trajectory = self._solve_together(thetas)
            else:
                trajectory = jax.vmap(self._solve_alone)(thetas)
            latent = jax.vmap(self._latent)(trajectory, thetas)
        return jax.tree.map(lambda leaf: leaf[:size], latent)

    def _solve_together(self, thetas: Theta) -> PyTree[Array]:
        # The batch lives inside the state and only the vector field is vmapped: vmapping the whole
        # solve costs several times more (see `sgjax.solvers`).
        state = in_default_precision(jax.vmap(self.initial_state)(thetas))
        field = self.field_of_many()
        trajectory = self.solver.solve(field, state, self.t0, self.ts, thetas)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), trajectory)

    def field_of_many(self) -> Callable[[Any, Any, Theta], Any]:
        """The vector field of a whole batch, which leads every array of states and parameters."""

        def field(t, states, thetas):
            along = 0 if jnp.ndim(t) else None  # one time, or one for each simulation
            return jax.vmap(self.vector_field, in_axes=(along, 0, 0))(t, states, thetas)

        return field

    def _solve_alone(self, theta: Theta) -> PyTree[Array]:
        state = in_default_precision(self.initial_state(theta))
        field = lambda t, y, args: self.vector_field(t, y, args)
        return self.solver.solve(field, state, self.t0, self.ts, theta)

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


def fill_lanes(batch: PyTree[Array], size: int) -> PyTree[Array]:
    """A batch filled up with copies of its last member to a multiple of 16.

    Compilers finish the odd members of a batch in code of their own, which rounds differently; full
    vectors make a simulation the same numbers in a batch of any size.
    """
    missing = -size % LANES
    if missing == 0:
        return batch
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
    # The barrier hides from the compiler that the copies are copies.
    return jax.lax.optimization_barrier(jax.tree.map(fill, batch))
