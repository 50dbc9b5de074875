r"""The exact nearest rows of a table: `queries, rows -> distances, places`.

Scores come from one matrix product a block, $|x|^2 - 2 q \cdot x = |x - q|^2 - |q|^2$, of which
only the least of every `GROUP` rows is kept: one of the k nearest rows can lie in none but the k
groups of least minima, so that most rows are never looked at again and the matrix of queries times
rows is never made (group pruning; cf. Chern et al., 2022, TPU-KNN). Distances of the rows in those
groups are then computed from differences, so that a row equal to the query is at exactly 0.

The product rounds, by as much as the distances themselves where very many rows lie close to a
query. Twice as many groups as needed are kept, and a query for which even they may not suffice, by
a bound on the rounding, is searched again by differences. The answer is therefore exact.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

T = TypeVar("T", bound=tuple[Array, ...])

GROUP = 16
"""Rows of which only the least score is kept."""

SPARE = 16
"""Groups kept beyond twice k."""

FEW = 2
"""So many queries are searched by differences at once: that costs no more than the product."""

TOGETHER = 16
"""Queries whose groups are looked into at once."""

MOST_MINIMA = 2**24
"""Least scores kept at once: 64 MB."""


class Rows(NamedTuple):
    """A table of points, in float32, bfloat16 or int8: `values * unit`.

    `squares` are the squared lengths of the points as stored; infinite for rows that hold nothing.
    """

    values: Num[Array, "rows size"]
    squares: Float[Array, " rows"]
    unit: Float[Array, " size"]

    def decode(self, values: Num[Array, "*rows size"]) -> Float[Array, "*rows size"]:
        """Points from what is stored of them."""
        return values if values.dtype == jnp.float32 else values.astype(jnp.float32) * self.unit

    @property
    def num_rows(self) -> int:
        """How many rows, those that hold nothing included."""
        return self.squares.size

    def block(self, start: Array, size: int) -> tuple[Array, Array]:
        """Points of consecutive rows and their squared lengths, infinite where there is none."""
        values = jax.lax.dynamic_slice_in_dim(self.values, start, size)
        return self.decode(values), jax.lax.dynamic_slice_in_dim(self.squares, start, size)

    def members(self, groups: Array) -> tuple[Array, Array]:
        """Points of all rows of some groups, and which of them there are."""
        exists = jnp.isfinite(self.squares.reshape(-1, GROUP)[groups]).ravel()
        return self.decode(_members(self.values, groups)), exists


class Fresh(NamedTuple):
    """A table used once, like `Rows`: points are made a block at a time, while in the cache."""

    raw: Float[Array, "rows size"]
    valid: Bool[Array, " rows"]
    points: Callable[[Array], Array]
    """Points from raw coordinates, each number by itself."""

    @property
    def num_rows(self) -> int:
        return self.valid.size

    def block(self, start: Array, size: int) -> tuple[Array, Array]:
        valid = jax.lax.dynamic_slice_in_dim(self.valid, start, size)
        points = self.points(jax.lax.dynamic_slice_in_dim(self.raw, start, size))
        points = jnp.where(valid[:, None], points, 0)
        return points, jnp.where(valid, _squared_lengths(points), jnp.inf)

    def members(self, groups: Array) -> tuple[Array, Array]:
        valid = self.valid.reshape(-1, GROUP)[groups].ravel()
        return jnp.where(valid[:, None], self.points(_members(self.raw, groups)), 0), valid


Table = Rows | Fresh


def _members(values: Array, groups: Array) -> Array:
    size = values.shape[1]
    return values.reshape(-1, GROUP * size)[groups].reshape(-1, size)


def encode(
    points: Float[Array, "rows size"],
    valid: Bool[Array, " rows"],
    unit: Float[Array, " size"],
    dtype: np.dtype,
) -> Rows:
    """A table of the points; numbers beyond 127 units are cut off in int8."""
    points = jnp.where(valid[:, None], points, 0)
    scaled = points if dtype == jnp.float32 else points / unit
    if dtype == jnp.int8:
        scaled = jnp.clip(jnp.round(scaled), -127, 127)
    rows = Rows(scaled.astype(dtype), jnp.zeros(len(points)), unit)
    squares = _squared_lengths(rows.decode(rows.values))
    return rows._replace(squares=jnp.where(valid, squares, jnp.inf))


def block_rows(rows: int) -> int:
    """How many rows are scored at once, of a table of so many: they stay in the cache."""
    most = 2**12 if jax.default_backend() == "cpu" else 2**17
    return min(most, -(-rows // GROUP) * GROUP)


def padded(rows: int) -> int:
    """The least number of rows that a table of `rows` must have: whole blocks."""
    return -(-rows // block_rows(rows)) * block_rows(rows)


def nearest_rows(
    queries: Float[Array, "queries size"], rows: Table, k: int, approximate: bool = False
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """The k nearest rows of each query, the nearest first; of equal ones the first.

    The number of rows must be `padded`. Distances are infinite where there are fewer than k rows.
    `approximate` leaves out some of the nearest on accelerators (`lax.approx_min_k`).
    """
    total = rows.num_rows // block_rows(rows.num_rows)
    minima_of_block = queries.shape[0] * block_rows(rows.num_rows) // GROUP
    pieces = -(-total // max(1, MOST_MINIMA // minima_of_block))
    length = -(-total // pieces)

    def piece(index: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        found = _nearest_of_blocks(queries, rows, index * length, length, k, approximate)
        return keep_least(best, found)

    shape = (queries.shape[0], k)
    best = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    squares, places = jax.lax.fori_loop(0, pieces, piece, best)
    return jnp.sqrt(squares), places


def keep_least(best: T, found: T) -> T:
    """Merges two lists by their first arrays, keeping the length of `best`, which wins if equal."""
    together = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), best, found)
    _, order = jax.lax.top_k(-together[0], best[0].shape[1])
    return jax.tree.map(lambda a: jnp.take_along_axis(a, order, axis=1), together)


def _nearest_of_blocks(
    queries: Array, rows: Table, first: Array, blocks: int, k: int, approximate: bool
) -> tuple[Array, Array]:
    """Squared distances and places of the k nearest among some blocks."""

    def by_difference(query: Array) -> tuple[Array, Array]:
        minima = _group_minima(_difference(query), rows, first, blocks)[:, 0]
        squares, places, _ = _settle(query, minima, rows, first, k, False)
        return squares, places

    if queries.shape[0] <= FEW and not approximate:
        return jax.lax.map(by_difference, queries)
    minima = _group_minima(_product(queries), rows, first, blocks).T

    def settle(one: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        return _settle(one[0], one[1], rows, first, k, approximate)

    squares, places, left_out = jax.lax.map(settle, (queries, minima), batch_size=TOGETHER)
    if approximate:
        return squares, places
    # A row left out, whose product says at least `left_out`, may be nearer by the rounding of the
    # product, of which this is a bound; only rows no longer than |q| + d matter.
    lengths = jnp.sqrt(jnp.sum(queries**2, axis=1))
    longest = (lengths + jnp.sqrt(squares[:, -1])) ** 2
    rounding = (queries.shape[1] + 4) * jnp.finfo(jnp.float32).eps * longest
    certain = left_out + lengths**2 - rounding > squares[:, -1]

    def again(one: tuple[Array, Array, tuple[Array, Array]]) -> tuple[Array, Array]:
        query, certain, found = one
        return jax.lax.cond(certain, lambda: found, lambda: by_difference(query))

    return jax.lax.map(again, (queries, certain, (squares, places)))


def _product(queries: Array) -> Callable[[Array, Array], Array]:
    twice = -2 * queries.T
    return lambda points, squares: jnp.matmul(points, twice, precision="highest") + squares[:, None]


def _difference(query: Array) -> Callable[[Array, Array], Array]:
    def score(points: Array, squares: Array) -> Array:
        found = _squared_lengths(points - query)
        return jnp.where(jnp.isinf(squares), jnp.inf, found)[:, None]

    return score


def _squared_lengths(points: Float[Array, "rows size"]) -> Float[Array, " rows"]:
    # XLA's sums along short rows on a CPU cost several times as much as this product.
    return jnp.matmul(points**2, jnp.ones(points.shape[1]), precision="highest")


def _group_minima(
    score: Callable[[Array, Array], Array], rows: Table, first: Array, blocks: int
) -> Float[Array, "groups queries"]:
    """The least score of each group of rows; infinite beyond the end."""
    size = block_rows(rows.num_rows)
    last = rows.num_rows // size

    def block(_: None, index: Array) -> tuple[None, Array]:
        start = jnp.minimum(index, last - 1) * size
        points, squares = rows.block(start, size)
        scores = score(points, jnp.where(index < last, squares, jnp.inf))
        return None, jnp.min(scores.reshape(size // GROUP, GROUP, -1), axis=1)

    _, minima = jax.lax.scan(block, None, first + jnp.arange(blocks, dtype=jnp.int32))
    return minima.reshape(-1, minima.shape[-1])


def _settle(
    query: Array, minima: Array, rows: Table, first: Array, k: int, approximate: bool
) -> tuple[Array, Array, Array]:
    """The k nearest rows of the best groups by differences, and the least minimum left out."""
    kept = min(2 * k + SPARE, minima.size)
    least, groups = _least(minima, kept, approximate)
    # All of what top_k gives is used: cut short, XLA would sort the whole vector instead. No group
    # left out has a lesser minimum than the last one kept.
    left_out = least[-1] if kept < minima.size else jnp.asarray(jnp.inf)
    # In the order of places, so that of equal rows the first is found first.
    groups = jnp.sort(jnp.where(jnp.isinf(least), minima.size, groups))
    exists = jnp.repeat(groups < minima.size, GROUP)
    offset = first * (block_rows(rows.num_rows) // GROUP)
    groups = jnp.minimum(groups + offset, rows.num_rows // GROUP - 1)
    places = (groups[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)).reshape(-1)
    points, held = rows.members(groups)
    squares = jnp.where(exists & held, _squared_lengths(points - query), jnp.inf)
    short = max(0, k - squares.size)
    squares = jnp.pad(squares, (0, short), constant_values=jnp.inf)
    negative, order = jax.lax.top_k(-squares, k)
    return -negative, jnp.pad(places, (0, short))[order], left_out


def _least(values: Array, k: int, approximate: bool = False) -> tuple[Array, Array]:
    """The k least of a vector and where they are: exact, by the least of groups of groups."""
    if approximate and jax.default_backend() != "cpu":
        return jax.lax.approx_min_k(values, k)
    count = values.size // GROUP
    if values.size % GROUP or count < 4 * k:
        negative, places = jax.lax.top_k(-values, k)
        return -negative, places
    _, groups = _least(jnp.min(values.reshape(count, GROUP), axis=1), k)
    places = (groups[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)).reshape(-1)
    negative, order = jax.lax.top_k(-values[places], k)
    return -negative, places[order]
