"""Simulations as points of a space, block by block: `step -> raw coordinates, validity`."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Num, PyTree, UInt32

from sgjax._types import PRNGKey
from sgjax.attribution.space import Space, check_space, coordinates, measure
from sgjax.devices import AXIS, jit
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import BLOCK, SimulationStream, batches_ahead
from sgjax.tasks import Inputs

MEASURED = 4096
"""How many simulations, the first ones of the stream, the scale of a space is measured from."""

WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
"""How an array lies on the devices: all of it on each, or its leading axis shared out."""

Queries = Posterior | Sequence[Posterior] | np.ndarray | Array
"""What is searched for: posteriors of series, or raw coordinates, one row a query."""


class Blocks:
    """Blocks of a stream's simulations, embedded by a predictor.

    A number means the same simulation whatever the batch, so blocks may be wider than the batches
    of training, and a finite world is walked in order.
    """

    def __init__(
        self,
        predictor: Predictor,
        stream: SimulationStream,
        num_simulations: int,
        space: str | Space,
        scaling: str,
    ):
        if isinstance(space, Space):
            self.space, space, scaling = space, space.kind, space.scaling
        check_space(space, scaling)
        self.predictor, self.source, self.kind, self.scaling = predictor, stream, space, scaling
        self.mesh = stream.mesh
        self.devices = 1 if stream.mesh is None else stream.mesh.size
        size = stream.batch_size
        needed = -(-max(num_simulations, 1) // size)
        together = max(1, min(batches_ahead(stream), needed, 2**20 * self.devices // size))
        self.stream = SimulationStream(stream.study, stream.key, together * size, stream.mesh)
        self.batch = together * size
        self.share = self.batch // self.devices
        self._graph, self.state = nnx.split(predictor.network)

    def embed(self, state: PyTree, inputs: Inputs) -> Float[Array, "batch size"]:
        """Raw coordinates of many inputs; to be traced."""
        network = nnx.merge(self._graph, state)

        def one(inputs: Inputs) -> Array:
            return coordinates(self.kind, network, inputs, *network(inputs))

        return jax.vmap(one)(inputs)

    def block(
        self, state: PyTree, key: PRNGKey, step: Array
    ) -> tuple[Float[Array, "batch size"], Bool[Array, " batch"]]:
        """Raw coordinates of one block and which are valid; to be traced."""
        stream = SimulationStream(self.stream.study, key, self.batch, self.mesh)
        batch = stream.batch(step)
        # Otherwise XLA may draw the noise again for each of its uses.
        inputs, valid = jax.lax.optimization_barrier((batch.example.inputs, batch.valid))
        embed = self.shared(self.embed, (WHOLE, SPLIT), SPLIT)
        return embed(state, inputs), valid

    def shared(self, function: Callable, given: Any, made: Any) -> Callable:
        """The function on each device's own part of what it is given; splits as in `shard_map`."""
        if self.mesh is None:
            return function
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=given, out_specs=made, check_vma=False
        )

    def jit(self, function: Callable, **options: Any) -> Callable:
        """`jit` with results that every process holds whole."""
        if self.mesh is None:
            return jit(function, **options)
        return jit(function, out_shardings=NamedSharding(self.mesh, WHOLE), **options)

    @cached_property
    def _block(self) -> Callable:
        return self.jit(self.block)

    @cached_property
    def space(self) -> Space:
        """The space, measured from the first simulations."""
        raw, valid = self._first(self.source.key, MEASURED)
        return measure(self.kind, self.scaling, raw, valid)

    def probe(self) -> Float[np.ndarray, "probe size"]:
        """Raw coordinates of the first 8 simulations, 0 where one is not valid."""
        raw, valid = self._first(self.source.key, 8)
        return np.where(valid[:, None], raw, 0.0)

    def held_out(self, count: int) -> Float[Array, "count size"]:
        """Raw coordinates of `count` valid simulations that training never sees."""
        key, found, missing = self.source.held_out().key, [], count
        for step in range(2 * -(-count // self.batch)):
            raw, valid = jax.device_get(self._block(self.state, key, np.uint32(step)))
            found.append(raw[valid][:missing])
            missing -= len(found[-1])
            if not missing:
                return jnp.asarray(np.concatenate(found))
        raise ValueError("Most held-out simulations are not finite; check equations and priors.")

    def drawn_again(self, ids: UInt32[np.ndarray, "count 2"]) -> Float[np.ndarray, "count size"]:
        """Raw coordinates of any simulations, drawn again from their numbers."""
        inputs = self.source.simulate(ids).example.inputs
        padded = -(-len(ids) // BLOCK) * BLOCK
        inputs = jax.tree.map(lambda leaf: np.resize(leaf, (padded, *leaf.shape[1:])), inputs)
        pieces = [
            self._embed(self.state, jax.tree.map(lambda leaf, n=n: leaf[n : n + BLOCK], inputs))
            for n in range(0, padded, BLOCK)
        ]
        return np.concatenate([np.asarray(piece) for piece in pieces])[: len(ids)]

    @cached_property
    def _embed(self) -> Callable:
        return jit(self.embed)

    def queries(self, queries: Queries) -> Float[Array, "queries size"]:
        """Raw coordinates of what is searched for. Raises `ValueError` where they do not fit."""
        if isinstance(queries, Posterior):
            queries = [queries]
        if isinstance(queries, list | tuple) and queries and isinstance(queries[0], Posterior):
            network = self.predictor.network
            queries = jnp.stack(
                [coordinates(self.kind, network, p.inputs, p.features, p.blocks) for p in queries]
            )
        raw = jnp.asarray(np.asarray(queries), jnp.float32)
        if raw.ndim != 2 or not len(raw) or raw.shape[1] != self.space.size:
            raise ValueError(
                f"Queries have shape {raw.shape}; the space {self.kind!r} needs (queries, "
                f"{self.space.size})."
            )
        if not np.isfinite(np.asarray(raw)).all():
            raise ValueError("A query is not finite: it holds NaN or infinity; check the data.")
        return raw

    def _first(self, key: PRNGKey, count: int) -> tuple[np.ndarray, np.ndarray]:
        limit = self.source.num_simulations
        count = count if limit is None else min(count, limit)
        steps = range(-(-count // self.batch))
        blocks = [jax.device_get(self._block(self.state, key, np.uint32(step))) for step in steps]
        raw, valid = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
        return raw, valid


def as_words(numbers: np.ndarray) -> UInt32[np.ndarray, "*shape 2"]:
    """64-bit numbers as two words, high and low."""
    return np.stack([numbers >> np.uint64(32), numbers], axis=-1).astype(np.uint32)


def merge_found(
    distances: Num[np.ndarray, "queries found"], numbers: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of what devices and parts found; of equal ones the lowest number."""
    numbers = np.where(np.isinf(distances), np.iinfo(np.uint64).max, numbers)
    order = np.lexsort((numbers, distances), axis=-1)[:, :k]
    return (
        np.take_along_axis(distances, order, axis=1),
        np.take_along_axis(numbers, order, axis=1),
    )


def check_found(distances: np.ndarray, k: int, searched: int) -> None:
    """Raises `ValueError` where fewer than k simulations were found."""
    found = int(np.isfinite(distances).sum(axis=1).min())
    if found < k:
        raise ValueError(
            f"k = {k}, but only {found} of the {searched} simulations searched are finite; search "
            "more of them, or check the equations and priors."
        )
