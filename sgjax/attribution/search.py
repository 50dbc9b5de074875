"""The search through a stream: `points of data -> the nearest simulations`.

The search draws simulations afresh and keeps the best, so its memory does not grow with their
number; what is kept is their numbers, and a neighbour is drawn again from its own.
"""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from sgjax._types import PRNGKey
from sgjax.attribution.blocks import (
    SPLIT,
    WHOLE,
    Blocks,
    Queries,
    as_words,
    check_found,
    merge_found,
)
from sgjax.attribution.nearest import encode, keep_least, nearest_rows, padded
from sgjax.attribution.neighbours import Nearest
from sgjax.attribution.progress import Telling, in_launches
from sgjax.attribution.space import Space
from sgjax.devices import AXIS, jit
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream

SEGMENT = 2**16
"""How many simulations a device embeds before it compares them with the queries."""

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
        total = -(-max(num_simulations, 1) // self.blocks.batch)
        self._segments = -(-total // max(1, SEGMENT // self.blocks.share))
        self._together = -(-total // self._segments)

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
            given = (blocks.state, self.space, blocks.source.key, points, limit, approximate)
            return self._run(best, np.uint32(first), np.uint32(count), *given)

        best = in_launches(
            launch,
            self._nothing(len(points), k),
            self._segments,
            self.num_simulations,
            progress,
            "searching",
        )
        distances, steps, places = (np.asarray(leaf) for leaf in self._gather(best))
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

    @cached_property
    def _gather(self):
        return self.blocks.jit(lambda best: best)

    @cached_property
    def _run(self):
        blocks, together = self.blocks, self._together

        def run(
            best: Best,
            first: Array,
            count: Array,
            state: PyTree,
            space: Space,
            key: PRNGKey,
            points: Array,
            limit: Array,
            approximate: bool,
        ) -> Best:
            def block(_: None, step: Array) -> tuple[None, tuple[Array, Array]]:
                raw, valid = blocks.block(state, key, step)
                place = jnp.arange(blocks.batch, dtype=jnp.uint32)
                searched = (step < limit[0]) | ((step == limit[0]) & (place < limit[1]))
                return None, (raw, valid & searched)

            def keep(best: Best, space: Space, points: Array, raw: Array, valid: Array, start):
                return _keep(best, space, points, raw, valid, start, approximate)

            stacked = PartitionSpec(None, AXIS)
            compare = blocks.shared(keep, (SPLIT, WHOLE, WHOLE, stacked, stacked, WHOLE), SPLIT)

            def segment(index: Array, best: Best) -> Best:
                start = index * np.uint32(together)
                steps = start + jnp.arange(together, dtype=jnp.uint32)
                _, (raw, valid) = jax.lax.scan(block, None, steps)
                return compare(best, space, points, raw, valid, start)

            return jax.lax.fori_loop(first, first + count, segment, best)

        return jit(run, static_argnames="approximate", donate_argnums=0)


def _keep(
    best: Best,
    space: Space,
    points: Array,
    raw: Float[Array, "steps share size"],
    valid: Array,
    start: Array,
    approximate: bool,
) -> Best:
    """The best of those known and of a segment, on one device."""
    share, size = raw.shape[1:]
    raw, valid = raw.reshape(-1, size), valid.reshape(-1)
    missing = padded(len(raw)) - len(raw)
    raw, valid = jnp.pad(raw, ((0, missing), (0, 0))), jnp.pad(valid, (0, missing))
    rows = encode(space.points(raw), valid, jnp.ones(size), np.dtype(np.float32))
    known = tuple(leaf[0] for leaf in best)
    distances, rows_found = nearest_rows(points, rows, known[0].shape[1], approximate)
    rows_found = rows_found.astype(jnp.uint32)
    found = distances, start + rows_found // share, rows_found % share
    return jax.tree.map(lambda leaf: leaf[None], keep_least(known, found))
