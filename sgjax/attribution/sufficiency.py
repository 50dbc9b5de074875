r"""Whether a space attributes a parameter: is $\theta$ independent of the series given $h(x)$?

The cloud of a query's neighbours follows $p(\theta \mid h(x))$, which is calibrated whatever $h$
has lost: ranks of the truth are uniform even where $h$ is constant and every cloud is the prior.
What is lost shows elsewhere: the place of the truth within its cloud can then be told from the
series. So the normal score of that rank, and its square, are regressed on the series itself, over
held-out simulations; the share of their variance that is foretold out of fold is the *gain* that
the series still holds over the cloud, and permutations say whether it could be chance (cf. Zhao et
al., 2021, whose diagnostics of densities are conditional on the data as well).

Of a mechanism, what is regressed is whether it is the true one, less its share in the cloud.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax.attribution.choose_k import MECHANISM
from sgjax.attribution.clouds import Clouds, Method, draw_clouds, weigh
from sgjax.attribution.coordinates import in_blocks
from sgjax.attribution.index import SimulationIndex
from sgjax.attribution.progress import Telling
from sgjax.attribution.source import HeldOut, Source
from sgjax.attribution.weighting import effective, normalised
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

COMPONENTS = 30
"""Directions of the series, those of largest variance, that are looked at; and their squares."""

FOLDS = 5

SIGNIFICANT, NEGLIGIBLE = 0.01, 0.01

FEWEST = 10
"""Neighbours of its own mechanism that a simulation must have to be judged."""


@dataclasses.dataclass(frozen=True)
class Attributed:
    """What was found of one parameter, or of the mechanism."""

    name: str
    gain: float
    """The share of what the cloud leaves open that the series itself foretells."""
    p_value: float
    num_simulations: int
    tolerance: float

    @property
    def attributed(self) -> bool:
        """Whether no loss beyond the tolerance was found."""
        return self.gain < self.tolerance or self.p_value > SIGNIFICANT

    @property
    def verdict(self) -> str:
        """In plain words."""
        if self.p_value > SIGNIFICANT or self.gain < NEGLIGIBLE:
            return f"{self.name}: no loss found; the neighbours answer for it."
        if self.attributed:
            return (
                f"{self.name}: the neighbours answer for it, but for {self.gain:.0%} of what they "
                "leave open, which the series would still tell."
            )
        return (
            f"{self.name}: not attributed by this space. The series foretells {self.gain:.0%} of "
            "what the neighbours leave open: do not read their spread as a posterior. If more "
            "simulations do not help, train the predictor on this parameter too."
        )


@dataclasses.dataclass(frozen=True)
class Sufficiency:
    """What a space was found to attribute, by parameter, and `mechanism` where there are several.

    **What a pass certifies:** that on fresh simulations, regressions on the first `COMPONENTS`
    directions of the series and on their squares foretell less of the truth's place in its cloud
    than the tolerance. It does not certify what such regressions cannot see, nor anything of data
    unlike the simulations; nor that there are simulations enough, since the width that a cloud has
    because its neighbours are far says little of where in it the truth lies (`choose_k` compares
    methods and numbers by their scores). **What a failure says:** at this number of simulations and
    of neighbours the cloud is not the posterior, most often because the space has lost the
    parameter; where there were too few simulations, it goes away with more.
    """

    rows: dict[str, Attributed]

    def __getitem__(self, name: str) -> Attributed:
        if name not in self.rows:
            raise ValueError(f"{name!r} was not judged; choose one of {list(self.rows)}.")
        return self.rows[name]

    @property
    def verdict(self) -> str:
        """In plain words, a line each."""
        return "\n".join(row.verdict for row in self.rows.values())

    def table(self) -> list[dict]:
        """One row a parameter."""
        return [
            dataclasses.asdict(row) | {"attributed": row.attributed, "verdict": row.verdict}
            for row in self.rows.values()
        ]


def check_sufficiency(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    k: int,
    num_simulations: int = 100_000,
    *,
    method: Method = "kernel",
    num_held_out: int = 1000,
    num_permutations: int = 999,
    tolerance: float = 0.1,
    space: str = "features",
    scaling: str = "sd",
    progress: Telling = False,
) -> Sufficiency:
    """Judges for each parameter whether clouds of k neighbours answer for it.

    **Arguments:** as in `attribute_posterior`, and `tolerance`, the gain from which a parameter
    counts as not attributed: 0.1 means posterior sds 5 % too wide. Raises `ValueError` where hardly
    any simulation can be judged.
    """
    source = Source(predictor, stream, num_simulations, space, scaling)
    queries = source.held_out(num_held_out)
    found = source.nearest(queries.queries, k, progress)
    clouds = draw_clouds(predictor, source.stream, found, queries.inputs, method)
    return judge_clouds(
        predictor, clouds, queries, method, num_permutations=num_permutations, tolerance=tolerance
    )


def judge_clouds(
    predictor: Predictor,
    clouds: Clouds,
    queries: HeldOut,
    method: Method,
    *,
    num_permutations: int = 999,
    tolerance: float = 0.1,
) -> Sufficiency:
    """The same of clouds that have been found already."""
    weighted = weigh(clouds, method)
    coordinates = clouds.coordinates
    series = _series(predictor, queries.inputs)
    mine = clouds.mechanism == queries.mechanism[:, None]
    weights = normalised(weighted.weights, mine)
    counted = mine.sum(axis=1) >= FEWEST
    present = coordinates.present[queries.mechanism]
    random = np.random.default_rng(0)
    rows = {}

    def judge(name: str, kept: np.ndarray, left: np.ndarray) -> None:
        gain, p_value = foretold(series[kept], left, num_permutations, random)
        rows[name] = Attributed(name, gain, p_value, int(kept.sum()), tolerance)

    for column, label in enumerate(coordinates.labels):
        kept = counted & present[:, column]
        if kept.sum() < 2 * FOLDS:
            raise ValueError(
                f"Only {kept.sum()} held-out simulations have {FEWEST} neighbours of their own "
                f"mechanism and {label}; take more of them, or a larger k."
            )
        points, truth = weighted.values[kept, :, column], queries.values[kept, column]
        score = _normal_score(points, weights[kept], truth)
        judge(label, kept, np.stack([score, score**2], axis=1))
    if len(coordinates.present) > 1:
        truth = np.eye(len(coordinates.present))[queries.mechanism]
        judge(MECHANISM, np.ones(len(truth), bool), truth - weighted.shares)
    return Sufficiency(rows)


def foretold(
    series: Float[np.ndarray, "count size"],
    left: Float[np.ndarray, "count quantities"],
    num_permutations: int,
    random: np.random.Generator,
) -> tuple[float, float]:
    """The largest share of variance of a column foretold out of fold, and its permutation p-value.

    Ridge regression, with as much penalty as there are regressors of unit variance: that is the
    posterior mean where signal and noise are as large before the data.
    """
    foretell = _out_of_fold(_regressors(series), random)
    count, columns = left.shape
    orders = [random.permutation(count) for _ in range(num_permutations)]
    # One product for all permutations; a column each.
    targets = np.concatenate([left[order] for order in [np.arange(count), *orders]], axis=1)
    error = ((targets - foretell @ targets) ** 2).mean(axis=0)
    variance = targets.var(axis=0)
    shares = 1 - np.divide(error, variance, out=np.ones_like(error), where=variance > 0)
    gains = shares.reshape(-1, columns).max(axis=1)
    exceeding = int(np.sum(gains[1:] >= gains[0]))
    return max(float(gains[0]), 0.0), (1 + exceeding) / (1 + num_permutations)


def _out_of_fold(
    design: Float[np.ndarray, "count size"], random: np.random.Generator
) -> Float[np.ndarray, "count count"]:
    """The matrix that foretells each number from those of the other folds."""
    count, size = design.shape
    fold = random.permutation(count) % FOLDS
    matrix = np.zeros((count, count))
    for index in range(FOLDS):
        out, rest = np.flatnonzero(fold == index), np.flatnonzero(fold != index)
        known = design[rest]
        gram = known.T @ known + size * np.eye(size)
        mean = np.full((out.size, rest.size), 1 / rest.size)
        centre = known.mean(axis=0)
        slopes = np.linalg.solve(gram - rest.size * np.outer(centre, centre), (known - centre).T)
        matrix[np.ix_(out, rest)] = mean + (design[out] - centre) @ slopes
    return matrix


def _regressors(series: Float[np.ndarray, "count size"]) -> Float[np.ndarray, "count regressors"]:
    """The first principal components and their squares, standardised."""
    centred = series - series.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = sizes > 1e-4 * sizes[0]
    components = left[:, kept][:, :COMPONENTS] * np.sqrt(len(series))
    both = np.concatenate([components, components**2], axis=1)
    return (both - both.mean(axis=0)) / np.maximum(both.std(axis=0), 1e-12)


def _normal_score(
    points: Float[np.ndarray, "count k"],
    weights: Float[np.ndarray, "count k"],
    truth: Float[np.ndarray, " count"],
) -> Float[np.ndarray, " count"]:
    below = (weights * (points < truth[:, None])).sum(axis=1)
    worth = effective(weights)
    level = (worth * below + 0.5) / (worth + 1)
    return np.asarray(jax.scipy.special.ndtri(jnp.asarray(level)), np.float64)


def _series(predictor: Predictor, inputs: Inputs) -> Float[np.ndarray, "count size"]:
    """The series as scaled for the network, and the known quantities."""
    return np.asarray(in_blocks(_scaling(predictor), inputs), np.float64)


@functools.lru_cache(maxsize=8)
def _scaling(predictor: Predictor) -> Callable:
    def one(inputs: Inputs) -> Array:
        scaled = predictor.network.scaling(inputs)
        return jnp.concatenate([scaled.views.ravel(), scaled.known])

    return jax.jit(jax.vmap(one))
