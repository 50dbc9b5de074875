"""Clouds: the neighbours of many queries as weighted points; `Nearest -> Clouds -> Weighted`."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from sgjax.attribution.coordinates import Coordinates, coordinates_of, in_blocks
from sgjax.attribution.neighbours import Nearest
from sgjax.attribution.weighting import (
    counted_shares,
    effective,
    epanechnikov,
    local_line,
    logistic_shares,
    normalised,
)
from sgjax.predictors import AbstractPredictive, ByMechanism, CannotGive, Predictor
from sgjax.stream import SimulationStream
from sgjax.tasks import Inputs

Method: TypeAlias = Literal["uniform", "kernel", "regression"]
"""How neighbours are weighted: alike, by their distance, or that and moved along a line."""

PER_REGRESSOR = 20
"""Neighbours that a line needs for each of its regressors."""

FOR_SHARES = 400
"""Neighbours that a logistic fit of the mechanisms' shares needs."""

REDRAWN = 2**15
"""Simulations drawn again at once."""


class Predicted(NamedTuple):
    """What a predictor says of simulations, as regressors."""

    means: Float[np.ndarray, "*batch size"]
    """The means of the estimated parameters on the learned scale."""
    log_odds: Float[np.ndarray, "*batch others"]
    """Of each mechanism but the last, against the last."""


class Clouds(NamedTuple):
    """The neighbours of each query, nearest first."""

    coordinates: Coordinates
    ids: UInt32[np.ndarray, "queries k 2"]
    distances: Float[np.ndarray, "queries k"]
    mechanism: Int[np.ndarray, "queries k"]
    values: Float[np.ndarray, "queries k size"]
    """Their parameters, as coordinates."""
    predicted: Predicted | None
    """Of the neighbours, each within its own mechanism."""
    at: Predicted | None
    """Of the queries; the means once within each mechanism, `(queries, mechanisms, size)`."""

    def nearest(self, k: int) -> "Clouds":
        """The clouds of fewer neighbours."""
        cut = lambda array: array[:, :k]
        predicted = None if self.predicted is None else Predicted(*map(cut, self.predicted))
        return Clouds(
            self.coordinates,
            cut(self.ids),
            cut(self.distances),
            cut(self.mechanism),
            cut(self.values),
            predicted,
            self.at,
        )

    def part(self, queries: slice) -> "Clouds":
        """The clouds of some of the queries."""
        parts = jax.tree.map(lambda array: array[queries], tuple(self)[1:])
        return Clouds(self.coordinates, *parts)


class Weighted(NamedTuple):
    """Clouds with weights, their points moved where the method moves them."""

    weights: Float[np.ndarray, "queries k"]
    """Over all mechanisms; they sum to 1."""
    values: Float[np.ndarray, "queries k size"]
    shares: Float[np.ndarray, "queries mechanisms"]
    effective: Float[np.ndarray, "queries mechanisms"]
    """So many independent draws know a mean within the mechanism as well."""
    effective_shares: Float[np.ndarray, " queries"]
    moved: Bool[np.ndarray, "queries mechanisms"]
    """Whether there were neighbours enough to fit the line."""


