r"""How many neighbours: `search -> k`, by leave-one-out on held-out simulations.

Few neighbours are noise, many are bias: with $N$ simulations searched in a space of dimension $m$
the best number grows like $N^{2/(m+2)}$, and like $N^{4/(m+4)}$ where a local line takes the first
order out. Its factor is measured here. Held-out simulations are not among those searched, so each
is left out by itself. Clouds are scored as the distributions they are, weights included; the
squared error of the mean would not do, which forgives a cloud that is too wide.

The plain average of scores is too noisy to choose by where many simulations were searched: it is
nearly flat over a hundredfold of k. So it is taken apart. What few neighbours add to a score is
known from their spread; the rest is measured and smoothed, by $c + a / k + b k^p$ with $a, b \ge 0$
(a local line costs $a / k$, bias $b k^p$ with $p$ near $4/m$), and the sum decides.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls

from sgjax.attribution.clouds import Clouds, Method, Weighted, draw_clouds, least_k, weigh
from sgjax.attribution.index import SimulationIndex
from sgjax.attribution.progress import Telling
from sgjax.attribution.scores import Score, crps, energy_score
from sgjax.attribution.source import HeldOut, Source
from sgjax.attribution.weighting import normalised
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream

ALL = "all parameters"
MECHANISM = "mechanism"

LARGEST_K, SMALLEST_K, NUM_CHOICES = 2048, 10, 12

POWERS = (0.5, 1.0, 2.0, 4.0)
"""How the bias of a score may grow with k."""

MISFIT = 0.3
"""By what share of itself the bias may miss that law: far too many neighbours decide nothing."""

FEWEST = 2
"""Neighbours of its own mechanism that a simulation must have at the smallest k to be scored."""


@dataclasses.dataclass(frozen=True)
class ChoiceOfK:
    """The scores of clouds of different sizes, lower is better.

    `scores` holds, by name, one row a size and one column a held-out simulation: of each parameter
    the continuous ranked probability score, of all of them together (`"all parameters"`) the energy
    score, both on the scale of `PriorRanks`; of the mechanism the log score, its shares smoothed by
    half a neighbour of each. `excess` holds, of each but the mechanism, what few neighbours add.
    """

    grid: tuple[int, ...]
    scores: dict[str, Float[np.ndarray, "grid _"]]
    excess: dict[str, Float[np.ndarray, "grid _"]]
    method: Method
    num_simulations: int

    @property
    def k(self) -> int:
        """The best number of neighbours for all parameters together."""
        return self.best(ALL)

    def best(self, name: str) -> int:
        """The best number of neighbours for one parameter, or for the mechanism."""
        if name not in self.scores:
            raise ValueError(f"{name!r} was not scored; choose one of {list(self.scores)}.")
        return self.grid[self._place(name)]

    def _place(self, name: str) -> int:
        if name in self.excess:
            return int(np.argmin(_smoothed(self.grid, self.scores[name], self.excess[name])))
        return int(np.argmin(self.scores[name].mean(axis=1)))

    @property
    def at_edge(self) -> bool:
        """Whether the best number is the largest that was tried, so that a larger may be better."""
        return self.k == self.grid[-1]

    def table(self) -> list[dict]:
        """One row a size; each score with its standard error, and how far it is above the best k's.

        All sizes answer the same simulations, so that differences are known better than scores.
        """
        rows: list[dict] = [{"k": k} for k in self.grid]
        for name, scores in self.scores.items():
            root = np.sqrt(scores.shape[1])
            for row, score in zip(rows, scores, strict=True):
                behind = score - scores[self._place(name)]
                row[name] = {
                    "score": float(score.mean()),
                    "standard_error": float(score.std(ddof=1) / root),
                    "above_best": float(behind.mean()),
                    "above_best_standard_error": float(behind.std(ddof=1) / root),
                }
        return rows


def choose_k(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    num_simulations: int = 100_000,
    *,
    method: Method = "kernel",
    grid: Sequence[int] | None = None,
    num_held_out: int = 256,
    space: str = "features",
    scaling: str = "sd",
    progress: Telling = False,
) -> ChoiceOfK:
    """Scores clouds of different sizes around held-out simulations.

    Neighbours are found once, at the largest size. The answer holds for this number of simulations,
    this space and this method; the grid is geometric unless given. Raises `ValueError` where a size
    does not fit the search or, for "regression", the number of regressors.
    """
    source = Source(predictor, stream, num_simulations, space, scaling)
    largest = max(grid) if grid else min(LARGEST_K, max(source.num_simulations // 8, 1))
    queries = source.held_out(num_held_out)
    found = source.nearest(queries.queries, largest, progress)
    clouds = draw_clouds(predictor, source.stream, found, queries.inputs, method)
    return score_clouds(clouds, queries, method, source.num_simulations, grid)


def score_clouds(
    clouds: Clouds,
    queries: HeldOut,
    method: Method,
    num_simulations: int,
    grid: Sequence[int] | None = None,
) -> ChoiceOfK:
    """Scores of clouds that have been found already, cut to each size of the grid.

    A simulation with fewer than `FEWEST` neighbours of its own mechanism at the smallest size says
    nothing of parameters at any size; sizes are thus compared on the same simulations.
    """
    sizes = _grid(clouds, method) if grid is None else tuple(sorted(set(grid)))
    mine = clouds.mechanism[:, : sizes[0] - 1] == queries.mechanism[:, None]
    counted = mine.sum(axis=1) >= FEWEST  # the farthest left out, which may have no weight
    if counted.sum() < 2:
        raise ValueError(
            f"Hardly any held-out simulation has {FEWEST} neighbours of its own mechanism among "
            f"the {sizes[0]} nearest; search more simulations or take larger sizes."
        )
    rows = [_scores(clouds.nearest(k), queries, method, counted) for k in sizes]
    scores = {name: np.stack([row[name].value for row in rows]) for name in rows[0]}
    excess = {
        name: np.stack([row[name].excess for row in rows]) for name in rows[0] if name != MECHANISM
    }
    return ChoiceOfK(sizes, scores, excess, method, num_simulations)


def _grid(clouds: Clouds, method: Method) -> tuple[int, ...]:
    largest = clouds.mechanism.shape[1]
    smallest = least_k(clouds) if method == "regression" else SMALLEST_K
    if smallest > largest:
        raise ValueError(
            f"{largest} neighbours leave no choice, the smallest size being {smallest}; search "
            "more simulations."
        )
    sizes = np.geomspace(smallest, largest, NUM_CHOICES).round().astype(int)
    return tuple(int(size) for size in np.unique(sizes))


def _scores(
    clouds: Clouds, queries: HeldOut, method: Method, counted: Bool[np.ndarray, " held_out"]
) -> dict[str, Score]:
    weighted = weigh(clouds, method)
    coordinates = clouds.coordinates
    own = queries.mechanism[:, None]
    weights = normalised(weighted.weights, clouds.mechanism == own)
    points, truth = queries.ranks(weighted.values), queries.ranks(queries.values)
    present = coordinates.present[queries.mechanism]
    table = {}
    for column, label in enumerate(coordinates.labels):
        rows = counted & present[:, column]
        if rows.sum() < 2:
            continue
        table[label] = crps(points[rows, :, column], weights[rows], truth[rows, column])
    there = np.where(present, 1.0, 0.0)
    table[ALL] = energy_score(
        (points * there[:, None])[counted], weights[counted], (truth * there)[counted]
    )
    if len(coordinates.present) > 1:
        log_score = _log_score(weighted, queries.mechanism)
        table[MECHANISM] = Score(log_score, np.zeros_like(log_score))
    return table


def _smoothed(
    grid: tuple[int, ...],
    scores: Float[np.ndarray, "grid queries"],
    excess: Float[np.ndarray, "grid queries"],
) -> Float[np.ndarray, " grid"]:
    """The expected score of each size, up to a constant."""
    few, rest = excess.mean(axis=1), scores - excess
    if len(grid) == 1:
        return few
    # All sizes answer the same truths, so that only what they differ by is noise.
    noise = (rest - rest[-1]).var(axis=1, ddof=1) / rest.shape[1]
    noise[-1] = noise[-2]
    sizes = np.array(grid) / grid[-1]
    fits = [_fit(rest.mean(axis=1), noise + 1e-12, sizes, power) for power in POWERS]
    return min(fits, key=lambda fit: fit[0])[1] + few


def _fit(
    rest: Float[np.ndarray, " grid"],
    noise: Float[np.ndarray, " grid"],
    sizes: Float[np.ndarray, " grid"],
    power: float,
) -> tuple[float, Float[np.ndarray, " grid"]]:
    """Minus twice the log likelihood of $c + a / k + b k^p$, and its part that depends on k."""
    growth, few = sizes**power, sizes[0] / sizes
    terms = np.stack([np.ones_like(sizes), -np.ones_like(sizes), few, growth], axis=1)
    bias, variance, found, gap = np.zeros_like(sizes), noise, np.zeros(4), 0.0
    for _ in range(4):  # the variance depends on the fit
        variance = noise + (MISFIT * bias) ** 2
        weights = 1 / np.sqrt(variance)
        found, gap = nnls(terms * weights[:, None], rest * weights)
        bias = found[3] * growth
    return gap**2 + float(np.log(variance).sum()), found[2] * few + bias


def _log_score(weighted: Weighted, mechanism: np.ndarray) -> Float[np.ndarray, " held_out"]:
    count = weighted.shares.shape[1]
    worth = weighted.effective_shares[:, None]
    smoothed = (worth * weighted.shares + 0.5) / (worth + 0.5 * count)
    return -np.log(smoothed[np.arange(len(mechanism)), mechanism])
