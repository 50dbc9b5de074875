r"""Statistics of groups of series, and their null: `points, groups -> one number a group`.

The $n$ real series and $m$ simulated ones are pooled, and every statistic $T$ is computed for the
real group and for $B$ groups of $n$ drawn at random from the pool. Were the real series simulations
of the same kind, their group would be one of these like any other, so that
$p = (1 + \#\{b: T_b \ge T\}) / (1 + B)$ exceeds no level more often than it may, whatever $n$, $m$
and $B$ (Hemerik and Goeman, 2018).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sgjax._types import PRNGKey

Groups = Int[Array, "groups members"]
"""Places in the pool of the members of each group; the first group is the real one, which are the
first points of the pool."""

Statistics = Float[Array, " groups"]

GATHERED = 64
"""Larger groups sum over their kernel by a matrix product, smaller ones entry by entry."""


def draw_groups(key: PRNGKey, size: int, points: int, number: int) -> Groups:
    """The first `size` points, and `number` random groups of as many, without replacement.

    Groups of one are all points, each once, whatever `number`: their rank leaves nothing to chance.
    """
    if size == 1:
        return jnp.arange(points, dtype=jnp.int32)[:, None]
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    others = [random.choice(points, size, replace=False, shuffle=False) for _ in range(number)]
    return jnp.asarray(np.stack([np.arange(size), *others]), jnp.int32)


def p_value(statistics: Float[np.ndarray, " groups"]) -> float:
    r"""$(1 + \#\{b: T_b \ge T_0\}) / (1 + B)$ of the first among all."""
    values = np.asarray(statistics)
    return float(np.mean(values >= values[0]))


def combined(components: Float[np.ndarray, "components groups"]) -> Float[np.ndarray, " groups"]:
    r"""Several statistics as one: $-\min_c$ of each group's p-value among all groups.

    Of equal ones that with the component farthest out, in standard deviations of the groups, is the
    larger. Groups that are alike stay alike, so the null of the combination is that of the groups
    again and pays for the choice among components by itself (Tippett, 1931).
    """
    values = np.asarray(components, float)
    count = values.shape[1]
    exceeding = [count - np.searchsorted(np.sort(row), row) for row in values]
    spread = np.maximum(values.std(axis=1, keepdims=True), 1e-30)
    farthest = np.max((values - values.mean(axis=1, keepdims=True)) / spread, axis=0)
    place = np.searchsorted(np.sort(farthest), farthest) / (count + 1)
    return (place - np.min(exceeding, axis=0)) / count


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
    n, m = groups.shape[1], len(points) - groups.shape[1]
    rows = jnp.sum(kernel, axis=1)
    touching = jnp.sum(rows[groups], axis=1)
    if n <= GATHERED:
        inside = lambda members: jnp.sum(kernel[members[:, None], members])
        within = jax.lax.map(inside, groups, batch_size=64)
    else:
        members = jax.vmap(lambda group: jnp.zeros(len(points)).at[group].set(1))(groups)
        within = jnp.sum(jnp.matmul(members, kernel, precision="highest") * members, axis=1)
    across = touching - within
    other = jnp.sum(rows) - touching - across
    return within / max(n * (n - 1), 1) + other / (m * (m - 1)) - 2 * across / (n * m)


@jax.jit
def transport_statistics(
    points: Float[Array, "points size"], directions: Float[Array, "lines size"], groups: Groups
) -> Statistics:
    r"""$W_1$ of each group from the rest of the pool along lines, mean over the lines.

    $$W_1 = \int |F_a(t) - F_b(t)| \, dt = \frac{N}{N - n} \int_0^1 |Q_a(u) - Q(u)| \, du$$

    with $Q_a$ the quantile function of the group and $Q$ that of all $N$ points. Random lines give
    the sliced distance, axes the mean over coordinates. Sources: Vallender (1974); Bonneel et al.
    (2015).
    """
    total, n = len(points), groups.shape[1]
    edges = jnp.arange(n + 1) * (total / n)

    def along(direction: Array) -> Statistics:
        projected = jnp.matmul(points, direction, precision="highest")
        order = jnp.argsort(projected)
        rank = jnp.zeros(total, jnp.int32).at[order].set(jnp.arange(total, dtype=jnp.int32))
        values = projected[order]
        sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(values)])

        def summed(place: Array) -> Array:
            """The integral of the sorted values up to a place between them."""
            whole = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, total - 1)
            return sums[whole] + (place - whole) * values[whole]

        places = jnp.sort(rank[groups], axis=1)
        low, high = edges[:-1], edges[1:]
        middle = jnp.clip(places, low, high)
        lines = values[places] * (2 * middle - low - high)
        return jnp.sum(lines + summed(low) + summed(high) - 2 * summed(middle), axis=1)

    return jnp.mean(jax.lax.map(along, directions), axis=0) / (total - n)


@jax.jit
def mean_statistics(scores: Float[Array, " points"], groups: Groups) -> Statistics:
    """The mean of a number that each point has, over each group."""
    return jnp.mean(scores[groups], axis=1)
