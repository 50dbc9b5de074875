"""A kept index of simulations: `predictor, stream -> their points`, never their courses."""

import dataclasses
import functools
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from sgjax.attribution import stored
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
from sgjax.attribution.memory import check_memory
from sgjax.attribution.nearest import Rows, encode, nearest_rows, padded
from sgjax.attribution.neighbours import Nearest
from sgjax.attribution.progress import Telling, in_launches
from sgjax.attribution.search import Search
from sgjax.attribution.space import Space
from sgjax.devices import fetched, is_first, on_first, several_processes
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}

CANDIDATES = 4
"""How many times k are taken from an index of low precision to be ranked again."""

CHUNK = 2**18
"""How many simulations are written to or read from a file at once."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The points of the simulations from `start` to `stop`; the devices lead all but the unit.

    Row `r` of device `j` is the simulation `base + (r // share) * batch + j * share + r % share`.
    """

    rows: Rows
    start: int
    stop: int
    base: int
    batch: int
    share: int

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The simulations' numbers, from rows of shape (devices, ...)."""
        rows = places.astype(np.uint64)
        share, batch = np.uint64(self.share), np.uint64(self.batch)
        device = np.arange(len(rows), dtype=np.uint64).reshape(-1, *([1] * (rows.ndim - 1)))
        return np.uint64(self.base) + rows // share * batch + device * share + rows % share


