"""Mechanisms whose stiff linear part is given apart: `linear, nonlinear -> Latent`."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from sgjax._types import Theta
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import Semilinear, depends


class AbstractSemilinearSimulator(AbstractODESimulator):
    r"""A mechanism whose linear part is given apart, for `ExponentialSteps`.

    $$\dot y = L(\theta)\, y + N(t, y; \theta)$$

    $L$ is diagonal, one rate per component: the Fourier modes of a partial differential equation
    with constant coefficients, or the decay rates of a network. Any other solver sees the sum.
    """

    @abc.abstractmethod
    def linear(self, theta: Theta) -> PyTree[Array]:
        """The rates, in the form of the state."""

    @abc.abstractmethod
    def nonlinear(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The rest of the time derivative, in the form of the state."""

    def vector_field(self, t, state, theta):
        return Semilinear(self.linear, self.nonlinear)(t, state, theta)

    def field_of_many(self, axis: int = 0):
        def linear(thetas: Theta) -> PyTree[Array]:
            # Rates that are the same for all simulations stay one row: their weights cost a lot.
            (varies,) = depends(jax.vmap(self.linear, in_axes=axis), (thetas,))
            return jax.vmap(self.linear, axis, axis if varies or axis else None)(thetas)

        def nonlinear(t: Array, states: Any, thetas: Theta) -> PyTree[Array]:
            along = 0 if jnp.ndim(t) else None
            return jax.vmap(self.nonlinear, (along, axis, axis), axis)(t, states, thetas)

        return Semilinear(linear, nonlinear)
