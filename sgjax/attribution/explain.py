"""A prediction explained: `real data -> the simulations most like them`."""

import numpy as np
from jaxtyping import Array

from sgjax.attribution.index import SimulationIndex
from sgjax.attribution.neighbours import Neighbours, neighbours
from sgjax.attribution.progress import Telling
from sgjax.attribution.search import Search
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import SimulationStream


def attribute(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    real: Posterior | np.ndarray | Array,
    k: int = 20,
    num_simulations: int = 100_000,
    *,
    space: str = "features",
    scaling: str = "sd",
    progress: Telling = False,
) -> Neighbours:
    """The `k` of the first `num_simulations` simulations that are most like the data.

    `real` is a series or the `Posterior` the predictor gave for it (needed where the study has
    known quantities). In place of the stream a `SimulationIndex` may be given, which then decides
    number, space and scaling. A finite world is searched once, whatever `num_simulations` beyond
    its size.

    Raises `ValueError` where k exceeds the number of (valid) simulations, where the data are not
    finite, and where an index belongs to another predictor.
    """
    posterior = real if isinstance(real, Posterior) else predictor(real)
    if isinstance(stream, SimulationIndex):
        stream.check_predictor(predictor)
        return neighbours(stream.stream, stream.search(posterior, k), 0)
    search = Search(predictor, stream, num_simulations, space, scaling)
    return neighbours(stream, search.nearest(posterior, k, progress=progress), 0)
