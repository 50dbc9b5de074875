"""Clouds of neighbours against closed-form posteriors: consistent, scored, and tested for loss."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax.attribution import attribute_posterior, check_sufficiency, choose_k
from sgjax.attribution.choose_k import ChoiceOfK
from sgjax.attribution.clouds import draw_clouds, weigh
from sgjax.attribution.coordinates import Coordinates
from sgjax.attribution.scores import crps, energy_score
from sgjax.attribution.source import Source
from sgjax.attribution.weighting import effective, epanechnikov
from sgjax.losses import crps_ensemble
from sgjax.losses import energy_score as energy_score_of_draws
from sgjax.predictors import (
    AbstractEncoder,
    ByMechanism,
    Categorical,
    Gaussian,
    InputScaling,
    Network,
    Predictor,
)
from sgjax.predictors._base import AbstractHead
from sgjax.predictors.scaling import InputConstants

CENTRES = np.array([-0.5, 0.5])
"""Prior means of the first level, by mechanism."""

NUM, QUERIES, K = 16_384, 24, 600


class TwoLevels(sg.simulators.AbstractSimulator):
    """Four times at one level, four at another."""

    prior: dict
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.repeat(jnp.stack([theta["a"], theta["b"]]), 4)[:, None]
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


def two_levels(*names: str) -> sg.Study:
    mechanisms = {
        name: TwoLevels({"a": dist.Normal(centre, 1.0), "b": dist.Normal(0.0, 1.0)})
        for name, centre in zip(("Low", "High"), CENTRES, strict=True)
    }
    return sg.Study(
        sg.simulators.MechanismMixture(mechanisms, table_size=2),
        sg.observations.Gaussian(sd=1.0, prior={}),
        sg.Several(
            sg.Estimate(
                *names,
                derived={"twice": lambda theta: 2 * theta["a"]},
                latent={"last": lambda theta, latent: latent.values[-1, 0]},
            ),
            sg.Identify(),
        ),
    )


class Means(AbstractEncoder):
    """The mean of each level: sufficient; of the first only where `size` is 1."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, scaled):
        return scaled.views[:, 0].reshape(2, 4).mean(axis=1)[: self.size]


class ExactParameters(AbstractHead):
    """The posterior of each mechanism."""

    def __call__(self, features):
        size = features.size
        centre = jnp.zeros((2, size)).at[:, 0].set(CENTRES)
        factor = jnp.broadcast_to(jnp.sqrt(5.0) * jnp.eye(size), (2, size, size))
        return ByMechanism(Gaussian((4 * features + centre) / 5, factor, jnp.ones((2, size), bool)))


class ExactMechanism(AbstractHead):
    """Log odds of normal means with variance 1 + 1/4."""

    def __call__(self, features):
        return Categorical(jnp.stack([jnp.zeros(()), features[0] / 1.25]))


class Nothing(AbstractHead):
    """Of the function of the latent course, nothing is predicted."""

    def __call__(self, features):
        return Gaussian(jnp.zeros(1), jnp.eye(1), jnp.ones(1, bool))


def exact(*names: str) -> Predictor:
    """A predictor that answers with the closed form; no training."""
    one, none = np.ones(1), np.zeros(0)
    # So far below the scale of its arsinh, a view is the value itself.
    view = np.full((1, 2), 1e-3)
    constants = InputConstants(
        1e3 * one, 1e3 * one, 0 * view, view, none, none, *np.array([1, 8.0])
    )
    heads = {
        "parameters": ExactParameters(),
        "latent": Nothing(),
        "mechanism": ExactMechanism(),
    }
    network = Network(InputScaling(constants), Means(len(names) or 2), heads)
    return Predictor(two_levels(*names), network)


@pytest.fixture(scope="module")
def world():
    predictor = exact()
    return predictor, sg.SimulationStream(predictor.study, jax.random.key(0), 1024)


@pytest.fixture(scope="module")
def index(world):
    return sg.SimulationIndex.build(*world, NUM)


