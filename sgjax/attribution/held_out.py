"""Held-out simulations as queries whose truth is known: `search -> queries, simulations`."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sgjax.attribution.clouds import coordinates_of
from sgjax.attribution.coordinates import Coordinates
from sgjax.attribution.scores import PriorRanks
from sgjax.attribution.search import Search
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

PRIOR_DRAWS = 4096


class HeldOut(NamedTuple):
    """Valid simulations that are not among those searched, so that they cannot find themselves."""

    queries: Float[Array, "count size"]
    inputs: Inputs
    mechanism: Int[np.ndarray, " count"]
    values: Float[np.ndarray, "count coordinates"]
    """Their parameters, as coordinates."""
    ranks: PriorRanks


def held_out(
    search: Search, stream: SimulationStream, coordinates: Coordinates, count: int
) -> HeldOut:
    """The first `count` valid simulations of the held-out root of a stream."""
    queries = search.held_out(count)
    source, drawn, start, found = stream.held_out(), [], 0, 0
    while found < count:
        part = source.take(count, start)
        (rows,) = np.nonzero(np.asarray(part.valid))
        kept = (part.example.inputs, part.theta, part.mechanism)
        drawn.append(jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], kept))
        start, found = start + count, found + rows.size
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *drawn)
    inputs, theta, mechanism = joined
    values = coordinates_of(coordinates, theta, mechanism)
    return HeldOut(queries, inputs, mechanism, values, prior_ranks(stream, coordinates))


def prior_ranks(stream: SimulationStream, coordinates: Coordinates) -> PriorRanks:
    """Ranks within the prior, from held-out draws; over the mechanisms that have a parameter."""
    numbers = np.arange(PRIOR_DRAWS, dtype=np.uint64)
    ids = np.stack([numbers >> np.uint64(32), numbers], axis=1)
    theta, mechanism = stream.held_out().parameters(ids)
    drawn = coordinates_of(coordinates, theta, np.asarray(mechanism))
    present = coordinates.present[np.asarray(mechanism)]
    return PriorRanks([drawn[present[:, index], index] for index in range(coordinates.size)])
