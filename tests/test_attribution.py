"""Nearest simulations and mismatch: exact, self-consistent, and able to sound the alarm."""

import jax
import numpy as np
import pytest

import sgjax as sg
from sgjax.attribution import Search
from sgjax.mismatch import posterior_predictive_p, prior_predictive
from sgjax.predictors import as_observed


@pytest.fixture(scope="module")
def world(growth):
    stream = sg.SimulationStream(growth, jax.random.key(0), batch_size=128)
    predictor = sg.predictors.for_study(growth, jax.random.key(1), width=16, depth=1)
    predictor = sg.train(predictor, stream, 150, interval=150)
    return predictor, stream


@pytest.fixture(scope="module")
def features_of(world):
    predictor, _ = world
    return jax.jit(lambda simulation: predictor.predict(simulation.example.inputs)[0])


def test_the_streaming_search_is_exact(world, features_of):
    predictor, stream = world
    search = Search(predictor, stream, 500)  # of four batches, the last not whole
    features, queries = features_of(stream.take(500)), features_of(stream.held_out().take(3))
    found = search.nearest(queries, 7)
    all_pairs = np.linalg.norm(
        np.asarray(search.space.points(queries), np.float64)[:, None]
        - np.asarray(search.space.points(features))[None],
        axis=-1,
    )
    np.testing.assert_allclose(found.distances, np.sort(all_pairs, axis=1)[:, :7], rtol=1e-3)
    assert np.all(np.diff(found.distances, axis=1) >= 0)


def test_neighbours_are_drawn_again_with_their_parameters(world):
    predictor, stream = world
    real = np.asarray(stream.held_out().take(1).observed.values[0])
    neighbours = sg.attribute(predictor, stream, real, k=10, num_simulations=512)
    again = stream.take(512)
    places = np.array(neighbours.ids)
    np.testing.assert_array_equal(neighbours.values, again.observed.values[places])
    np.testing.assert_array_equal(neighbours.theta["rate"], again.theta["rate"][places])
    rows = neighbours.table()
    assert len(rows) == 10 and rows[0]["mechanism"] == "ExponentialDecay"
    assert set(rows[0]["theta"]) == {"rate"}
    # Alike in what the network was trained for: rates near the true one.
    truth = float(stream.held_out().take(1).theta["rate"][0])
    spread = np.std(np.log(np.asarray(again.theta["rate"])))
    assert abs(np.mean(np.log(neighbours.theta["rate"])) - np.log(truth)) < 0.5 * spread


def test_k_must_fit(world):
    predictor, stream = world
    with pytest.raises(ValueError, match="k = 1000"):
        sg.attribute(predictor, stream, np.ones(8), k=1000, num_simulations=512)


def test_mismatch_tells_simulated_from_strange(world):
    predictor, stream = world
    ordinary = np.asarray(stream.held_out().take(512).observed.values[300])
    sizes = {"k": 5, "num_simulations": 512, "num_held_out": 199}
    assert sg.check_mismatch(predictor, stream, ordinary, **sizes).p_value > 0.02
    result = sg.check_mismatch(predictor, stream, np.linspace(-3, 6, 8), **sizes)
    assert result.p_value == 1 / 200
    assert "outside" in result.verdict


def test_posterior_predictive_p_tells_noise_from_misfit(world):
    predictor, stream = world
    key = jax.random.key(5)
    ordinary = predictor(np.asarray(stream.held_out().take(1).observed.values[0]))
    assert 0.005 < posterior_predictive_p(ordinary, "ExponentialDecay", key) < 0.999
    jagged = np.exp(-np.arange(1, 9) * 0.25) + 0.4 * (-1.0) ** np.arange(8)
    assert posterior_predictive_p(predictor(jagged), "ExponentialDecay", key) < 0.005


def test_prior_predictive_knows_what_lies_outside(growth):
    key = jax.random.key(2)
    inside = as_observed(growth, np.exp(-0.25 * np.arange(1, 9)))
    assert prior_predictive(growth, key, inside)["outside"] == 0
    outside = as_observed(growth, np.full(8, 3.0))
    assert prior_predictive(growth, key, outside)["outside"] == 1
