"""Explicit Runge-Kutta methods in fixed steps, in forms that suit ensembles: `field, y -> y`.

A stock Runge-Kutta solver keeps its stages in one buffer and loops over them; under `vmap` XLA
transposes that buffer at every stage, which costs more than the arithmetic of a small system. The
solver here writes the stages out, or loops over them with the batch inside the state, and takes
several sub-steps per step of diffrax, so that diffrax's own bookkeeping happens once per saved
time.
"""

import dataclasses
import functools
from typing import Literal, TypeAlias, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from sgjax.solvers._base import AbstractSubSteps, GridSteps, repeat, walk
from sgjax.solvers._tableaus import TABLEAUS, Method, Tableau

Form: TypeAlias = Literal["unrolled", "scanned", "kernel"]

FEW = 8
"""Up to so many numbers a simulation, stages are written out unless told otherwise."""


class SubSteps(AbstractSubSteps):
    """`num_substeps` equal steps of an explicit Runge-Kutta method as one step of diffrax.

    Order as the method's: Euler 1, Heun 2, RK4 and Carpenter-Kennedy 4, Tsit5 5.
    """

    num_substeps: int
    method: Method = eqx.field(static=True)
    form: Form = eqx.field(static=True)

    def order(self, terms):
        del terms
        return TABLEAUS[self.method].order

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del solver_state, made_jump
        h = (t1 - t0) / self.num_substeps
        tableau = TABLEAUS[self.method]
        step = runge_kutta_step
        if self.form == "scanned":
            step = _scanned if tableau.low_storage is None else _low_storage

        def substep(index, y):
            return step(tableau, terms.vf, t0 + index * h, h, y, args)

        y1 = repeat(substep, y0, self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful


def runge_kutta_step(tableau: Tableau, vector_field, t, h, y: PyTree, args) -> PyTree:
    """The state one step of length `h` after `t`, the stages written out."""
    stages: list[PyTree] = []
    for node, row in zip(tableau.c, tableau.a, strict=True):
        stages.append(vector_field(t + node * h, _combine(y, h, row, stages), args))
    return _combine(y, h, tableau.b, stages)


def _combine(y: PyTree, h, weights: tuple[float, ...], stages: list[PyTree]) -> PyTree:
    """`y + h * sum_i weights[i] * stages[i]`, leaf by leaf; zero weights cost nothing."""
    used = [(weight, stage) for weight, stage in zip(weights, stages, strict=False) if weight]
    if not used:
        return y
    factors = [weight for weight, _ in used]

    def leaf(value: Array, *slopes: Array) -> Array:
        increment = sum(factor * slope for factor, slope in zip(factors, slopes, strict=True))
        return value + h.astype(value.dtype) * increment

    return jax.tree.map(leaf, y, *(stage for _, stage in used))


def _scanned(tableau: Tableau, vector_field, t, h, y: PyTree, args) -> PyTree:
    """All stages in one buffer, each stage's point a product of its row and the buffer."""
    count = len(tableau.c)
    rows = [[*row, *[0.0] * (count - len(row))] for row in (*tableau.a[1:], tableau.b)]
    buffer = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), y)

    def stage(carry, at):
        point, slopes = carry
        node, row, index = at
        slope = vector_field(t + node * h, point, args)
        slopes = jax.tree.map(
            lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, index, 0), slopes, slope
        )
        point = jax.tree.map(
            lambda start, all: start + jnp.tensordot(h * row, all, 1).astype(start.dtype), y, slopes
        )
        return (point, slopes), None

    real = jnp.result_type(float)
    stages = (jnp.asarray(tableau.c, real), jnp.asarray(rows, real), jnp.arange(count))
    return jax.lax.scan(stage, (y, buffer), stages)[0][0]


def _low_storage(tableau: Tableau, vector_field, t, h, y: PyTree, args) -> PyTree:
    """Two registers, whatever the number of stages."""

    def stage(carry, at):
        point, register = carry
        node, keep, take = at
        slope = vector_field(t + node * h, point, args)
        register = jax.tree.map(lambda d, k: (keep * d + h * k).astype(d.dtype), register, slope)
        point = jax.tree.map(lambda y, d: (y + take * d).astype(y.dtype), point, register)
        return (point, register), None

    real = jnp.result_type(float)
    keeps, takes = zip(*(tableau.low_storage or ()), strict=True)
    stages = (jnp.asarray(tableau.c, real), jnp.asarray(keeps, real), jnp.asarray(takes, real))
    return jax.lax.scan(stage, (y, jax.tree.map(jnp.zeros_like, y)), stages)[0][0]


class FixedSteps(GridSteps):
    """Fixed steps of an explicit Runge-Kutta method, `num_substeps` from saved time to saved time.

    The default, since a batch of fixed-step solves keeps all lanes in step, costs the same for each
    simulation, and redraws any of them to the bit. `calibrate_steps` measures how many sub-steps a
    simulator needs. `method` is "euler", "heun", "rk4", "tsit5" or "carpenter_kennedy".

    `form` says how the stages of a step are computed; the numbers agree to rounding. "unrolled"
    writes them out, which compilers fuse into a few loops: best for a few quantities a simulation.
    "scanned" loops over them: best for many, above all for neighbours on a grid, whose written-out
    stages would be computed again for each neighbour; with "carpenter_kennedy" it needs two
    registers only. "kernel" runs the whole solve as one program of an accelerator, for right-hand
    sides that are element-wise over the simulations; elsewhere it is "unrolled". By default it
    follows from the size of the state; `choose_forms` measures.
    """

    num_substeps: int = eqx.field(static=True, default=4)
    method: Method = eqx.field(static=True, default="tsit5")
    form: Form | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.method not in TABLEAUS:
            raise ValueError(f"`method` must be one of {sorted(TABLEAUS)}; got {self.method!r}.")
        if self.form is not None and self.form not in get_args(Form):
            raise ValueError(f"`form` must be one of {get_args(Form)}; got {self.form!r}.")

    def for_state(self, state):
        numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
        by_size = "unrolled" if numbers <= FEW else "scanned"
        return dataclasses.replace(self, form=self.form or by_size)

    def substeps(self, vector_field, state, args):
        del vector_field, state, args
        return SubSteps(self.num_substeps, self.method, self.form or "unrolled")

    def walk(self, vector_field, state, knots, kept, args):
        solver = self.substeps(vector_field, state, args)
        if self.form != "kernel":
            return walk(solver, vector_field, state, knots, kept, args)
        from sgjax.solvers.kernel import solve_in_kernel  # Pallas takes a second to import

        return solve_in_kernel(
            functools.partial(runge_kutta_step, TABLEAUS[self.method]),
            vector_field,
            state,
            knots,
            kept,
            self.num_substeps,
            args,
            lambda field, state, args: walk(solver, field, state, knots, kept, args),
        )
