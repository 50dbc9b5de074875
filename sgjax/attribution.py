"""Back-to-simulation attribution: a prediction explained by the simulations nearest to it.

Distances are Euclidean between the predictor's features, each divided by its sd over simulations.
The search draws simulations afresh and keeps the best, so its memory does not grow with their
number; what is kept is their numbers, and a neighbour is drawn again from its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from sgjax._types import Theta
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import SimulationStream


class Nearest(NamedTuple):
    """The k nearest simulations of each query, the nearest first."""

    distances: Float[Array, "queries k"]
    ids: UInt32[Array, "queries k 2"]


class Neighbours(eqx.Module):
    """The simulations nearest to one series, drawn again from their numbers."""

    ids: tuple[int, ...]
    """64-bit numbers in the stream."""
    distances: Float[np.ndarray, " k"]
    mechanisms: tuple[str, ...]
    theta: Theta
    """Parameters of the study; NaN where the neighbour's mechanism lacks one."""
    latent: Float[np.ndarray, "k times channels"]
    values: Float[np.ndarray, "k times channels"]

    def table(self) -> list[dict]:
        """One row a neighbour: `id`, `distance`, `mechanism`, `theta` of its own mechanism."""
        return [
            {
                "id": number,
                "distance": float(distance),
                "mechanism": mechanism,
                "theta": {
                    name: np.asarray(values[row], np.float64).tolist()
                    for name, values in self.theta.items()
                    if not np.isnan(values[row]).any()
                },
            }
            for row, (number, distance, mechanism) in enumerate(
                zip(self.ids, self.distances, self.mechanisms, strict=True)
            )
        ]


def attribute(
    predictor: Predictor,
    stream: SimulationStream,
    real: Posterior | np.ndarray | Array,
    k: int = 20,
    num_simulations: int = 100_000,
) -> Neighbours:
    """The `k` of `num_simulations` simulations that the predictor deems most like the data.

    `real` is a series or the `Posterior` the predictor gave for it (needed where the study has
    known quantities). `num_simulations` is rounded up to whole batches of the stream.
    """
    posterior = real if isinstance(real, Posterior) else predictor(real)
    found = nearest(predictor, stream, posterior.features[None], k, num_simulations)
    return neighbours(stream, found, 0)


def neighbours(stream: SimulationStream, found: Nearest, query: int) -> Neighbours:
    """Draws the neighbours of one query again."""
    words = np.asarray(found.ids[query])
    drawn = stream.simulate(words)
    names = list(stream.study.mechanisms)
    mechanisms = tuple(names[index] for index in np.asarray(drawn.mechanism))
    theta = {}
    for name, values in drawn.theta.items():
        has = np.array([name in stream.study.priors[mechanism] for mechanism in mechanisms])
        values = np.asarray(values)
        theta[name] = np.where(has.reshape(-1, *([1] * (values.ndim - 1))), values, np.nan)
    return Neighbours(
        tuple((int(high) << 32) + int(low) for high, low in words),
        np.asarray(found.distances[query]),
        mechanisms,
        theta,
        np.asarray(drawn.latent),
        np.where(np.asarray(drawn.observed.mask), np.asarray(drawn.observed.values), np.nan),
    )


def nearest(
    predictor: Predictor,
    stream: SimulationStream,
    queries: Float[Array, "queries features"],
    k: int,
    num_simulations: int,
) -> Nearest:
    """The streaming search, for many queries at once. Simulations that are not valid never enter.

    Raises `ValueError` where k exceeds the number of simulations.
    """
    steps = -(-num_simulations // stream.batch_size)
    if not 1 <= k <= steps * stream.batch_size:
        raise ValueError(f"k = {k} must lie between 1 and the {num_simulations} simulations.")
    scale = feature_scale(predictor, stream)
    size = queries.shape[0]
    empty = Nearest(jnp.full((size, k), jnp.inf), jnp.zeros((size, k, 2), jnp.uint32))
    return _search(predictor, stream, steps)(queries / scale, scale, empty)


def feature_scale(predictor: Predictor, stream: SimulationStream) -> Float[Array, " features"]:
    """The sd of each feature over the first batch of the stream; 1 where a feature is constant."""

    @jax.jit
    def measure() -> Array:
        batch = stream.batch(0)
        features, _ = predictor.predict(batch.example.inputs)
        weights = batch.valid[:, None] / jnp.maximum(jnp.sum(batch.valid), 1)
        mean = jnp.sum(weights * features, axis=0)
        return jnp.sqrt(jnp.sum(weights * (features - mean) ** 2, axis=0))

    sd = measure()
    return jnp.where(sd > 1e-6 * jnp.max(sd), sd, 1.0)


def _search(
    predictor: Predictor, stream: SimulationStream, steps: int
) -> Callable[[Array, Array, Nearest], Nearest]:
    def visit(queries: Array, scale: Array, best: Nearest, step: Int[Array, ""]) -> Nearest:
        batch = stream.batch(step)
        features, _ = predictor.predict(batch.example.inputs)
        distances = _distances(queries, features / scale)
        distances = jnp.where(batch.valid, distances, jnp.inf)
        k = best.distances.shape[1]
        fresh, places = jax.lax.top_k(-distances, min(k, stream.batch_size))
        ids = stream.ids(step)[places]
        together = jnp.concatenate([best.distances, -fresh], axis=1)
        _, order = jax.lax.top_k(-together, k)
        ids = jnp.concatenate([best.ids, ids], axis=1)
        return Nearest(
            jnp.take_along_axis(together, order, axis=1),
            jnp.take_along_axis(ids, order[..., None], axis=1),
        )

    @jax.jit
    def search(queries: Array, scale: Array, best: Nearest) -> Nearest:
        def body(best: Nearest, step: Int[Array, ""]) -> tuple[Nearest, None]:
            return visit(queries, scale, best, step), None

        return jax.lax.scan(body, best, jnp.arange(steps, dtype=jnp.int32))[0]

    return search


def _distances(queries: Array, features: Array) -> Float[Array, "queries batch"]:
    # |a - b|^2 by one matrix product; rounding may leave a hair below zero.
    squares = jnp.sum(queries**2, axis=1)[:, None] + jnp.sum(features**2, axis=1)[None]
    cross = jnp.matmul(queries, features.T, precision="highest")
    return jnp.sqrt(jnp.maximum(squares - 2 * cross, 0.0))