@pytest.fixture(scope="module")
def clouds(world, index):
    predictor, stream = world
    source = Source(predictor, index, NUM)
    queries = source.held_out(QUERIES)
    found = source.nearest(queries.queries, K)
    return queries, draw_clouds(predictor, stream, found, queries.inputs, "regression")


def exact_means(queries) -> np.ndarray:
    """Posterior means by query, mechanism and parameter."""
    means = np.asarray(queries.inputs.values)[:, :, 0].reshape(-1, 2, 4).mean(axis=2)
    centre = np.stack([CENTRES, np.zeros(2)], axis=1)
    return (4 * means[:, None] + centre) / 5


def moments(clouds, weighted):
    """Means and sds of the clouds by query, mechanism and parameter."""
    within = weighted.weights[:, None] * (clouds.mechanism[:, None] == np.arange(2)[:, None])
    within /= within.sum(axis=2, keepdims=True)
    means = np.einsum("qmk,qkd->qmd", within, weighted.values)
    squares = np.einsum("qmk,qkd->qmd", within, weighted.values**2)
    return means, np.sqrt(squares - means**2)


def test_a_line_makes_the_cloud_the_posterior(clouds):
    queries, found = clouds
    weighted = weigh(found, "regression")
    assert weighted.moved.all()
    means, sds = moments(found, weighted)
    # In Monte Carlo errors, as they are claimed; three quarters of sd 1 / sqrt(2 n) each.
    errors = sds / np.sqrt(weighted.effective)[..., None]
    z = (means - exact_means(queries)) / errors
    assert abs(np.sqrt(np.mean(z**2)) - 1) < 4 / np.sqrt(2 * z.size)
    ratio = sds.mean() * np.sqrt(5) - 1
    assert abs(ratio) < 4 / np.sqrt(2 * weighted.effective.sum())


def test_moving_beats_weighting_and_weighting_beats_counting(clouds):
    queries, found = clouds
    error = {}
    for method in ("uniform", "kernel", "regression"):
        means, _ = moments(found, weigh(found, method))
        error[method] = np.abs(means - exact_means(queries)).mean()
    assert error["regression"] < 0.8 * error["kernel"] < 0.8 * error["uniform"]


def test_shares_are_those_of_bayes(clouds):
    queries, found = clouds
    first = np.asarray(queries.inputs.values)[:, :4, 0].mean(axis=1)
    truth = 1 / (1 + np.exp(-first / 1.25))
    for method, cut in (("kernel", found.nearest(200)), ("regression", found)):
        weighted = weigh(cut, method)
        np.testing.assert_allclose(weighted.shares.sum(axis=1), 1)
        error = np.sqrt(truth * (1 - truth) / weighted.effective_shares)
        z = (weighted.shares[:, 1] - truth) / error
        assert np.abs(z).max() < 4 and np.sqrt(np.mean(z**2)) < 1.5


def test_weights_sum_to_one_and_fall_to_nothing():
    distances = np.sort(np.random.default_rng(0).uniform(size=(3, 20)), axis=1)
    weights = epanechnikov(distances)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[:, -1], 0, atol=1e-12)
    assert np.all(np.diff(weights, axis=1) < 0)
    np.testing.assert_allclose(epanechnikov(np.zeros((1, 4))), 0.25)
    np.testing.assert_allclose(effective(np.full((1, 8), 1 / 8)), 8)


