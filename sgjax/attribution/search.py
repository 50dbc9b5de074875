"""The search through a stream: `points of data -> the nearest simulations`.

The search draws simulations afresh and keeps the best, so its memory does not grow with their
number; what is kept is their numbers, and a neighbour is drawn again from its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from sgjax.attribution.blocks import (
    SPLIT,
    STACKED,
    WHOLE,
    Blocks,
    Queries,
    as_words,
    check_found,
    merge_found,
    shared,
    whole,
)
from sgjax.attribution.nearest import Fresh, keep_least, nearest_rows, padded
from sgjax.attribution.neighbours import Nearest
from sgjax.attribution.progress import Telling, in_launches
from sgjax.attribution.space import Space
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream

Best = tuple[Array, Array, Array]
"""Of each device: distances, the steps of their simulations, and places in the device's share."""


class Search:
    """A search through the first `num_simulations` simulations of a stream, without an index.

    `space` and `scaling` as in `Space`, or a `Space` already measured. One compiled program draws,
    embeds and compares; simulations that are not valid never enter.
    """

    def __init__(
        self,
        predictor: Predictor,
        stream: SimulationStream,
        num_simulations: int,
        space: str | Space = "features",
        scaling: str = "sd",
    ):
        if stream.num_simulations is not None:
            num_simulations = min(num_simulations, stream.num_simulations)
        self.num_simulations = num_simulations
        self.blocks = Blocks(predictor, stream, num_simulations, space, scaling)

    @property
    def space(self) -> Space:
        """The space that distances are measured in."""
        return self.blocks.space

    def held_out(self, count: int) -> Float[Array, "count size"]:
        """Raw coordinates of `count` valid simulations that training never sees."""
        return self.blocks.held_out(count)

    def nearest(
        self, queries: Queries, k: int, *, approximate: bool = False, progress: Telling = False
    ) -> Nearest:
        """The k nearest of each query: posteriors, or raw coordinates as `held_out` gives them.

        Exact unless `approximate`, which on accelerators trades a few per cent of the neighbours
        for speed. Raises `ValueError` where there are fewer valid simulations.
        """
        if not 1 <= k <= self.num_simulations:
            raise ValueError(f"k = {k} must lie between 1 and the {self.num_simulations} searched.")
        blocks = self.blocks
        points = self.space.points(blocks.queries(queries))
        limit = np.array(divmod(self.num_simulations, blocks.batch), np.uint32)

        def launch(best: Best, first: int, count: int) -> Best:
            raw, valid = blocks.raw(first, count)
            given = (self.space, points, raw, valid, np.uint32(first), limit)
            return _keep(best, *given, mesh=blocks.mesh, approximate=approximate)

        best = in_launches(
            launch,
            self._nothing(len(points), k),
            -(-self.num_simulations // blocks.batch),
            blocks.together,
            (self.num_simulations, progress, "searching"),
        )
        distances, steps, places = (np.asarray(leaf) for leaf in whole(blocks.mesh, best))
        numbers = steps.astype(np.uint64) * np.uint64(blocks.batch)
        numbers += (np.arange(blocks.devices) * blocks.share).astype(np.uint64)[:, None, None]
        numbers += places.astype(np.uint64)
        across = lambda leaf: np.concatenate(list(leaf), axis=1)
        distances, numbers = merge_found(across(distances), across(numbers), k)
        check_found(distances, k, self.num_simulations)
        return Nearest(jnp.asarray(distances), jnp.asarray(as_words(numbers)))

    def _nothing(self, count: int, k: int) -> Best:
        shape = (self.blocks.devices, count, k)
        best = (np.full(shape, np.inf, np.float32), *(np.zeros((2, *shape), np.uint32)))
        if self.blocks.mesh is None:
            return jax.device_put(best)
        return jax.device_put(best, NamedSharding(self.blocks.mesh, SPLIT))


# Compiled once for all searches of the same shapes.
@functools.partial(jax.jit, static_argnames=("mesh", "approximate"), donate_argnums=0)
def _keep(
    best: Best,
    space: Space,
    points: Array,
    raw: Array,
    valid: Array,
    first: Array,
    limit: Array,
    *,
    mesh: Mesh | None,
    approximate: bool,
) -> Best:
    """The best of those known and of a segment that begins at block `first`."""
    step = first + jnp.arange(raw.shape[0], dtype=jnp.uint32)[:, None]
    place = jnp.arange(raw.shape[1], dtype=jnp.uint32)
    searched = (step < limit[0]) | ((step == limit[0]) & (place < limit[1]))
    given = (SPLIT, WHOLE, WHOLE, STACKED, STACKED, WHOLE)
    compare = shared(mesh, functools.partial(_keep_nearest, approximate), given, SPLIT)
    return compare(best, space, points, raw, valid & searched, first)


def _keep_nearest(
    approximate: bool,
    best: Best,
    space: Space,
    points: Array,
    raw: Float[Array, "steps share size"],
    valid: Bool[Array, "steps share"],
    first: Array,
) -> Best:
    """The best of those known and of a segment, on one device."""
    share, size = raw.shape[1:]
    raw, valid = raw.reshape(-1, size), valid.reshape(-1)
    missing = padded(len(raw)) - len(raw)
    raw, valid = jnp.pad(raw, ((0, missing), (0, 0))), jnp.pad(valid, (0, missing))
    # A rotation of other rows together may round differently, so it is done once and for all.
    if space.rotation is None:
        rows = Fresh(raw, valid, space.points)
    else:
        rows = Fresh(space.points(raw), valid, lambda points: points)
    known = tuple(leaf[0] for leaf in best)
    distances, rows_found = nearest_rows(points, rows, known[0].shape[1], approximate)
    rows_found = rows_found.astype(jnp.uint32)
    found = distances, first + rows_found // share, rows_found % share
    return jax.tree.map(lambda leaf: leaf[None], keep_least(known, found))
