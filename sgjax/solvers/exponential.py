"""Exponential steps for stiff linear parts: `linear rates, nonlinear field -> trajectory`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from sgjax.solvers._base import AbstractSubSteps, GridSteps, repeat

CONTOUR_POINTS = 32
"""Points of the contour integral: with 32 on a unit circle its error is below float64's."""


class Semilinear(eqx.Module):
    r"""A vector field $\dot y = L(\theta)\, y + N(t, y; \theta)$, $L$ diagonal.

    `linear(args)` has the form of the state (or broadcasts to it): the rate of each component, such
    as $-k^2$ of a Fourier mode under diffusion. Called, it is the whole field, for any solver.
    """

    linear: Callable[[Any], PyTree]
    nonlinear: Callable[[Any, PyTree, Any], PyTree]

    def __call__(self, t, y: PyTree, args) -> PyTree:
        rates = self.linear(args)
        return jax.tree.map(
            lambda rate, leaf, slope: rate * leaf + slope, rates, y, self.nonlinear(t, y, args)
        )


class Weights(NamedTuple):
    r"""What a sub-step needs of the linear part, for each component: exponentials and integrals.

    `whole` and `half` are $e^z$ and $e^{z/2}$ without the share `kept`, 1 where $|z|$ is small: the
    same rounding of a factor near 1 in every step would add up to another rate.
    """

    kept: Array
    whole: Array
    half: Array
    stage: Array
    first: Array
    middle: Array
    last: Array


def weights(rate: Array, h: Array) -> Weights:
    r"""The coefficients of ETDRK4 at $z = h L$, by Cauchy's integral around each $z$.

    Their formulas, such as $(e^z - 1)/z$, lose all digits near 0; a mean over a circle around $z$
    loses none (Kassam and Trefethen, 2005).
    """
    angles = 2 * np.pi * (np.arange(CONTOUR_POINTS) + 0.5) / CONTOUR_POINTS
    real = not jnp.issubdtype(jnp.result_type(rate), jnp.complexfloating)
    # Of a real rate, the lower half of the circle mirrors the upper one.
    circle = np.exp(1j * (angles[: CONTOUR_POINTS // 2] if real else angles))
    centre = h * jnp.asarray(rate)
    z = centre[..., None] + jnp.asarray(circle, jnp.result_type(centre, jnp.complex64))
    e = jnp.exp(z)

    def integral(values: Array) -> Array:
        average = jnp.mean(values, axis=-1)
        return h * (average.real if real else average)

    near = jnp.abs(centre) < 1 / 2
    exponential = lambda z: jnp.where(near, jnp.expm1(z), jnp.exp(z))
    return Weights(
        kept=near.astype(centre.dtype),
        whole=exponential(centre),
        half=exponential(centre / 2),
        stage=integral((jnp.exp(z / 2) - 1) / z),
        first=integral((-4 - z + e * (4 - 3 * z + z**2)) / z**3),
        middle=integral(2 * (2 + z + e * (z - 2)) / z**3),
        last=integral((-4 - 3 * z - z**2 + e * (4 - z)) / z**3),
    )


class ExponentialSubSteps(AbstractSubSteps):
    """`num_substeps` equal ETDRK4 steps of a field as one step of diffrax."""

    num_substeps: int
    field: Semilinear

    def order(self, terms):
        del terms
        return 4

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del terms, solver_state, made_jump
        h = jnp.asarray((t1 - t0) / self.num_substeps)
        field, rates = self.field, self.field.linear(args)
        each = jax.tree.map(lambda rate: weights(rate, h.astype(rate.real.dtype)), rates)

        def combine(function: Callable, *trees: PyTree) -> PyTree:
            return jax.tree.map(lambda _, w, *leaves: function(w, *leaves), rates, each, *trees)

        def substep(index, y):
            t = t0 + index * h
            start = field.nonlinear(t, y, args)
            a = combine(lambda w, y, n: w.kept * y + (w.half * y + w.stage * n), y, start)
            at_a = field.nonlinear(t + h / 2, a, args)
            b = combine(lambda w, y, n: w.kept * y + (w.half * y + w.stage * n), y, at_a)
            at_b = field.nonlinear(t + h / 2, b, args)
            c = combine(
                lambda w, a, n_b, n: w.kept * a + (w.half * a + w.stage * (2 * n_b - n)),
                a, at_b, start,
            )  # fmt: skip
            at_c = field.nonlinear(t + h, c, args)
            return combine(
                lambda w, y, n, n_a, n_b, n_c: (
                    w.kept * y
                    + (w.whole * y + w.first * n + w.middle * (n_a + n_b) + w.last * n_c)
                ),
                y, start, at_a, at_b, at_c,
            )  # fmt: skip

        y1 = repeat(substep, y0, self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful


class ExponentialSteps(GridSteps):
    r"""Fixed ETDRK4 steps: the linear part exactly, the rest by a Runge-Kutta method of order 4.

    For $\dot y = L y + N(t, y)$ with a stiff diagonal $L$, such as the Fourier modes of a partial
    differential equation: the step is bounded by $N$ alone. Sources: Cox and Matthews (2002);
    Kassam and Trefethen (2005).

    Raises `ValueError` where the simulator does not give the two parts apart
    (`AbstractSemilinearSimulator` does).
    """

    batch_last = False
    num_substeps: int = eqx.field(static=True, default=4)

    def substeps(self, vector_field, state, args):
        del state, args
        if not isinstance(vector_field, Semilinear):
            raise ValueError(
                "Exponential steps need the linear part of the equations by itself: derive the "
                "simulator from `AbstractSemilinearSimulator`, or use `FixedSteps`."
            )
        return ExponentialSubSteps(self.num_substeps, vector_field)
