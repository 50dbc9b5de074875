r"""A linearly implicit step for stiff systems: `field, t, h, y -> y after h, error`.

Rodas4 of Hairer and Wanner (1996): six stages, order 4 with an error estimate of order 3, stiffly
accurate and L-stable. A stage solves one linear system instead of iterating on a nonlinear one,

$$(I - h \gamma J)\, u_i = h \gamma f\Big(t + c_i h, y + \sum_{j<i} a_{ij} u_j\Big)
  + \gamma \sum_{j<i} C_{ij} u_j + h^2 \gamma\, d_i\, \partial_t f, \qquad
  J = \partial_y f(t, y),$$

so that all lanes do the same work, and the matrix is that of all six stages. The last stage is the
error estimate: it has gone through the matrix, which takes the stiff part out of its rounding.
Methods of order 5 have coefficients ten times as large, and in float32 they are less accurate.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from sgjax.solvers._base import depends

ELIMINATED = 12
"""Up to so many numbers a simulation, an elimination over lanes beats one library call a lane."""

# RODAS, coefficients for METH = 1; the sixth stage starts from the fifth and its result.
_GAMMA = 0.25
_NODES = (0.0, 0.386, 0.21, 0.63, 1.0, 1.0)
_DRIFTS = (0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0)
# fmt: off
_ROWS = (
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (1.544, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.9466785280815826, 0.2557011698983284, 0.0, 0.0, 0.0, 0.0),
    (3.314825187068521, 2.896124015972201, 0.9986419139977817, 0.0, 0.0, 0.0),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950, 0.0, 0.0),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950, 1.0, 0.0),
)
_COUPLINGS = (
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (-5.6688, 0.0, 0.0, 0.0, 0.0, 0.0),
    (-2.430093356833875, -0.2063599157091915, 0.0, 0.0, 0.0, 0.0),
    (-0.1073529058151375, -9.594562251023355, -20.47028614809616, 0.0, 0.0, 0.0),
    (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160, 0.0, 0.0),
    (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136,
     -6.058818238834054, 0.0),
)
# fmt: on


def rodas4(
    vector_field, t: Float[Array, " lanes"], h: Float[Array, " lanes"], state: PyTree, args: PyTree
) -> tuple[PyTree, PyTree]:
    """The state of every lane after its step `h`, and the error estimate; lanes lead every array.

    Where the matrix of a lane is singular or not finite, so are its numbers.
    """
    y, restored = _in_rows(state)
    rate = lambda t, y: _in_rows(vector_field(t, restored(y), args))[0].astype(y.dtype)
    inverted = inverse(_identity(y) - _GAMMA * h * _jacobian(lambda y: rate(t, y), y))
    drift = jnp.zeros_like(y)
    if depends(vector_field, (t, state, args))[0]:
        drift = h * jax.jvp(lambda t: rate(t, y), (t,), (jnp.ones_like(t),))[1]

    def stage(solutions: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        index, node, share, row, coupling = at
        point = y + _combined(row, solutions)
        right = h * (rate(t + node * h, point) + share * drift) + _combined(coupling, solutions)
        solution = jnp.sum(inverted * (_GAMMA * right), axis=1)
        return jax.lax.dynamic_update_index_in_dim(solutions, solution, index, 0), point

    count = len(_NODES)
    coefficients = [jnp.asarray(table, y.dtype) for table in (_NODES, _DRIFTS, _ROWS, _COUPLINGS)]
    # A loop, since compilers compute written-out stages again for every part that reads them.
    start = jnp.zeros((count, *y.shape), y.dtype)
    solutions, points = jax.lax.scan(stage, start, (jnp.arange(count), *coefficients))
    return restored(points[-1] + solutions[-1]), restored(solutions[-1])


def _combined(weights: Array, solutions: Array) -> Array:
    return jnp.sum(weights[:, None, None] * solutions, axis=0)


def _jacobian(rate: Callable[[Array], Array], y: Float[Array, "d lanes"]) -> Array:
    """How each rate depends on each number: an array `d d lanes`, one push-forward a column."""
    column = lambda direction: jax.jvp(rate, (y,), (jnp.broadcast_to(direction, y.shape),))[1]
    return jax.vmap(column, out_axes=1)(jnp.eye(len(y), dtype=y.dtype)[..., None])


def _identity(y: Float[Array, "d lanes"]) -> Array:
    return jnp.broadcast_to(jnp.eye(len(y), dtype=y.dtype)[..., None], (len(y), *y.shape))


def inverse(matrices: Float[Array, "d d lanes"]) -> Float[Array, "d d lanes"]:
    """The inverse of every lane's matrix, by Gauss-Jordan elimination with partial pivoting.

    The column of the pivot is always the first: done columns drop out on the left, as those of the
    inverse come in from the right, and done rows go to the end.
    """
    size = len(matrices)
    if size > ELIMINATED:
        return jnp.moveaxis(jnp.linalg.inv(jnp.moveaxis(matrices, 2, 0)), 0, 2)
    rows = jnp.arange(size)[:, None]

    def eliminate(table: Array, done: Array) -> tuple[Array, None]:
        sizes = jnp.where(rows < size - done, jnp.abs(table[:, 0]), -1.0)
        largest = jnp.min(jnp.where(sizes == jnp.max(sizes, axis=0), rows, size), axis=0)
        chosen = (rows == largest)[:, None]
        pivot = jnp.sum(jnp.where(chosen, table, 0.0), axis=0)
        pivot = pivot[1:] / pivot[0]
        # The first row takes the place of the pivot's.
        others = jnp.where(chosen, table[0], table)[1:]
        others = others[:, 1:] - others[:, :1] * pivot
        table = jnp.concatenate([others, pivot[None]])
        return jnp.pad(table, ((0, 0), (0, 1), (0, 0))), None

    table = jnp.concatenate([matrices, _identity(matrices[0])], axis=1)
    return jax.lax.scan(eliminate, table, jnp.arange(size))[0][:, :size]


def _in_rows(state: PyTree) -> tuple[Float[Array, "d lanes"], Callable[[Array], PyTree]]:
    """A row for each number of a simulation, and the way back."""
    leaves, structure = jax.tree.flatten(state)
    rows = [leaf.reshape(leaf.shape[0], -1).T for leaf in leaves]
    ends = list(itertools.accumulate(len(row) for row in rows))

    def restored(y: Array) -> PyTree:
        parts = [
            part.T.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(jnp.split(y, ends[:-1]), leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return jnp.concatenate(rows), restored
