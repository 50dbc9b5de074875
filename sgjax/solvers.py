"""Diffrax solvers and step policies made for ensembles: `vector field, state, times -> trajectory`.

A stock Runge-Kutta solver keeps its stages in one buffer and loops over them; under `vmap` XLA
transposes that buffer at every stage, which costs more than the arithmetic of a small system. The
solver here unrolls the stages and takes several sub-steps per step of diffrax, so that diffrax's
own bookkeeping happens once per saved time.
"""

from typing import ClassVar, Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from sgjax._types import Times

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


class SubSteps(diffrax.AbstractSolver):
    """`num_substeps` equal steps of an explicit Runge-Kutta method as one step of diffrax.

    The stages are unrolled, which XLA fuses; right for small systems whose right-hand side is
    point-wise over the ensemble. Order as the method's: Euler 1, Heun 2, RK4 4, Tsit5 5.
    """

    num_substeps: int
    method: Method = eqx.field(static=True)

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms):
        del terms
        return TABLEAUS[self.method].order

    def init(self, terms, t0, t1, y0, args):
        del terms, t0, t1, y0, args

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del solver_state, made_jump
        h = (t1 - t0) / self.num_substeps
        tableau = TABLEAUS[self.method]

        def substep(index, y):
            return _runge_kutta_step(terms.vf, tableau, t0 + index * h, h, y, args)

        y1 = substep(0, y0) if self.num_substeps == 1 else _repeat(substep, y0, self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def _repeat(substep, y: PyTree, count: int) -> PyTree:
    # A scan rather than a fori_loop, so that reverse-mode derivatives go through it.
    return jax.lax.scan(lambda y, index: (substep(index, y), None), y, jnp.arange(count))[0]


def _runge_kutta_step(vector_field, tableau: Tableau, t, h, y: PyTree, args) -> PyTree:
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


class FixedSteps(eqx.Module):
    """Fixed steps: `num_substeps` steps of `method` between one saved time and the next.

    The default, since a batch of fixed-step solves keeps all lanes in step, costs the same for each
    simulation, and redraws any of them to the bit. `calibrate_steps` measures how many sub-steps a
    simulator needs. Gaps more than twice the median gap are cut up, so that uneven observation
    times do not stretch the step.
    """

    num_substeps: int = eqx.field(static=True, default=4)
    method: Method = eqx.field(static=True, default="tsit5")

    def __check_init__(self):
        if self.num_substeps < 1:
            raise ValueError(f"`num_substeps` must be at least 1; got {self.num_substeps}.")
        if self.method not in TABLEAUS:
            raise ValueError(f"`method` must be one of {sorted(TABLEAUS)}; got {self.method!r}.")

    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        """The state at `ts`, time leading; leaves may carry a batch behind it."""
        knots, kept = step_grid(t0, ts)
        if knots.size == 1:
            return jax.tree.map(lambda leaf: leaf[None], state)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),
            SubSteps(self.num_substeps, self.method),
            t0=knots[0],
            t1=knots[-1],
            dt0=None,
            y0=state,
            args=args,
            stepsize_controller=diffrax.StepTo(jnp.asarray(knots, jnp.result_type(float))),
            saveat=diffrax.SaveAt(t0=True, steps=True),
            max_steps=knots.size - 1,
            throw=False,
        )
        return jax.tree.map(lambda leaf: _rows(leaf, kept), solution.ys)


class AdaptiveSteps(eqx.Module):
    """Adaptive steps, each simulation its own; with `implicit=True` a solver for stiff systems.

    Explicit: Tsit5 (Tsitouras, 2011); implicit: Kvaerno5 (Kvaerno, 2004), both under a PID
    controller. `absolute_tolerance` must lie below the smallest state that matters: an outbreak
    that starts at a millionth of the population is lost in a tolerance of 1e-6. A simulation that
    needs more than `max_steps` steps comes back non-finite and is counted as invalid.
    """

    relative_tolerance: float = eqx.field(static=True, default=1e-4)
    absolute_tolerance: float = eqx.field(static=True, default=1e-6)
    implicit: bool = eqx.field(static=True, default=False)
    max_steps: int = eqx.field(static=True, default=4096)

    def __check_init__(self):
        if not (self.relative_tolerance > 0 and self.absolute_tolerance > 0):
            raise ValueError("Tolerances must be positive.")

    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        """The state of one simulation at `ts`, time leading."""
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),
            diffrax.Kvaerno5() if self.implicit else diffrax.Tsit5(),
            t0=t0,
            t1=ts[-1] if ts[-1] > t0 else t0 + 1.0,
            dt0=None,
            y0=state,
            args=args,
            stepsize_controller=diffrax.PIDController(
                rtol=self.relative_tolerance, atol=self.absolute_tolerance
            ),
            saveat=diffrax.SaveAt(ts=jnp.asarray(ts, jnp.result_type(float))),
            max_steps=self.max_steps,
            throw=False,
        )
        ok = solution.result == diffrax.RESULTS.successful
        return jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.nan), solution.ys)


def step_grid(t0: float, ts: Times) -> tuple[np.ndarray, np.ndarray]:
    """The times a fixed-step solve stops at, and which of them are the saved ones."""
    stops = ts if ts[0] == t0 else np.concatenate([[t0], ts])
    gaps = np.diff(stops)
    if gaps.size == 0:
        return stops, np.zeros(1, int)
    pieces = np.maximum(1, np.ceil(gaps / (2 * np.median(gaps)) - 1e-9).astype(int))
    inner = [
        np.linspace(a, b, n + 1)[1:] for a, b, n in zip(stops, stops[1:], pieces, strict=False)
    ]
    knots = np.concatenate([stops[:1], *inner])
    kept = np.concatenate([[0], np.cumsum(pieces)])
    return knots, kept[kept.size - ts.size :]


def _rows(leaf: Array, rows: np.ndarray) -> Array:
    # A contiguous run is a slice, which XLA fuses; a gather is not.
    if np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return leaf[rows[0] : rows[0] + rows.size]
    return leaf[rows]
