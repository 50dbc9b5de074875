"""Simulations as points of a space, block by block: `step -> raw coordinates, validity`."""

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Num, PyTree, UInt32

from sgjax._types import PRNGKey
from sgjax.attribution.space import Space, check_space, coordinates, measure
from sgjax.devices import AXIS, jit
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import BLOCK, Same, SimulationStream, batches_ahead
from sgjax.tasks import Inputs

MEASURED = 4096
"""How many simulations, the first ones of the stream, the scale of a space is measured from."""

CPU_SEGMENT, ACCELERATOR_SEGMENT = 2**16, 2**20
"""How many simulations a device draws and embeds in one launch."""

WHOLE, SPLIT, STACKED = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
"""How an array lies on the devices: all of it on each, or its first or second axis shared out."""

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
        wide = max(1, min(batches_ahead(stream), needed, 2**20 * self.devices // size))
        self.batch = wide * size
        self.share = self.batch // self.devices
        segment = CPU_SEGMENT if jax.default_backend() == "cpu" else ACCELERATOR_SEGMENT
        self.together = max(1, min(-(-num_simulations // self.batch), segment // self.share))
        self._graph, self.state = nnx.split(predictor.network)

    def raw(
        self, first: int, count: int, key: PRNGKey | None = None
    ) -> tuple[Float[Array, "together batch size"], Bool[Array, "together batch"]]:
        """Raw coordinates of `count` blocks from block `first` on and which are valid; on devices.

        Of at most `together` blocks; beyond `count` nothing is valid.
        """
        key = self.source.key if key is None else key
        make = _maker(self._program)
        return make(self.state, key, np.uint32(first), np.uint32(count))

    @property
    def _program(self) -> "_Program":
        return _Program(
            Same(self.source.study), self.kind, self.batch, self.together, self.mesh, self._graph
        )

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
            raw, valid = self._fetch(step, 1, key)
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
        embed = _embedder(self.kind, self._graph)
        pieces = [
            embed(self.state, jax.tree.map(lambda leaf, n=n: leaf[n : n + BLOCK], inputs))
            for n in range(0, padded, BLOCK)
        ]
        return np.concatenate([np.asarray(piece) for piece in pieces])[: len(ids)]

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
        total = -(-count // self.batch)
        starts = range(0, total, self.together)
        pieces = [self._fetch(n, min(self.together, total - n), key) for n in starts]
        raw, valid = (np.concatenate(parts)[:count] for parts in zip(*pieces, strict=True))
        return raw, valid

    def _fetch(self, first: int, count: int, key: PRNGKey) -> tuple[np.ndarray, np.ndarray]:
        raw, valid = whole(self.mesh, self.raw(first, count, key))
        raw, valid = np.asarray(raw)[:count], np.asarray(valid)[:count]
        return raw.reshape(-1, raw.shape[-1]), valid.ravel()


class _Program(NamedTuple):
    """What decides the compiled program that draws and embeds."""

    same: Same
    kind: str
    batch: int
    together: int
    mesh: Mesh | None
    graph: Any


@functools.lru_cache(maxsize=8)
def _maker(program: _Program) -> Callable:
    """The one compiled program that simulates, for searches and indexes alike.

    A program that simulates takes seconds to compile; what follows it does not.
    """
    study, batch, mesh = program.same.study, program.batch, program.mesh
    embed = shared(mesh, _embedding(program.kind, program.graph), (WHOLE, SPLIT), SPLIT)

    def block(state: PyTree, key: PRNGKey, step: Array) -> tuple[Array, Array]:
        made = SimulationStream(study, key, batch, mesh).batch(step)
        # Otherwise XLA may draw the noise again for each of its uses.
        inputs, valid = jax.lax.optimization_barrier((made.example.inputs, made.valid))
        return embed(state, inputs), valid

    def make(state: PyTree, key: PRNGKey, first: Array, count: Array) -> tuple[Array, Array]:
        shapes = jax.eval_shape(block, state, key, first)

        def put(index: Array, held: tuple[Array, Array]) -> tuple[Array, Array]:
            fresh = block(state, key, first + index)
            return jax.tree.map(lambda old, new: old.at[index].set(new), held, fresh)

        empty = jax.tree.map(lambda x: jnp.zeros((program.together, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(jnp.uint32(0), count, put, empty)

    split = {} if mesh is None else {"out_shardings": NamedSharding(mesh, STACKED)}
    return jit(make, **split)


@functools.lru_cache(maxsize=8)
def _embedder(kind: str, graph: Any) -> Callable:
    return jit(_embedding(kind, graph))


def _embedding(kind: str, graph: Any) -> Callable[[PyTree, Inputs], Array]:
    """Raw coordinates of many inputs, from the variables of a network."""

    def embed(state: PyTree, inputs: Inputs) -> Float[Array, "batch size"]:
        network = nnx.merge(graph, state)

        def one(inputs: Inputs) -> Array:
            return coordinates(kind, network, inputs, *network(inputs))

        return jax.vmap(one)(inputs)

    return embed


def shared(mesh: Mesh | None, function: Callable, given: Any, made: Any) -> Callable:
    """The function on each device's own part of what it is given; splits as in `shard_map`."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)


@functools.partial(jax.jit, static_argnums=0)
def whole(mesh: Mesh | None, values: PyTree) -> PyTree:
    """The values, all of them on every device, so that every process can read them."""
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, WHOLE))


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
