"""The one door: `predictor, stream, real -> Mismatch` of one series, `MismatchReport` of many."""

from typing import Any, overload

import numpy as np
from jaxtyping import Array

from sgjax.attribution import SimulationIndex
from sgjax.mismatch.many import report_mismatch
from sgjax.mismatch.nearest import Mismatch, check_nearest
from sgjax.mismatch.report import MismatchReport
from sgjax.observations import Observed
from sgjax.predictors import Posterior, Predictor
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

Simulated = SimulationStream | SimulationIndex


@overload
def check_mismatch(
    predictor: Predictor, stream: Simulated, real: Posterior, **options: Any
) -> Mismatch: ...


@overload
def check_mismatch(
    predictor: Predictor, stream: Simulated, real: Inputs | list | tuple, **options: Any
) -> MismatchReport: ...


@overload
def check_mismatch(
    predictor: Predictor, stream: Simulated, real: Observed | np.ndarray | Array, **options: Any
) -> Mismatch | MismatchReport: ...


def check_mismatch(
    predictor: Predictor, stream: Simulated, real: Any, **options: Any
) -> Mismatch | MismatchReport:
    """How unlike the simulations real data are: of one series by its nearest, of many by tests.

    One series, what a predictor takes or its posterior, gives a `Mismatch`: the place of its
    distance to the nearest simulations among those of held-out ones; options as in `check_nearest`.
    Many series, an array `(series, times, channels)`, a list of series or of posteriors, give a
    `MismatchReport`; options as in `report_mismatch`, which takes a list of one series too. In
    place of the stream an index may be given.

    Raises `ValueError` where shapes do not fit, values are not finite, or an index is that of
    another predictor.
    """
    if _are_many(real):
        return report_mismatch(predictor, stream, real, **options)
    return check_nearest(predictor, stream, real, **options)


def _are_many(real: Any) -> bool:
    if isinstance(real, Posterior):
        return False
    if isinstance(real, Inputs):
        return True
    if isinstance(real, Observed):
        return real.values.ndim == 3
    if isinstance(real, list | tuple):
        return any(isinstance(one, Posterior | Observed) or np.ndim(one) > 0 for one in real)
    return np.ndim(real) == 3
