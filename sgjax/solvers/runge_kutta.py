"""Explicit Runge-Kutta methods whose stages are unrolled: `vector field, state -> state`.

A stock Runge-Kutta solver keeps its stages in one buffer and loops over them; under `vmap` XLA
transposes that buffer at every stage, which costs more than the arithmetic of a small system. The
solver here unrolls the stages and takes several sub-steps per step of diffrax, so that diffrax's
own bookkeeping happens once per saved time.
"""

from typing import Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from sgjax.solvers._base import AbstractSubSteps, GridSteps, repeat

Method: TypeAlias = Literal["euler", "heun", "rk4", "tsit5"]


class Tableau(eqx.Module):
    """An explicit Runge-Kutta method: nodes `c`, rows `a` below the diagonal, weights `b`."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


_tsit5 = diffrax.Tsit5.tableau

TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        4,
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
    # Tsitouras (2011); the seventh stage only serves the error estimate, which fixed steps lack.
    "tsit5": Tableau(
        5,
        (0.0, *map(float, _tsit5.c[:5])),
        ((), *(tuple(map(float, row)) for row in _tsit5.a_lower[:5])),
        tuple(map(float, _tsit5.b_sol[:6])),
    ),
}


class SubSteps(AbstractSubSteps):
    """`num_substeps` equal steps of an explicit Runge-Kutta method as one step of diffrax.

    The stages are unrolled, which XLA fuses; right for small systems whose right-hand side is
    point-wise over the ensemble. Order as the method's: Euler 1, Heun 2, RK4 4, Tsit5 5.
    """

    num_substeps: int
    method: Method = eqx.field(static=True)

    def order(self, terms):
        del terms
        return TABLEAUS[self.method].order

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del solver_state, made_jump
        h = (t1 - t0) / self.num_substeps
        tableau = TABLEAUS[self.method]

        def substep(index, y):
            return runge_kutta_step(tableau, terms.vf, t0 + index * h, h, y, args)

        y1 = repeat(substep, y0, self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful


def runge_kutta_step(tableau: Tableau, vector_field, t, h, y: PyTree, args) -> PyTree:
    """The state one step of length `h` after `t`."""
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


class FixedSteps(GridSteps):
    """Fixed steps of an explicit Runge-Kutta method, `num_substeps` from saved time to saved time.

    The default, since a batch of fixed-step solves keeps all lanes in step, costs the same for each
    simulation, and redraws any of them to the bit. `calibrate_steps` measures how many sub-steps a
    simulator needs.
    """

    num_substeps: int = eqx.field(static=True, default=4)
    method: Method = eqx.field(static=True, default="tsit5")

    def __check_init__(self):
        if self.method not in TABLEAUS:
            raise ValueError(f"`method` must be one of {sorted(TABLEAUS)}; got {self.method!r}.")

    def substeps(self, vector_field, state, args):
        del vector_field, state, args
        return SubSteps(self.num_substeps, self.method)
