"""What is searched, a stream or an index, behind one door; and queries whose truth is known."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sgjax.attribution.blocks import Queries
from sgjax.attribution.coordinates import coordinates_of
from sgjax.attribution.index import SimulationIndex
from sgjax.attribution.neighbours import Nearest
from sgjax.attribution.progress import Telling
from sgjax.attribution.scores import PriorRanks
from sgjax.attribution.search import Search
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

PRIOR_DRAWS = 4096


class HeldOut(NamedTuple):
    """Valid simulations that are not among those searched, so that they cannot find themselves."""

    queries: Float[Array, "count size"]
    """As raw coordinates of the space."""
    inputs: Inputs
    mechanism: Int[np.ndarray, " count"]
    values: Float[np.ndarray, "count coordinates"]
    """Their parameters, as coordinates."""
    ranks: PriorRanks


class Source:
    """Simulations to be searched: the first of a stream, or those of an index.

    An index decides number, space and scaling by itself. Raises `ValueError` where it belongs to
    another predictor.
    """

    def __init__(
        self,
        predictor: Predictor,
        given: SimulationStream | SimulationIndex,
        num_simulations: int,
        space: str = "features",
        scaling: str = "sd",
    ):
        self.index = given if isinstance(given, SimulationIndex) else None
        if isinstance(given, SimulationIndex):
            given.check_predictor(predictor)
            self.stream, self.num_simulations = given.stream, len(given)
            self.search = Search(predictor, given.stream, len(given), given.space)
        else:
            self.stream = given
            self.search = Search(predictor, given, num_simulations, space, scaling)
            self.num_simulations = self.search.num_simulations
        self.coordinates = coordinates_of(self.stream.study)

    def nearest(self, queries: Queries, k: int, progress: Telling = False) -> Nearest:
        """The k nearest simulations of each query."""
        if self.index is not None:
            return self.index.search(queries, k)
        return self.search.nearest(queries, k, progress=progress)

    def held_out(self, count: int) -> HeldOut:
        """The first `count` valid simulations of the held-out root of the stream."""
        queries = self.search.held_out(count)
        source, drawn, start, found = self.stream.held_out(), [], 0, 0
        while found < count:
            part = source.take(count, start)
            (rows,) = np.nonzero(np.asarray(part.valid))
            kept = (part.example.inputs, part.theta, part.mechanism)
            drawn.append(jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], kept))
            start, found = start + count, found + rows.size
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *drawn)
        inputs, theta, mechanism = joined
        values = self.coordinates.of_all(theta, mechanism)
        return HeldOut(queries, inputs, mechanism, values, self.prior_ranks())

    def prior_ranks(self) -> PriorRanks:
        """Ranks within the prior, from held-out draws of the mechanisms that have a parameter."""
        numbers = np.arange(PRIOR_DRAWS, dtype=np.uint64)
        ids = np.stack([numbers >> np.uint64(32), numbers], axis=1)
        theta, mechanism = self.stream.held_out().parameters(ids)
        drawn = self.coordinates.of_all(theta, np.asarray(mechanism))
        present = self.coordinates.present[np.asarray(mechanism)]
        return PriorRanks(
            [drawn[present[:, index], index] for index in range(self.coordinates.size)]
        )
