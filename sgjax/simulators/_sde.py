"""Stochastic mechanisms: `(key, theta) -> Latent` by a stochastic differential equation."""

import abc
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, PyTree

from sgjax import samplers
from sgjax._types import PRNGKey, Theta
from sgjax.simulators._stochastic import AbstractStochasticSimulator, places
from sgjax.solvers import AbstractSubSteps, repeat, step_grid, take_rows


class AbstractSDESimulator(AbstractStochasticSimulator):
    r"""A mechanism given by $dy = f(t, y; \theta)\,dt + g(t, y; \theta)\,dW$, $g$ diagonal.

    The equation is meant in Itô's sense and solved by Euler and Maruyama's method: `num_substeps`
    equal steps from one saved time to the next. In the step its strong order is 1/2 (1 where $g$
    does not depend on $y$) and the weak order is 1, so the mean and variance of a trajectory carry
    an error in proportion to the step. An equation in Stratonovich's sense needs the drift
    $f + g\,\partial_y g / 2$ here.
    """

    @abc.abstractmethod
    def drift(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The deterministic part, in the form of the state, per unit of time."""

    @abc.abstractmethod
    def diffusion(self, t: Array, state: Any, theta: Theta) -> PyTree[Array]:
        """The noise of each quantity, in the form of the state, per square root of time."""

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
        path = CounterBrownianPath(
            t0=stops[0], t1=stops[-1], seeds=samplers.seeds(keys), stops=stops, example=one
        )
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            EulerMaruyama(self.num_substeps),
            t0=stops[0],
            t1=stops[-1],
            dt0=None,
            y0=state,
            args=thetas,
            stepsize_controller=diffrax.StepTo(stops[:: self.num_substeps]),
            saveat=diffrax.SaveAt(t0=True, steps=True),
            max_steps=knots.size - 1,
            throw=False,
        )
        return jax.tree.map(lambda leaf: take_rows(leaf, kept), solution.ys)


class CounterBrownianPath(diffrax.AbstractBrownianPath):
    """Brownian motion of many simulations on a fixed grid, each increment a function of its number.

    Each simulation has one seed, and component `c` of the `d` in step `i` is normal number
    `i d + c` of its stream (`samplers.normal_at`). `diffrax.VirtualBrownianTree` answers at any
    time, for some hundred times the cost. Raises `ValueError` where asked for more than increments.
    """

    t0: Any
    t1: Any
    seeds: samplers.Seed
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
        step = jnp.searchsorted(self.stops, (t0 + t1) / 2, method="compare_all") - 1
        leaves, form = jax.tree.flatten(self.example)
        ends = list(accumulate(leaf.size for leaf in leaves))
        first = step.astype(jnp.uint32) * ends[-1]

        def draw(leaf: Array, end: int) -> Array:
            where = places(self.seeds, first + (end - leaf.size), leaf.shape)
            normal = samplers.normal_at(*where, leaf.dtype)
            return jnp.sqrt(t1 - t0).astype(leaf.dtype) * normal

        return jax.tree.unflatten(form, map(draw, leaves, ends))


class EulerMaruyama(AbstractSubSteps, diffrax.AbstractItoSolver):
    """`num_substeps` equal steps of Euler and Maruyama's method as one step of diffrax.

    The terms are `MultiTerm(ODETerm(drift), ControlTerm(diffusion, path))`; the sub-steps are steps
    of the path's grid.
    """

    num_substeps: int

    term_structure: ClassVar = diffrax.MultiTerm[tuple[diffrax.ODETerm, diffrax.ControlTerm]]

    def order(self, terms):
        del terms
        return 1

    def strong_order(self, terms):
        del terms
        return 0.5

    def func(self, terms, t0, y0, args):
        return terms.terms[0].vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del solver_state, made_jump
        drift, noise = terms.terms
        h = (t1 - t0) / self.num_substeps

        def substep(index, y):
            t = t0 + index * h
            along = drift.prod(drift.vf(t, y, args), h)
            across = noise.prod(noise.vf(t, y, args), noise.contr(t, t + h))
            return jax.tree.map(lambda y, f, g: y + (f + g).astype(y.dtype), y, along, across)

        y1 = repeat(substep, y0, self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful


def _subdivide(knots: np.ndarray, count: int) -> np.ndarray:
    """Each gap between knots in `count` equal parts."""
    inner = [np.linspace(a, b, count + 1)[1:] for a, b in pairwise(knots)]
    return np.concatenate([knots[:1], *inner])