def test_the_posterior_of_one_series(world, index):
    predictor, stream = world
    real = np.asarray(stream.held_out().take(4).observed.values[3])
    # By a search through the stream, and in the index.
    uniform = attribute_posterior(predictor, stream, real, 200, NUM, method="uniform")
    neighbours = sg.attribute(predictor, index, real, 200)
    mine = np.array(neighbours.mechanisms) == "High"
    drawn = np.asarray(neighbours.theta["a"], np.float64)[mine]
    assert uniform.ids == neighbours.ids and uniform.effective_k == pytest.approx(200)
    assert uniform.mechanisms["High"] == pytest.approx(mine.mean())
    assert uniform.mean("a", "High") == pytest.approx(drawn.mean())
    assert uniform.sd("a", "High") == pytest.approx(drawn.std())
    assert uniform.mean("twice", "High") == pytest.approx(2 * drawn.mean())
    assert uniform.monte_carlo_error("a", "High") == pytest.approx(drawn.std() / mine.sum() ** 0.5)
    levels = (0.1, 0.5, 0.9)
    hazen = np.quantile(drawn, levels, method="hazen")
    np.testing.assert_allclose(uniform.quantile("a", levels, "High"), hazen)
    # The latent course ends at the second level, and that of a neighbour is its own.
    assert uniform.mean("last", "High") == pytest.approx(uniform.mean("b", "High"), rel=1e-5)
    row = uniform.summary()["High"]["a"]
    assert row["mean"] == pytest.approx(drawn.mean(), abs=0.02 * drawn.std())
    draws = np.asarray(uniform.sample(jax.random.key(0), 4000, "High")["a"])
    assert abs(draws.mean() - drawn.mean()) < 4 * drawn.std() / np.sqrt(4000)


def test_what_could_not_be_fitted_is_said(world, index):
    predictor, stream = world
    real = np.asarray(stream.held_out().take(1).observed.values[0])
    with pytest.raises(
        ValueError, match=r"30 neighbours are too few .* 2 regressors; take k >= 40"
    ):
        attribute_posterior(predictor, index, real, 30, method="regression")
    posterior = attribute_posterior(predictor, index, real, 60, method="regression")
    assert any("too few neighbours" in note for note in posterior.notes)
    assert any("60 neighbours are too few to fit the mechanisms" in n for n in posterior.notes)
    far = real + np.where(np.arange(8) < 4, 40.0, 0.0)[:, None]
    only = attribute_posterior(predictor, index, far, 5)
    assert only.mechanisms == {"Low": 0.0, "High": 1.0}
    with pytest.raises(ValueError, match="None of the 5 neighbours is a simulation of Low"):
        only.mean("a", "Low")
    with pytest.raises(ValueError, match="Name one of the mechanisms"):
        only.mean("a")
    with pytest.raises(ValueError, match="none of the quantities"):
        only.mean("c", "High")


def test_k_is_neither_least_nor_most(world, index):
    grid = (3, 20, 100, 400, 3000)
    choice = choose_k(world[0], index, grid=grid, num_held_out=200)
    for name in choice.scores:
        assert choice.best(name) in grid[1:-1], name
    assert not choice.at_edge
    rows = {row["k"]: row["all parameters"] for row in choice.table()}
    assert rows[choice.k]["above_best"] == 0
    assert rows[3000]["above_best"] > 3 * rows[3000]["above_best_standard_error"]
    with pytest.raises(ValueError, match="was not scored"):
        choice.best("c")


def test_noise_does_not_choose_k():
    """The chosen number costs little more than the best, where the least of the scores costs much.

    Draws of a normal, off by more the more of them there are, by as much in either direction.
    """
    random, queries = np.random.default_rng(0), 200
    grid = tuple(10 * 2**n for n in range(10))
    for bias in (0.0, 0.02, 0.3):  # at 1000 neighbours
        # The squared distance of shifted laws, and what the spread of few draws adds.
        loss = [(bias * k / 1000) ** 2 / np.sqrt(4 * np.pi) + 1 / np.sqrt(np.pi) / k for k in grid]
        chosen, least = [], []
        for _ in range(10):
            truth, draws = random.normal(size=queries), random.normal(size=(queries, grid[-1]))
            side = random.choice([-1, 1], (queries, 1))
            found = [
                crps(draws[:, :k] + side * bias * k / 1000, np.full((queries, k), 1 / k), truth)
                for k in grid
            ]
            scores, excess = (np.stack(part) for part in zip(*found, strict=True))
            choice = ChoiceOfK(grid, {"a": scores}, {"a": excess}, "uniform", 10**6)
            chosen.append(loss[grid.index(choice.best("a"))] / min(loss))
            least.append(loss[int(scores.mean(axis=1).argmin())] / min(loss))
        assert np.mean(chosen) < 2.5 and np.mean(chosen) <= np.mean(least), bias


