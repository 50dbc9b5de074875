"""One series beside its nearest simulations: `posterior -> distance, p-value`."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgjax.attribution import Neighbours, SimulationIndex, Source, neighbours
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import SimulationStream


class Mismatch(eqx.Module):
    r"""How unusual one series is among simulated ones.

    `distance` is the mean distance to its nearest simulations; `p_value` the share of held-out
    simulations, each searched in the same way, that lie at least as far from theirs,
    $(1 + \#\{d_i \ge d\}) / (1 + n)$: exact where the data are exchangeable with the simulations.
    A small one says that the data are unlike every simulation, so that estimates extrapolate; a
    large one does not say that the mechanism is right.
    """

    distance: float
    p_value: float
    held_out_distances: np.ndarray
    neighbours: Neighbours

    @property
    def verdict(self) -> str:
        """In plain words."""
        if self.p_value < 0.01:
            return "The data lie outside the simulated world: do not trust the estimates."
        if self.p_value < 0.05:
            return "The data are unusual among the simulations: read the estimates with care."
        return "The data are not unusual among the simulations."


def check_nearest(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    real: Posterior | np.ndarray | Array,
    *,
    k: int = 20,
    num_simulations: int = 100_000,
    num_held_out: int = 999,
) -> Mismatch:
    """Ranks the distance of the data to their nearest simulations among held-out simulations.

    In place of the stream an index may be given, which decides the number searched by itself.
    """
    posterior = real if isinstance(real, Posterior) else predictor(real)
    source = Source(predictor, stream, num_simulations)
    blocks = source.search.blocks
    queries = jnp.concatenate([blocks.queries(posterior), blocks.held_out(num_held_out)])
    found = source.nearest(queries, k)
    distances = np.asarray(found.distances, np.float64).mean(axis=1)
    exceeding = int(np.sum(distances[1:] >= distances[0]))
    p_value = (1 + exceeding) / distances.size
    nearest = neighbours(source.stream, found, 0)
    return Mismatch(float(distances[0]), p_value, distances[1:], nearest)
