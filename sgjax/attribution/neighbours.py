"""What a search finds: the numbers of the nearest simulations, and those drawn again."""

from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, UInt32

from sgjax._types import Theta
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


def neighbours(stream: SimulationStream, found: Nearest, query: int) -> Neighbours:
    """Draws the neighbours of one query again."""
    words = np.asarray(found.ids)[query]
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
        np.asarray(found.distances)[query],
        mechanisms,
        theta,
        np.asarray(drawn.latent),
        np.where(np.asarray(drawn.observed.mask), np.asarray(drawn.observed.values), np.nan),
    )