@pytest.mark.slow
def test_a_line_allows_for_more_neighbours(world, index):
    grid = (60, 250, 4000)
    moved, plain = (
        choose_k(world[0], index, method=method, grid=grid, num_held_out=200)
        for method in ("regression", "kernel")
    )
    # The same held-out simulations, so that differences count.
    gained = plain.scores["all parameters"][-1] - moved.scores["all parameters"][-1]
    assert gained.mean() > 4 * gained.std() / np.sqrt(gained.size)
    assert moved.k >= plain.k
    best = [choice.scores["a"].mean(axis=1).min() for choice in (moved, plain)]
    assert best[0] < best[1]


@pytest.mark.slow
def test_sufficiency_both_ways(world, index):
    given = {"method": "regression", "num_held_out": 400, "num_permutations": 199}
    whole = check_sufficiency(world[0], index, 100, **given)
    assert set(whole.rows) == {"a", "b", "mechanism"}
    assert all(row.attributed for row in whole.rows.values()), whole.verdict
    narrow = exact("a")
    stream = sg.SimulationStream(narrow.study, jax.random.key(0), 1024)
    partial = check_sufficiency(narrow, stream, 100, NUM, **given)
    assert partial["a"].attributed and partial["mechanism"].attributed
    # Four fifths of the variance of b are known from the series, and none in this space.
    assert not partial["b"].attributed
    assert abs(partial["b"].gain - 0.8) < 0.1
    assert "not attributed" in partial["b"].verdict
    with pytest.raises(ValueError, match="was not judged"):
        partial["c"]


def test_coordinates_there_and_back(outbreak):
    coordinates = Coordinates(outbreak)
    assert coordinates.labels == ("beta", "gamma", "sd", "sigma")  # the population is known
    assert coordinates.present.tolist() == [[True, True, True, False], [True] * 4]
    stream = sg.SimulationStream(outbreak, jax.random.key(0), 64)
    numbers = np.stack([np.zeros(8), np.arange(8)], axis=1).astype(np.uint32)
    theta, mechanism = stream.parameters(numbers)
    values = coordinates.of_all(theta, np.asarray(mechanism))
    for index, name in enumerate(outbreak.mechanisms):
        rows = np.asarray(mechanism) == index
        given = {"population": np.float32(763.0)}
        back = coordinates.theta(name, values[rows], given)
        for label, value in back.items():
            np.testing.assert_allclose(value, np.asarray(theta[label])[rows], rtol=1e-5)
        # However far a point is moved, it stays inside the support.
        assert all(
            (v >= 0).all() for v in coordinates.theta(name, values[rows] - 50, given).values()
        )


def test_scores_are_those_of_the_ensemble_as_it_is():
    random = np.random.default_rng(0)
    points, truth = random.normal(size=(2, 12, 3)), random.normal(size=(2, 3))
    alike = np.full((2, 12), 1 / 12)
    made = (
        crps(points[..., 0], alike, truth[:, 0]).value,
        energy_score(points, alike, truth).value,
    )
    for row in range(2):
        values = jnp.asarray(points[row])
        one = crps_ensemble(values[:, :1], jnp.asarray(truth[row, :1]), fair=False)
        assert made[0][row] == pytest.approx(float(one), rel=1e-5)
        joint = energy_score_of_draws(values, jnp.asarray(truth[row]), fair=False)
        assert made[1][row] == pytest.approx(float(joint), rel=1e-5)
    # A point twice is a point of twice the weight.
    twice = np.concatenate([points, points[:, :1]], axis=1)
    weights = np.full((2, 12), 1 / 13) + np.eye(12)[0] / 13
    np.testing.assert_allclose(
        crps(points[..., 0], weights, truth[:, 0]).value,
        crps(twice[..., 0], np.full((2, 13), 1 / 13), truth[:, 0]).value,
    )
