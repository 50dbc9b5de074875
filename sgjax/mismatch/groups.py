r"""Statistics of groups of series, and their null: `points, groups -> one number a group`.

The $n$ real series and $m$ simulated ones are pooled, and every statistic $T$ is computed for the
real group and for $B$ groups of $n$ drawn at random from the pool. Were the real series simulations
of the same kind, their group would be one of these like any other, so that
$p = (1 + \#\{b: T_b \ge T\}) / (1 + B)$ exceeds no level more often than it may, whatever $n$, $m$
and $B$ (Hemerik and Goeman, 2018).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgjax._types import PRNGKey

Groups = Bool[Array, "groups points"]
"""Which points of the pool are in each group; the first group is the real one, the first points."""

Statistics = Float[Array, " groups"]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw_groups(key: PRNGKey, size: int, points: int, number: int) -> Groups:
    """The first `size` points, and `number` random groups of as many."""
    first = jnp.arange(points) < size
    keys = jax.random.split(key, number)
    others = jax.lax.map(lambda key: jax.random.permutation(key, first), keys, batch_size=64)
    return jnp.concatenate([first[None], others])


def p_value(statistics: Float[np.ndarray, " groups"]) -> float:
    r"""$(1 + \#\{b: T_b \ge T_0\}) / (1 + B)$ of the first among all."""
    values = np.asarray(statistics)
    return float(np.mean(values >= values[0]))


def combined(components: Float[np.ndarray, "components groups"]) -> Float[np.ndarray, " groups"]:
    r"""Several statistics as one: $-\min_c$ of each group's p-value among all groups.

    Groups that are alike stay alike, so the null of the combination is that of the groups again
    and pays for the choice among components by itself (the minimum of p-values, Tippett, 1931).
    """
    values = np.asarray(components)
    order = np.sort(values, axis=1)
    exceeding = np.stack(
        [row.size - np.searchsorted(row, own) for row, own in zip(order, values, strict=True)]
    )
    return -exceeding.min(axis=0) / values.shape[1]


@jax.jit
def kernel_statistics(
    points: Float[Array, "points size"], groups: Groups, bandwidth: Float[Array, ""]
) -> Statistics:
    r"""Unbiased squared maximum mean discrepancy of each group from the rest of the pool.

    $$\frac{\sum_{i \ne j} k(a_i, a_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(b_i, b_j)}{m (m - 1)}
    - \frac{2 \sum_{ij} k(a_i, b_j)}{n m}, \quad k(x, y) = e^{-|x - y|^2 / 2 s^2}$$

    without its first term, which is empty, where $n = 1$. Source: Gretton et al. (2012).
    """
    squares = jnp.sum(points**2, axis=1)
    product = jnp.matmul(points, points.T, precision="highest")
    distances = jnp.maximum(squares[:, None] + squares - 2 * product, 0)
    kernel = jnp.exp(-distances / (2 * bandwidth**2)) * (1 - jnp.eye(len(points)))
    members = groups.astype(kernel.dtype)
    n = jnp.sum(members[0])
    m = len(points) - n
    touching_points = jnp.matmul(members, kernel, precision="highest")
    within = jnp.sum(touching_points * members, axis=1)
    touching = jnp.sum(touching_points, axis=1)
    across = touching - within
    other = jnp.sum(kernel) - touching - across
    own = within / jnp.maximum(n * (n - 1), 1)
    return own + other / (m * (m - 1)) - 2 * across / (n * m)


@jax.jit
def transport_statistics(
    points: Float[Array, "points size"], directions: Float[Array, "lines size"], groups: Groups
) -> Statistics:
    r"""$W_1$ of each group from the rest of the pool along lines, mean over the lines.

    $$W_1 = \int |F_a(t) - F_b(t)| \, dt$$

    Random lines give the sliced distance, the axes the mean over coordinates. Sources: Vallender
    (1974); Bonneel et al. (2015).
    """
    members = groups.astype(jnp.float32).T
    n = jnp.sum(members[:, 0])
    m = len(points) - n

    def along(direction: Array) -> Statistics:
        projected = jnp.matmul(points, direction, precision="highest")
        order = jnp.argsort(projected)
        gaps = jnp.diff(projected[order])
        inside = jnp.cumsum(members[order], axis=0)[:-1]
        passed = jnp.arange(1, len(points), dtype=jnp.float32)[:, None]
        return jnp.abs(inside / n - (passed - inside) / m).T @ gaps

    return jnp.mean(jax.lax.map(along, directions), axis=0)


@jax.jit
def mean_statistics(scores: Float[Array, " points"], groups: Groups) -> Statistics:
    """The mean of a number that each point has, over each group."""
    members = groups.astype(jnp.float32)
    return jnp.matmul(members, scores, precision="highest") / jnp.sum(members[0])
