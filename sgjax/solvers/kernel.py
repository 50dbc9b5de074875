"""A whole solve as one kernel: `step, right-hand side, state, times -> trajectory`.

XLA runs a solve as a loop of small kernels, each of which reads the state of all simulations from
memory and writes it back. Here each program of one kernel takes a block of simulations through all
times, its state in registers, and writes only what is saved. In Pallas; the step and the right-hand
side are the functions that the diffrax solve calls.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, PyTree

from sgjax.solvers.pointwise import EVERYWHERE, Pointwise, pointwise

try:
    from jax.experimental.pallas import triton as pltriton
except ImportError:  # Deprecated in JAX 0.12; without it GPUs have no kernel, and solve as before.
    pltriton = None

Platform: TypeAlias = Literal["cuda", "tpu"]
Step: TypeAlias = Callable[[Callable, Array, Array, PyTree, Any], PyTree]
"""`(vector_field, t, h, state, args) -> state` a step of length `h` later."""

LANES = 128
"""Simulations of a program on a GPU, one a thread; on a TPU, those in a row of a register."""
TPU_ROWS = (16, 8)
"""Rows of a program on a TPU, whose registers have eight."""
TPU_MEMORY = 12 * 2**20
"""Bytes that the trajectory of a program may fill on a TPU; its fast memory has 16 MiB or more."""


class Grid(NamedTuple):
    """Where the steps are, and which of them are saved."""

    times: np.ndarray
    """At which each gap between knots begins."""
    steps: np.ndarray
    """Lengths of the sub-steps in each gap."""
    rows: np.ndarray
    """Where the state behind each gap is written. One that is not saved is overwritten by the next
    that is: a store costs less than a branch."""
    num_rows: int
    num_substeps: int
    saves_start: bool


class Layout(NamedTuple):
    """How a platform lays out the simulations."""

    whole: tuple[int, ...]
    tile: tuple[int, ...]
    """The part that a program takes."""
    scalars: pl.BlockSpec
    options: dict[str, Any]

    @property
    def programs(self) -> int:
        return self.whole[0] // self.tile[0]

    def spec(self, *leading: int) -> pl.BlockSpec:
        """Of an array with the simulations behind the `leading` axes."""
        before, behind = (0,) * len(leading), (0,) * (len(self.tile) - 1)
        return pl.BlockSpec((*leading, *self.tile), lambda block: (*before, block, *behind))


def solve_in_kernel(
    step: Step,
    field: Callable,
    state: PyTree,
    knots: np.ndarray,
    kept: np.ndarray,
    num_substeps: int,
    args: PyTree,
    plain: Callable[[Callable, PyTree, PyTree], PyTree],
    *,
    interpret: Platform | None = None,
) -> PyTree:
    """The states of a batch of simulations at the knots `kept`, time leading.

    From each of the (two or more) knots to the next are `num_substeps` equal steps. The leaves of
    `state` have shape (batch,); what `field(t, state, args)` may be, `obstacle` tells.
    `plain(field, state, args)` is the same solve without a kernel. It runs where there is no kernel
    for the hardware: on a CPU; on a TPU in double precision, with a trajectory of too many times
    or with a function that TPUs lack. The choice falls when the program is lowered. Derivatives,
    reverse-mode only, are those of `plain`. `interpret` names the platform whose kernel shall run
    step by step on any machine: for tests.

    Raises `ValueError` where `field` is not element-wise over the simulations.
    """
    taken = pointwise(field, state, args)
    leaves, form = jax.tree.flatten(state)
    grid = _grid(knots, kept, num_substeps)

    def without(leaves, given):
        slope = lambda t, y, given: jax.tree.unflatten(form, taken(t, jax.tree.leaves(y), given))
        return jax.tree.leaves(plain(slope, jax.tree.unflatten(form, leaves), given))

    def within(layout: Layout):
        return lambda leaves, given: _launch(step, taken, grid, layout, leaves, given)

    @jax.custom_vjp
    def solve(leaves, given):
        found = layouts(taken, leaves, grid.num_rows)
        if interpret is not None:
            options = dict(interpret=True)
            return within(found[interpret]._replace(options=options))(leaves, given)
        kernels: Any = {platform: within(layout) for platform, layout in found.items()}
        return jax.lax.platform_dependent(leaves, given, default=without, **kernels)

    solve.defvjp(
        lambda leaves, given: (solve(leaves, given), (leaves, given)),
        lambda inputs, changes: jax.vjp(without, *inputs)[1](changes),
    )
    return jax.tree.unflatten(form, solve(leaves, list(taken.given)))


def layouts(taken: Pointwise, leaves: Sequence[Array], num_rows: int) -> dict[Platform, Layout]:
    """The platforms that have a kernel for these equations, and how it is laid out."""
    found: dict[Platform, Layout] = {}
    size = leaves[0].size
    if pltriton is not None:
        # Whole blocks: Triton's loads and stores are not masked at the end of an array.
        whole = pl.cdiv(size, LANES) * LANES
        options = dict(compiler_params=pltriton.CompilerParams(num_warps=LANES // 32, num_stages=1))
        found["cuda"] = Layout((whole,), (LANES,), pl.BlockSpec(), options)
    narrow = all(jnp.result_type(value).itemsize <= 4 for value in (*leaves, *taken.given))
    # The trajectory is held twice: one block of it is written to memory while the next is made.
    row = 2 * 4 * len(leaves) * num_rows * LANES
    fitting = [rows for rows in TPU_ROWS if rows * row <= TPU_MEMORY]
    if narrow and fitting and taken.names <= EVERYWHERE:
        whole = pl.cdiv(size, LANES * fitting[0]) * fitting[0]
        scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
        options = dict(compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)))
        found["tpu"] = Layout((whole, LANES), (fitting[0], LANES), scalars, options)
    return found


def _grid(knots: np.ndarray, kept: np.ndarray, num_substeps: int) -> Grid:
    times = np.asarray(knots, jnp.result_type(float))
    # Divided here, since division on a GPU is not exact.
    steps = np.diff(times) / times.dtype.type(num_substeps)
    rows = np.searchsorted(kept, np.arange(1, knots.size)).astype(np.int32)
    return Grid(times[:-1], steps, rows, kept.size, num_substeps, bool(kept[0] == 0))


def _launch(
    step: Step, taken: Pointwise, grid: Grid, layout: Layout, leaves: Sequence, given: Sequence
) -> list[Array]:
    inputs = (*leaves, *given)
    size, total = leaves[0].size, int(np.prod(layout.whole))

    def enter(value):
        value = value.astype(_type_inside(value.dtype))
        if value.ndim == 0:
            return value[None]
        fill = jnp.broadcast_to(value[-1:], (total - size,))
        return jnp.concatenate([value, fill]).reshape(layout.whole)

    def kernel(times, steps, rows, *refs):
        values = [
            (ref[...] if value.ndim else ref[0]).astype(value.dtype)
            for ref, value in zip(refs, inputs, strict=False)
        ]
        start, rest = values[: len(leaves)], values[len(leaves) :]
        advance = functools.partial(_advance, step, taken, grid.num_substeps, rest)

        def to_next(gap, y: list) -> list:
            y = advance(times[gap], steps[gap], y)
            save(rows[gap], y)
            return y

        def save(row, y: list) -> None:
            for output, leaf in zip(refs[len(inputs) :], y, strict=True):
                output[row] = leaf

        if grid.saves_start:
            save(0, start)
        _repeat(to_next, grid.times.size, start)

    found = pl.pallas_call(
        kernel,
        grid=(layout.programs,),
        in_specs=[layout.scalars] * 3
        + [layout.spec() if value.ndim else layout.scalars for value in inputs],
        out_specs=[layout.spec(grid.num_rows)] * len(leaves),
        out_shape=[
            jax.ShapeDtypeStruct((grid.num_rows, *layout.whole), leaf.dtype) for leaf in leaves
        ],
        name="solve",
        **layout.options,
    )(*map(jnp.asarray, (grid.times, grid.steps, grid.rows)), *map(enter, inputs))
    return [leaf.reshape(grid.num_rows, total)[:, :size] for leaf in found]


def _advance(step: Step, taken: Pointwise, count: int, given: list, t, h, y: list) -> list:
    return _repeat(lambda i, y: step(taken, t + i.astype(h.dtype) * h, h, y, given), count, y)


def _repeat(body: Callable, count: int, y: list) -> list:
    return jax.lax.fori_loop(np.int32(0), np.int32(count), body, y)


def _type_inside(dtype) -> Any:
    """Kernels load numbers of four or eight bytes."""
    if dtype.itemsize >= 4:
        return dtype
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32