def draw_clouds(
    predictor: Predictor,
    stream: SimulationStream,
    found: Nearest,
    inputs: Inputs,
    method: Method,
) -> Clouds:
    """Draws the neighbours of all queries again, those that several share once.

    `inputs` are the queries'. Only the method "regression" needs more than parameters: there the
    neighbours are simulated again and the predictor's answers to them are kept.
    """
    coordinates = coordinates_of(stream.study)
    words, distances = np.asarray(found.ids), np.asarray(found.distances, np.float64)
    numbers = (words[..., 0].astype(np.uint64) << np.uint64(32)) + words[..., 1]
    unique, place = np.unique(numbers, return_inverse=True)
    place = place.reshape(numbers.shape)
    ids = np.stack([unique >> np.uint64(32), unique & np.uint64(0xFFFFFFFF)], axis=1)
    ids = ids.astype(np.uint32)
    theta, mechanism = stream.parameters(ids)
    mechanism = np.asarray(mechanism)
    values = coordinates.of_all(theta, mechanism)
    at = predicted = None
    if method == "regression":
        regressors = _regressors(predictor)
        at = regressors.of_queries(inputs)
        parts = [
            regressors.of_simulations(stream, ids[start : start + REDRAWN])
            for start in range(0, len(ids), REDRAWN)
        ]
        every = Predicted(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        predicted = Predicted(every.means[place], every.log_odds[place])
    return Clouds(coordinates, words, distances, mechanism[place], values[place], predicted, at)


def weigh(clouds: Clouds, method: Method) -> Weighted:
    """Weights, and points moved along the local line where the method is "regression".

    A mechanism with fewer neighbours than `PER_REGRESSOR` times the regressors keeps its points
    where they are; shares of fewer than `FOR_SHARES` neighbours are weighted counts.
    """
    check_method(clouds, method)
    queries, k = clouds.mechanism.shape
    present = clouds.coordinates.present
    weights = (
        np.full((queries, k), 1 / k) if method == "uniform" else epanechnikov(clouds.distances)
    )
    values = clouds.values
    counts = np.zeros((queries, len(present)))
    moved = np.zeros(counts.shape, bool)
    for index in range(len(present)):
        mine = clouds.mechanism == index
        within = normalised(weights, mine)
        counts[:, index] = effective(within)
        if method == "regression":
            means, at = _regressors_within(clouds, index)
            line = local_line(values, means, at, within)
            enough = mine.sum(axis=1) >= PER_REGRESSOR * means.shape[2]
            moved[:, index] = enough
            counts[enough, index] = line.effective[enough]
            values = np.where((mine & enough[:, None])[..., None], line.values, values)
    shares = counted_shares(clouds.mechanism, weights, len(present))
    if method == "regression" and k >= FOR_SHARES and len(present) > 1:
        assert clouds.predicted is not None and clouds.at is not None
        odds, odds_at = clouds.predicted.log_odds, clouds.at.log_odds
        if odds.shape[2]:
            shares = logistic_shares(clouds.mechanism, odds, odds_at, weights, len(present))
    return Weighted(weights, values, shares.values, counts, shares.effective, moved)


def check_method(clouds: Clouds, method: Method) -> None:
    """Raises `ValueError` where a method is unknown or has too few neighbours to fit anything."""
    if method not in ("uniform", "kernel", "regression"):
        raise ValueError(f"There is no method {method!r}; take 'uniform', 'kernel', 'regression'.")
    if method != "regression":
        return
    fewest, k = least_k(clouds), clouds.mechanism.shape[1]
    if k < fewest:
        raise ValueError(
            f"{k} neighbours are too few for a line on {fewest // PER_REGRESSOR} regressors; take "
            f"k >= {fewest}, or method='kernel'."
        )


def least_k(clouds: Clouds) -> int:
    """The fewest neighbours that a line can be fitted to, in the mechanism that needs fewest."""
    mechanisms = range(len(clouds.coordinates.present))
    sizes = [_regressors_within(clouds, index)[0].shape[2] for index in mechanisms]
    return PER_REGRESSOR * min(sizes)


def _regressors_within(clouds: Clouds, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The regressors that exist under a mechanism: of the neighbours, and of the queries."""
    assert clouds.predicted is not None and clouds.at is not None
    there = clouds.coordinates.study.specs["parameters"].present[index]
    return clouds.predicted.means[..., there], clouds.at.means[:, index][:, there]


@functools.lru_cache(maxsize=8)
def _regressors(predictor: Predictor) -> "_Regressors":
    return _Regressors(predictor)


class _Regressors:
    """The predictor's means and log odds, of simulations and of queries."""

    def __init__(self, predictor: Predictor):
        if "parameters" not in predictor.study.specs:
            raise ValueError(
                "The predictor estimates no parameters, so there is nothing to fit a line on; take "
                "method='kernel', or add an `Estimate` to the study's task."
            )

        def answer(inputs: Inputs) -> tuple[Array, Array]:
            _, blocks = predictor.network(inputs)
            parameters = blocks["parameters"]
            assert isinstance(parameters, ByMechanism)
            means = jax.vmap(_mean)(parameters.inner)
            if "mechanism" not in blocks:
                return means, jnp.zeros(0)
            logs = jnp.log(jnp.maximum(blocks["mechanism"].mean(), 1e-30))
            return means, logs[:-1] - logs[-1]

        self._program: Callable = jax.jit(jax.vmap(answer))

    def of_queries(self, inputs: Inputs) -> Predicted:
        """Means within each mechanism."""
        return Predicted(*map(_float64, in_blocks(self._program, inputs)))

    def of_simulations(self, stream: SimulationStream, ids: np.ndarray) -> Predicted:
        """Means within the simulation's own mechanism."""
        drawn = stream.simulate(ids)
        means, log_odds = in_blocks(self._program, drawn.example.inputs)
        own = means[np.arange(len(means)), np.asarray(drawn.mechanism)]
        return Predicted(_float64(own), _float64(log_odds))


def _mean(predictive: AbstractPredictive) -> Array:
    try:
        return predictive.mean()
    except CannotGive:  # a head of quantiles
        return predictive.quantile([0.5])[0]


def _float64(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)
