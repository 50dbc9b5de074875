"""Many real series, or one, against groups of simulations: `predictor, stream, real -> report`."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from sgjax._types import PRNGKey
from sgjax.attribution import SimulationIndex
from sgjax.attribution.progress import Telling
from sgjax.diagnostics import holm
from sgjax.mismatch.classifier import TotalVariation, accuracy, log_odds, series_needed
from sgjax.mismatch.groups import draw_groups, mean_statistics, p_value
from sgjax.mismatch.pool import PRIMARY, Pool, Sample
from sgjax.mismatch.report import Divergence, MismatchReport
from sgjax.mismatch.views import Series, inputs_of
from sgjax.predictors import Predictor
from sgjax.priors import fold_name
from sgjax.stream import SimulationStream

FEWEST = 20
"""Real series that a classifier needs: half train it, half are held out."""

MOST = 10_000
"""Real series in one report; memory grows with their square."""

WORDS: dict[str, tuple[str, str]] = {
    PRIMARY: (
        "that the features of the series do not follow the simulated law",
        "what the network's features do not hold",
    ),
    "kernel distance, features": (
        "that the features do not follow the simulated law; near 0 where they do",
        "what the features do not hold, and rare or far-out series among many ordinary ones",
    ),
    "kernel distance, inputs": (
        "that the series do not follow the simulated law; near 0 where they do",
        "fine differences such as correlated noise, unless series are many",
    ),
    "transport distance, features": (
        "a shift of the features, in their standard deviations along random lines",
        "changes that leave each line as it was",
    ),
    "transport distance, predictive": (
        "that the predictions are spread otherwise, in their standard deviations",
        "all that leaves the predictions as they were, right or wrong",
    ),
    "nearest distance": (
        "that series lie far from every simulation, so that estimates extrapolate",
        "series that are too regular, or common where simulations are rare",
    ),
    "classifier, features": (
        "a total variation of the features of at least its lower limit",
        "what the features do not hold, and what so few series cannot teach a classifier",
    ),
    "classifier, inputs": (
        "a total variation of the series of at least its lower limit",
        "what so few series cannot teach a classifier",
    ),
}
"""Of each test, what it shows where its p-value is small, and what it cannot see."""


def report_mismatch(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    real: Series,
    known: Mapping[str, ArrayLike] | None = None,
    *,
    num_pool: int = 4096,
    num_simulations: int = 20_000,
    num_groups: int = 999,
    progress: Telling = False,
) -> MismatchReport:
    r"""Tests without labels whether real series are like the simulations, $n$ of them together.

    Every statistic of the $n$ series is ranked among those of random groups of $n$ out of them and
    `num_pool` fresh simulations, $p = (1 + \#\{b: T_b \ge T\}) / (1 + B)$, which is exact for any
    numbers where real series are exchangeable with simulations. Classifiers are trained on half of
    the series and judged on the other, from 20 series on.

    **Arguments:** `real`, many series as in `Series`; `known`, each known quantity once or for each
    series; `num_simulations`, searched for the nearest; `num_groups` B, of several series; an index
    gives its stream.

    Raises `ValueError` where shapes do not fit, values are not finite, series are none or more than
    10,000, or an index is that of another predictor.
    """
    inputs = inputs_of(predictor, real, known)
    count = len(inputs.values)
    if count > MOST:
        raise ValueError(f"There are {count:,} real series; give {MOST:,} at most.")
    if num_groups < 19:
        raise ValueError(f"`num_groups` {num_groups} must be 19 at least, for p-values of 5 %.")
    pool = Pool(
        predictor, stream, num_pool=num_pool, num_simulations=num_simulations, progress=progress
    )
    return pool_report(pool, pool.sample(inputs), num_groups)


def pool_report(pool: Pool, real: Sample, num_groups: int = 999) -> MismatchReport:
    """The report of series that are points of a pool's spaces already."""
    count = real.distance.size
    key = fold_name(pool.stream.key, "groups of mismatch")
    groups = draw_groups(key, count, count + pool.size, num_groups)
    tests, bounds, notes = pool.statistics(real, groups), [], []
    if count < FEWEST:
        notes.append(
            f"A classifier, and with it a lower limit of the total variation, needs {FEWEST} real "
            f"series; there are {count}. To show a total variation of 0.1 takes "
            f"{series_needed(0.1):,} at least."
        )
    else:
        for kind in ("features", "inputs"):
            odds = classifier(pool, real, fold_name(key, kind), num_groups, kind)
            tests[f"classifier, {kind}"], bound = odds
            bounds.append(bound)
    return MismatchReport(
        count, pool.size, len(groups) - 1, _divergences(tests), tuple(bounds), tuple(notes)
    )


def classifier(
    pool: Pool, real: Sample, key: PRNGKey, num_groups: int, space: str
) -> tuple[Float[np.ndarray, " groups"], TotalVariation]:
    """The mean probability of groups of held-out series to be real, and the lower limit.

    Both kinds are halved; the second halves train nothing.
    """
    points, simulated = real.points[space], pool.simulated.points[space]
    order = jax.random.permutation(key, len(points))
    half, middle = len(points) // 2, len(simulated) // 2
    taught, asked = points[order[:half]], points[order[half:]]
    labelled = jnp.concatenate([taught, simulated[:middle]])
    is_real = jnp.arange(len(labelled)) < half
    odds = log_odds(key, labelled, is_real, jnp.concatenate([asked, simulated[middle:]]))
    groups = draw_groups(jax.random.fold_in(key, 1), len(asked), odds.size, num_groups)
    right = accuracy(odds[: len(asked)], odds[len(asked) :])
    bound = TotalVariation(space, right, len(asked), odds.size - len(asked))
    return np.asarray(mean_statistics(jax.nn.sigmoid(odds), groups), np.float64), bound


def _divergences(tests: Mapping[str, Float[np.ndarray, " groups"]]) -> tuple[Divergence, ...]:
    """The primary test first, the others with their p-values after Holm."""
    others = [name for name in tests if name != PRIMARY]
    p_values = {name: p_value(values) for name, values in tests.items()}
    adjusted = dict(zip(others, holm([p_values[name] for name in others]), strict=True))
    adjusted[PRIMARY] = p_values[PRIMARY]
    return tuple(
        Divergence(
            name, float(tests[name][0]), tests[name][1:], p_values[name], float(adjusted[name]),
            *WORDS[name], primary=name == PRIMARY,
        )
        for name in (PRIMARY, *others)
    )  # fmt: skip