class SimulationIndex:
    """The first simulations of a stream as points of a space, to be searched again and again.

    Kept on the devices of the stream's mesh, `size * itemsize + 4` bytes a simulation: numbers are
    consecutive and need not be stored, courses are drawn again. Made by `SimulationIndex.build` or
    `load`; `dtype` is one of "float32" (exact), "bfloat16" and "int8" (each coordinate in 127ths of
    its largest value among the first simulations), whose `recall` is measured, not promised.
    """

    def __init__(
        self, predictor: Predictor, stream: SimulationStream, blocks: Blocks, dtype: str = "float32"
    ):
        if dtype not in DTYPES:
            raise ValueError(f"There is no dtype {dtype!r}; choose one of {list(DTYPES)}.")
        self.predictor, self.stream, self.dtype = predictor, stream, dtype
        self.num_simulations = 0
        self._blocks, self._parts = blocks, []

    @classmethod
    def build(
        cls,
        predictor: Predictor,
        stream: SimulationStream,
        num_simulations: int,
        *,
        space: str | Space = "features",
        scaling: str = "sd",
        dtype: str = "float32",
        progress: Telling = False,
    ) -> "SimulationIndex":
        """Draws and embeds the first `num_simulations` simulations, on the devices throughout.

        Raises `ValueError` where they do not fit the memory, before anything is drawn.
        """
        index = cls(
            predictor, stream, Blocks(predictor, stream, num_simulations, space, scaling), dtype
        )
        index.add(num_simulations, progress=progress)
        return index

    @property
    def space(self) -> Space:
        """The space that distances are measured in."""
        return self._blocks.space

    def __len__(self) -> int:
        return self.num_simulations

    def add(self, num_simulations: int, *, progress: Telling = False) -> None:
        """Goes on where the index ends, by `num_simulations` more.

        Interrupted, it leaves the index as it was. Raises `ValueError` where memory, or a finite
        world, does not hold so many.
        """
        start, stop = self.num_simulations, self.num_simulations + num_simulations
        limit = self.stream.num_simulations
        if num_simulations < 1 or (limit is not None and stop > limit):
            raise ValueError(
                f"Cannot add {num_simulations} simulations to {start}; the world has "
                f"{'no end' if limit is None else limit}."
            )
        blocks = self._blocks
        first, last = start // blocks.batch, -(-stop // blocks.batch)
        rows = self._empty(padded((last - first) * blocks.share))
        bounds = np.array([divmod(start, blocks.batch), divmod(stop, blocks.batch)], np.uint32)

        def launch(rows: Rows, done: int, count: int) -> Rows:
            raw, valid = blocks.raw(first + done, count)
            steps = np.array([first + done, done, count], np.uint32)
            return _write(rows, self.space, raw, valid, steps, bounds, mesh=blocks.mesh)

        rows = in_launches(
            launch, rows, last - first, blocks.together, (num_simulations, progress, "indexing")
        )
        base = first * blocks.batch
        self._parts.append(Part(rows, start, stop, base, blocks.batch, blocks.share))
        self.num_simulations = stop

    def search(
        self, queries: Queries, k: int, *, rerank: bool = False, approximate: bool = False
    ) -> Nearest:
        """The k nearest simulations of each query: posteriors, or raw coordinates.

        Exact for what is stored unless `approximate` (see `Search.nearest`). `rerank` takes 4 k
        candidates, draws them again and ranks them in full precision. Raises `ValueError` where
        there are fewer than k valid simulations, or a query is not finite.
        """
        if not 1 <= k <= self.num_simulations:
            raise ValueError(f"k = {k} must lie between 1 and the {self.num_simulations} indexed.")
        points = self.space.points(self._blocks.queries(queries))
        wanted = min(CANDIDATES * k, self.num_simulations) if rerank else k
        distances, numbers = self._find(points, wanted, approximate)
        check_found(distances, k, self.num_simulations)
        if rerank:
            distances, numbers = self._rank_again(points, distances, numbers, k)
        return Nearest(jnp.asarray(distances), jnp.asarray(as_words(numbers)))

    def recall(self, queries: Queries, k: int, *, rerank: bool = False) -> float:
        """The share of the k nearest that a search finds, against a search through the stream.

        It draws every simulation of the index again.
        """
        search = Search(self.predictor, self.stream, self.num_simulations, self.space)
        raw = self._blocks.queries(queries)
        truth, found = search.nearest(raw, k), self.search(raw, k, rerank=rerank)
        pairs = zip(_as_sets(truth), _as_sets(found), strict=True)
        return float(np.mean([len(true & got) / k for true, got in pairs]))

    def check_predictor(self, predictor: Predictor) -> None:
        """Raises `ValueError` where the index was made with another predictor."""
        if predictor.network is not self.predictor.network:
            blocks = Blocks(predictor, self.stream, 1, self.space, self.space.scaling)
            stored.check_probe(self.space, self._blocks.probe(), blocks.probe())

    def save(self, folder: str | Path) -> None:
        """Keeps the index in a new folder, whole or not at all.

        Of several processes, all call this and process 0 writes. Raises `ValueError` where the
        folder exists.
        """
        folder, several = Path(folder), several_processes(self._blocks.mesh)
        if several and on_first(folder.exists):
            raise ValueError(stored.taken(folder))
        description = stored.describe(self._blocks, self.dtype, self.num_simulations)
        writes = is_first() or not several
        new = stored.new_files(folder, description, self.space) if writes else nullcontext()
        with new as files:
            for part in self._parts:
                step = max(1, CHUNK // part.batch) * part.share
                for start in range(0, part.rows.squares.shape[1], step):
                    pieces = (part.rows.values, part.rows.squares)
                    values, squares = fetched([p[:, start : start + step] for p in pieces])
                    if files is None:
                        continue
                    places = np.broadcast_to(
                        np.arange(start, start + values.shape[1]), squares.shape
                    )
                    numbers = part.numbers(places)
                    inside = (numbers >= part.start) & (numbers < part.stop)
                    files.values[numbers[inside]] = stored.as_bytes(values)[inside]
                    files.squares[numbers[inside]] = squares[inside]
        if several:
            on_first(lambda: None)  # nobody reads before all is written

    @classmethod
    def load(
        cls, folder: str | Path, predictor: Predictor, stream: SimulationStream
    ) -> "SimulationIndex":
        """Reads a kept index, onto any number of devices.

        Raises `ValueError` where there is none, and where study, key or predictor are not those it
        was made with, naming what differs.
        """
        files = stored.open_files(Path(folder))
        total, dtype = len(files.squares), files.description["dtype"]
        blocks = Blocks(predictor, stream, total, files.space, files.space.scaling)
        stored.check_same(files, blocks)
        index = cls(predictor, stream, blocks, dtype)
        capacity = padded(-(-total // blocks.devices))
        rows = index._empty(capacity)
        step = min(capacity, max(1, CHUNK // blocks.devices))
        for start in range(0, capacity, step):
            start = min(start, capacity - step)  # one shape to compile
            numbers = np.arange(blocks.devices)[:, None] * capacity + start + np.arange(step)
            held = np.minimum(numbers, total - 1)
            squares = np.where(numbers < total, files.squares[held], np.float32(np.inf))
            values = files.values[held].view(DTYPES[dtype])
            rows = _put(rows, values, squares, np.int32(start), mesh=blocks.mesh)
        index._parts.append(Part(rows, 0, total, 0, capacity * blocks.devices, capacity))
        index.num_simulations = total
        return index

    def _empty(self, capacity: int) -> Rows:
        """Rows that hold nothing, `capacity` on each device, if there is memory for them."""
        blocks, dtype = self._blocks, DTYPES[self.dtype]
        bytes_each = self.space.size * dtype.itemsize + 4
        check_memory(capacity, bytes_each, self.dtype, blocks.mesh)
        values, squares = _nothing(blocks.devices, capacity, self.space.size, dtype, blocks.mesh)
        unit = self.space.largest / 127 if self.dtype == "int8" else jnp.ones(self.space.size)
        return Rows(values, squares, unit)

    def _find(self, points: Array, k: int, approximate: bool) -> tuple[np.ndarray, np.ndarray]:
        mesh, distances, numbers = self._blocks.mesh, [], []
        for part in self._parts:
            near, places = _search(part.rows, points, mesh=mesh, k=k, approximate=approximate)
            distances += list(np.asarray(near))
            numbers += list(part.numbers(np.asarray(places)))
        return merge_found(np.concatenate(distances, axis=1), np.concatenate(numbers, axis=1), k)

    def _rank_again(
        self, points: Array, distances: np.ndarray, numbers: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        found = np.isfinite(distances)
        every, place = np.unique(np.where(found, numbers, numbers[0, 0]), return_inverse=True)
        drawn = jnp.asarray(self._blocks.drawn_again(as_words(every)))
        again = np.asarray(self.space.points(drawn))
        gaps = again[place.reshape(numbers.shape)] - np.asarray(points)[:, None]
        exact = np.where(found, np.sqrt(np.sum(gaps**2, axis=-1)), np.inf)
        return merge_found(exact, numbers, k)


ROWS_SPLIT = Rows(SPLIT, SPLIT, WHOLE)  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _nothing(
    devices: int, capacity: int, size: int, dtype: np.dtype, mesh: Mesh | None
) -> tuple[Array, Array]:
    values = jnp.zeros((devices, capacity, size), dtype), jnp.full((devices, capacity), jnp.inf)
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, SPLIT))


@functools.partial(jax.jit, static_argnames=("mesh", "k", "approximate"))
def _search(
    rows: Rows, points: Array, *, mesh: Mesh | None, k: int, approximate: bool
) -> tuple[Array, Array]:
    """Distances and rows of the k nearest of each device, which leads."""

    def find(rows: Rows, points: Array) -> tuple[Array, Array]:
        own = rows._replace(values=_first(rows.values), squares=_first(rows.squares))
        return jax.tree.map(lambda leaf: leaf[None], nearest_rows(points, own, k, approximate))

    return whole(mesh, shared(mesh, find, (ROWS_SPLIT, WHOLE), SPLIT)(rows, points))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _write(
    rows: Rows,
    space: Space,
    raw: Array,
    valid: Array,
    steps: Array,
    bounds: Array,
    *,
    mesh: Mesh | None,
) -> Rows:
    """Rows with a segment in its place; `steps`: its first block, its place, how many blocks."""

    def put(rows: Rows, space: Space, raw: Array, valid: Array, steps: Array) -> Rows:
        def block(index: Array, rows: Rows) -> Rows:
            values = rows.values
            fresh = encode(space.points(raw[index]), valid[index], rows.unit, values.dtype)
            start = ((steps[1] + index) * np.uint32(raw.shape[1])).astype(jnp.int32)
            return _replaced(rows, fresh.values[None], fresh.squares[None], start)

        return jax.lax.fori_loop(jnp.uint32(0), steps[2], block, rows)

    step = steps[0] + jnp.arange(raw.shape[0], dtype=jnp.uint32)[:, None]
    place = jnp.arange(raw.shape[1], dtype=jnp.uint32)
    before = (step == bounds[0, 0]) & (place < bounds[0, 1])
    inside = (step < bounds[1, 0]) | ((step == bounds[1, 0]) & (place < bounds[1, 1]))
    put = shared(mesh, put, (ROWS_SPLIT, WHOLE, STACKED, STACKED, WHOLE), ROWS_SPLIT)
    return put(rows, space, raw, valid & inside & ~before, steps)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _put(rows: Rows, values: Array, squares: Array, start: Array, *, mesh: Mesh | None) -> Rows:
    """Rows with a chunk of a file in its place."""
    given = (ROWS_SPLIT, SPLIT, SPLIT, WHOLE)
    return shared(mesh, _replaced, given, ROWS_SPLIT)(rows, values, squares, start)


def _first(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[1:])


def _replaced(rows: Rows, values: Array, squares: Array, start: Array) -> Rows:
    replace = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
    return Rows(replace(rows.values, values), replace(rows.squares, squares), rows.unit)


def _as_sets(found: Nearest) -> list[set[tuple[int, ...]]]:
    return [set(map(tuple, row.tolist())) for row in np.asarray(found.ids)]
