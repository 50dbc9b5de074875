"""Fresh simulations that real series are held against: `series -> sample, statistics`."""

from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax.attribution import SimulationIndex, Space
from sgjax.attribution.progress import Telling
from sgjax.attribution.space import measure
from sgjax.mismatch.groups import (
    Groups,
    combined,
    kernel_statistics,
    mean_statistics,
    transport_statistics,
)
from sgjax.mismatch.views import Views, simulated_views, spaces_of, views_of
from sgjax.predictors import Predictor
from sgjax.priors import fold_name
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

MEASURED = 2048
"""Simulations that scales and bandwidths are measured from; they are in no group."""

LINES = 32
"""Random lines of the sliced distance."""

SCALINGS = {"features": "whitened", "inputs": "sd", "predictive": "sd"}
"""Of each space. Whitened, the embedding shows what it holds of the noise, in directions of little
variance, beside what it holds of the parameters."""

PRIMARY = "departure of the features"
"""The one test that is declared in advance: the kernel distance of the features and the distance to
the nearest simulations, large or small, as one statistic."""


class Sample(NamedTuple):
    """Series as points, real or simulated; one row a series."""

    points: dict[str, Float[Array, "series size"]]
    """By space, scaled."""
    distance: Float[Array, " series"]
    """The logarithm of the mean distance to the nearest simulations, among the features."""

    def rows(self, start: int, stop: int) -> "Sample":
        """Some of them."""
        return jax.tree.map(lambda leaf: leaf[start:stop], self)


class Pool:
    """Simulations apart from those of training, as points of every space.

    **Arguments:** `num_pool` simulations that groups are drawn from; `num_simulations` of the
    stream itself that are searched for the `k` nearest. Memory of a comparison grows with the
    square of `num_pool` and the real series together: 100 MB for 5,000.

    Raises `ValueError` where an index of another predictor is given.
    """

    def __init__(
        self,
        predictor: Predictor,
        stream: SimulationStream | SimulationIndex,
        *,
        num_pool: int = 4096,
        num_simulations: int = 20_000,
        k: int = 5,
        progress: Telling = False,
    ):
        if isinstance(stream, SimulationIndex):
            stream.check_predictor(predictor)
            stream = stream.stream
        if num_pool < 100:
            raise ValueError(f"`num_pool` {num_pool} must be 100 at least.")
        self.predictor, self.stream, self.k = predictor, stream, k
        drawn = simulated_views(predictor, stream.held_out(), MEASURED + num_pool, progress)
        first, views = (
            {kind: values[part] for kind, values in drawn.items()}
            for part in (slice(MEASURED), slice(MEASURED, None))
        )
        everything = np.ones(MEASURED, bool)
        self.spaces: dict[str, Space] = {
            kind: measure(kind, SCALINGS[kind], first[kind], everything)
            for kind in spaces_of(predictor.network)
        }
        self.bandwidths = {
            kind: _median_distance(space.points(jnp.asarray(first[kind])))
            for kind, space in self.spaces.items()
        }
        searched = min(num_simulations, stream.num_simulations or num_simulations)
        self._index = SimulationIndex.build(
            predictor, stream, searched, space=self.spaces["features"], progress=progress
        )
        self.simulated = self._sample(views)

    @property
    def size(self) -> int:
        """How many simulations groups are drawn from."""
        return self.simulated.distance.size

    @cached_property
    def lines(self) -> dict[str, Float[Array, "lines size"]]:
        """Lines of the transport distances: random ones of the features, axes of predictions."""
        size = self.spaces["features"].size
        key = fold_name(self.stream.key, "lines of mismatch")
        random = jax.random.normal(key, (LINES, size))
        lines = {"features": random / jnp.linalg.norm(random, axis=1, keepdims=True)}
        if "predictive" in self.spaces:
            lines["predictive"] = jnp.eye(self.spaces["predictive"].size)
        return lines

    def sample(self, real: Inputs) -> Sample:
        """Real series as points."""
        return self._sample(views_of(self.predictor, real))

    def _sample(self, views: Views) -> Sample:
        points = {
            kind: space.points(jnp.asarray(views[kind])) for kind, space in self.spaces.items()
        }
        found = self._index.search(views["features"], self.k)
        return Sample(points, jnp.log(jnp.mean(found.distances, axis=1)))

    def statistics(
        self, real: Sample, groups: Groups, only: tuple[str, ...] | None = None
    ) -> dict[str, Float[np.ndarray, " groups"]]:
        """Every statistic of every group, or only some, by name; larger is stranger."""
        pooled = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), real, self.simulated)
        wanted = lambda name: only is None or name in only
        found: dict[str, Array] = {}
        if wanted("nearest distance") or wanted(PRIMARY):
            found["nearest distance"] = mean_statistics(pooled.distance, groups)
        for kind in ("features", "inputs"):
            name = f"kernel distance, {kind}"
            if wanted(name) or (wanted(PRIMARY) and kind == "features"):
                given = (pooled.points[kind], groups, self.bandwidths[kind])
                found[name] = kernel_statistics(*given)
        for kind, lines in self.lines.items():
            if wanted(f"transport distance, {kind}"):
                given = (pooled.points[kind], lines, groups)
                found[f"transport distance, {kind}"] = transport_statistics(*given)
        table = {name: np.asarray(values, np.float64) for name, values in found.items()}
        if wanted(PRIMARY):
            near, kernel = table["nearest distance"], table["kernel distance, features"]
            table = {PRIMARY: combined(np.stack([kernel, near, -near]))} | table
        return {name: values for name, values in table.items() if wanted(name)}


def _median_distance(points: Float[Array, "points size"]) -> Float[Array, ""]:
    """Of pairs of different points."""
    half = len(points) // 2
    return jnp.median(jnp.linalg.norm(points[:half] - points[half : 2 * half], axis=1))
