"""What every policy of steps is, and the fixed grid that most of them walk."""

import abc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

from sgjax._types import Times


class Steps(eqx.Module):
    """A policy: which solver, and where it steps."""

    together: ClassVar[bool]
    """Whether a whole batch may be one state, all simulations stepping as one."""
    blocks: ClassVar[bool] = False
    """Whether a large batch is better cut into blocks that fit a processor's cache."""
    batch_last: ClassVar[bool] = False
    """Whether the batch may be the last axis of the state's arrays instead of the first."""

    def for_state(self, state: PyTree[jax.ShapeDtypeStruct]) -> "Steps":
        """The policy as it serves states of such shapes, those of one simulation."""
        del state
        return self

    @abc.abstractmethod
    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        """The state at `ts`, time leading; where `together`, arrays may hold a batch."""


_forward: ContextVar[bool] = ContextVar("forward", default=False)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Solves traced within have derivatives in forward mode, and no others.

    For few parameters that is cheaper than reverse mode, which is what they have elsewhere.
    """
    token = _forward.set(True)
    try:
        yield
    finally:
        _forward.reset(token)


def adjoint() -> diffrax.AbstractAdjoint:
    """How diffrax differentiates the solves that are traced now."""
    return diffrax.ForwardMode() if _forward.get() else diffrax.RecursiveCheckpointAdjoint()


class AbstractSubSteps(diffrax.AbstractSolver):
    """`num_substeps` equal sub-steps as one step of diffrax, whose bookkeeping is then rare."""

    num_substeps: eqx.AbstractVar[int]

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def init(self, terms, t0, t1, y0, args) -> Any:
        del terms, t0, t1, y0, args

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class GridSteps(Steps):
    """Fixed steps: `num_substeps` from one saved time to the next, all simulations in step.

    Gaps more than twice the median gap are cut up, so that uneven observation times do not stretch
    the step.
    """

    together = True
    blocks = True
    batch_last = True
    num_substeps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def substeps(self, vector_field, state: PyTree, args: PyTree) -> diffrax.AbstractSolver:
        """One step of the grid as a diffrax solver; `state` for its shapes."""

    def __check_init__(self):
        if self.num_substeps < 1:
            raise ValueError(f"`num_substeps` must be at least 1; got {self.num_substeps}.")

    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        knots, kept = step_grid(t0, ts)
        if knots.size == 1:
            return jax.tree.map(lambda leaf: leaf[None], state)
        return self.walk(vector_field, state, knots, kept, args)

    def walk(
        self, vector_field, state: PyTree, knots: np.ndarray, kept: np.ndarray, args: PyTree
    ) -> PyTree:
        """The states at the knots `kept`, time leading: a diffrax solve. May be overridden."""
        return walk(
            self.substeps(vector_field, state, args), vector_field, state, knots, kept, args
        )


@contextmanager
def complex_states() -> Iterator[None]:
    """Leaves out diffrax's warning that complex states are new to it.

    Fixed steps control nothing, and the norms of its step control take the sizes of complex
    numbers; tests hold both against real solutions.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Complex dtype support in Diffrax")
        yield


def walk(
    solver: diffrax.AbstractSolver,
    vector_field,
    state: PyTree,
    knots: np.ndarray,
    kept: np.ndarray,
    args: PyTree,
) -> PyTree:
    """A diffrax solve that steps from knot to knot; the states at those `kept`, time leading."""
    with complex_states():
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),
            solver,
            t0=knots[0],
            t1=knots[-1],
            dt0=None,
            y0=state,
            args=args,
            stepsize_controller=diffrax.StepTo(jnp.asarray(knots, jnp.result_type(float))),
            saveat=diffrax.SaveAt(t0=True, steps=True),
            max_steps=knots.size - 1,
            adjoint=adjoint(),
            throw=False,
        )
    return jax.tree.map(lambda leaf: take_rows(leaf, kept), solution.ys)


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


def take_rows(leaf: Array, rows: np.ndarray) -> Array:
    """Some rows of an array, known when it is compiled."""
    # A contiguous run is a slice, which XLA fuses; a gather is not.
    if np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return leaf[rows[0] : rows[0] + rows.size]
    return leaf[rows]


def repeat(substep, y: PyTree, count: int) -> PyTree:
    """`count` sub-steps, each given its index."""
    if count == 1:
        return substep(0, y)
    # A scan rather than a fori_loop, so that reverse-mode derivatives go through it.
    return jax.lax.scan(lambda y, index: (substep(index, y), None), y, jnp.arange(count))[0]


def depends(function: Callable, arguments: tuple) -> list[bool]:
    """For each argument, whether the result is computed from any part of it."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    remaining = iter(used)
    return [any([next(remaining) for _ in jax.tree.leaves(part)]) for part in arguments]
