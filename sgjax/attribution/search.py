"""The search through a stream: `features of data -> the nearest simulations`.

Distances are Euclidean between the predictor's features, each divided by its sd over simulations.
The search draws simulations afresh and keeps the best, so its memory does not grow with their
number; what is kept is their numbers, and a neighbour is drawn again from its own.
"""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from sgjax._types import PRNGKey
from sgjax.attribution.neighbours import Nearest, Neighbours, neighbours
from sgjax.devices import jit
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import SimulationStream

BLOCK = 2048
"""How many simulations a device searches at once, unless the stream's batches are larger."""


def attribute(
    predictor: Predictor,
    stream: SimulationStream,
    real: Posterior | np.ndarray | Array,
    k: int = 20,
    num_simulations: int = 100_000,
) -> Neighbours:
    """The `k` of the first `num_simulations` simulations that are most like the data.

    `real` is a series or the `Posterior` the predictor gave for it (needed where the study has
    known quantities). A finite world is searched once, whatever `num_simulations` beyond its size.

    Raises `ValueError` where k exceeds the number of simulations.
    """
    posterior = real if isinstance(real, Posterior) else predictor(real)
    found = Search(predictor, stream, num_simulations).nearest(posterior.features[None], k)
    return neighbours(stream, found, 0)


class Search:
    """A search through the first `num_simulations` simulations of a stream, block by block.

    One compiled program makes the features of a block, whichever root key it is drawn from;
    another keeps the nearest. Simulations that are not valid never enter.
    """

    def __init__(self, predictor: Predictor, stream: SimulationStream, num_simulations: int):
        if stream.num_simulations is not None:
            num_simulations = min(num_simulations, stream.num_simulations)
        self.num_simulations = num_simulations
        # A number means the same simulation whatever the batch, so blocks may be wider than those
        # of training, and a finite world is walked in order.
        size, devices = stream.batch_size, 1 if stream.mesh is None else stream.mesh.size
        batches = -(-min(max(num_simulations, 1), BLOCK * devices) // size)
        self.stream = SimulationStream(stream.study, stream.key, batches * size, stream.mesh)

        @jit
        def block(key: PRNGKey, step: UInt32[Array, ""]) -> tuple[Array, Array, Array]:
            blocks = SimulationStream(stream.study, key, self.stream.batch_size, stream.mesh)
            batch = blocks.batch(step)
            features, _ = predictor.predict(batch.example.inputs)
            return features, batch.valid, self.stream.ids(step)

        self._block = block

    @cached_property
    def scale(self) -> Float[Array, " features"]:
        """The sd of each feature over the first block; 1 where a feature is constant."""
        features, valid, _ = self._block(self.stream.key, np.uint32(0))
        return _scale(features, valid)

    def held_out(self, count: int) -> Float[Array, "count features"]:
        """Features of `count` valid simulations that training never sees."""
        key, found, missing = self.stream.held_out().key, [], count
        for step in range(2 * -(-count // self.stream.batch_size)):
            features, valid, _ = jax.device_get(self._block(key, np.uint32(step)))
            found.append(features[valid][:missing])
            missing -= len(found[-1])
            if not missing:
                return jnp.asarray(np.concatenate(found))
        raise ValueError("Most held-out simulations are not finite; check equations and priors.")

    def nearest(self, queries: Float[Array, "queries features"], k: int) -> Nearest:
        """The k nearest of each query. Raises `ValueError` where there are fewer simulations."""
        if not 1 <= k <= self.num_simulations:
            raise ValueError(f"k = {k} must lie between 1 and the {self.num_simulations} searched.")
        count, size = queries.shape[0], self.stream.batch_size
        best = Nearest(jnp.full((count, k), jnp.inf), jnp.zeros((count, k, 2), jnp.uint32))
        for start in range(0, self.num_simulations, size):
            features, valid, ids = self._block(self.stream.key, np.uint32(start // size))
            left = np.int32(min(size, self.num_simulations - start))
            best = _keep_nearest(best, queries, self.scale, features, valid, ids, left)
        return best


@jax.jit
def _scale(features: Array, valid: Array) -> Float[Array, " features"]:
    weights = valid[:, None] / jnp.maximum(jnp.sum(valid), 1)
    mean = jnp.sum(weights * features, axis=0)
    sd = jnp.sqrt(jnp.sum(weights * (features - mean) ** 2, axis=0))
    return jnp.where(sd > 1e-6 * jnp.max(sd), sd, 1.0)


@jax.jit
def _keep_nearest(
    best: Nearest,
    queries: Array,
    scale: Array,
    features: Array,
    valid: Array,
    ids: Array,
    left: Array,
) -> Nearest:
    """The best of those known and of the first `left` of a block."""
    size, k = features.shape[0], best.distances.shape[1]
    distances = _distances(queries / scale, features / scale)
    distances = jnp.where(valid & (jnp.arange(size) < left), distances, jnp.inf)
    fresh, places = jax.lax.top_k(-distances, min(k, size))
    together = jnp.concatenate([best.distances, -fresh], axis=1)
    _, order = jax.lax.top_k(-together, k)
    ids = jnp.concatenate([best.ids, ids[places]], axis=1)
    return Nearest(
        jnp.take_along_axis(together, order, axis=1),
        jnp.take_along_axis(ids, order[..., None], axis=1),
    )


def _distances(queries: Array, features: Array) -> Float[Array, "queries batch"]:
    # |a - b|^2 by one matrix product; rounding may leave a hair below zero.
    squares = jnp.sum(queries**2, axis=1)[:, None] + jnp.sum(features**2, axis=1)[None]
    cross = jnp.matmul(queries, features.T, precision="highest")
    return jnp.sqrt(jnp.maximum(squares - 2 * cross, 0.0))
