"""Adaptive lanes: each simulation right, whatever its neighbours, their number and their fate."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.priors import sample_prior
from sgjax.simulators import LotkaVolterra
from sgjax.solvers import AdaptiveSteps, FixedSteps, LaneSteps

KEY = jax.random.key(0)
SIZE = 80


class Pair(NamedTuple):
    """A number and two more."""

    one: jax.Array
    two: jax.Array


def field(t, y, rate):
    """From ones: exp(rate sin t), and exp(-rate t) twice."""
    return Pair(rate * y.one * jnp.cos(t), -rate[:, None] * y.two)


def solve(steps, ts, rates, t0=0.0, field=field):
    ts, rates = np.asarray(ts, float), jnp.asarray(rates)
    start = Pair(jnp.ones(rates.size), jnp.ones((rates.size, 2)))
    return jax.jit(lambda rates: steps.solve(field, start, t0, ts, rates))(rates)


@pytest.mark.parametrize("t0", [0.0, -1.0])
def test_each_simulation_meets_the_tolerance(t0):
    rates = np.linspace(0.1, 20.0, 100).astype(np.float32)
    ts = np.array([0.0, 0.5, 0.6, 3.0])
    found = solve(LaneSteps(1e-5, 1e-8, num_lanes=7), ts, rates, t0)
    one = np.exp(rates * (np.sin(ts[:, None]) - np.sin(t0)))
    two = np.exp(-rates * (ts[:, None] - t0))
    np.testing.assert_allclose(found.one, one, rtol=2e-4)
    for column in range(2):
        np.testing.assert_allclose(found.two[:, :, column], two, rtol=2e-3, atol=1e-6)


def test_the_start_alone():
    np.testing.assert_array_equal(solve(LaneSteps(), [0.0], np.ones(3)).one, np.ones((1, 3)))


@pytest.fixture(scope="module")
def ecosystems():
    """Readouts of predators and prey under one policy of steps and another."""
    draws = jax.jit(jax.vmap(lambda key: sample_prior(key, LotkaVolterra().prior)))
    thetas = draws(jax.random.split(KEY, SIZE))

    def values(steps, rows=slice(None)):
        world = LotkaVolterra(ts=range(1, 11), solver=steps)
        chosen = {name: draw[rows] for name, draw in thetas.items()}
        keys = jax.random.split(KEY, SIZE)[rows]
        run = jax.jit(lambda keys, thetas: world.simulate_batch(keys, thetas).values)
        return np.asarray(run(keys, chosen))

    return values


def test_lanes_agree_with_fixed_steps(ecosystems):
    fixed = ecosystems(FixedSteps(64))
    error = np.abs(ecosystems(LaneSteps(1e-5, 1e-7)) - fixed) / fixed.max(axis=1, keepdims=True)
    assert error.max() < 2e-3
    assert np.median(error.max(axis=(1, 2))) < 1e-4


def test_neighbours_do_not_matter(ecosystems):
    every = ecosystems(LaneSteps())
    np.testing.assert_array_equal(every, ecosystems(LaneSteps(num_lanes=16)))
    np.testing.assert_array_equal(every[32:33], ecosystems(LaneSteps(), slice(32, 33)))


def test_one_that_never_ends_holds_up_its_lane_only():
    def explodes(t, y, rate):
        # Those with a rate above 2 leave the real line before time 1.
        return Pair(jnp.where(rate > 2, rate * y.one**2, -y.one), -y.two)

    rates = np.where(np.arange(60) % 10 == 3, 5.0, 1.0)
    found = solve(LaneSteps(num_lanes=8), [0.1, 0.5, 1.0], rates, field=explodes)
    lost = np.isnan(found.one).any(axis=0)
    np.testing.assert_array_equal(lost, rates > 2)
    assert np.isfinite(found.one[0]).all()  # what it reached before is kept
    ends = np.exp(-np.array([0.1, 0.5, 1.0]))
    np.testing.assert_allclose(found.one[:, ~lost], np.tile(ends[:, None], 54), rtol=1e-3)


def test_too_few_steps_are_not_finite():
    found = solve(LaneSteps(max_steps=20), [10.0], [5.0, 1e-3])
    np.testing.assert_array_equal(np.isnan(found.one[0]), [True, False])


def test_forward_derivatives():
    ends = lambda rate: solve(LaneSteps(1e-6, 1e-8), [1.0], rate).one[0]
    rates = jnp.array([0.5, 2.0])
    _, slopes = jax.jvp(ends, (rates,), (jnp.ones(2),))
    exact = np.sin(1.0) * np.exp(np.asarray(rates) * np.sin(1.0))
    np.testing.assert_allclose(slopes, exact, rtol=1e-3)


@pytest.mark.slow
def test_a_mechanism_steps_adaptively_alike(ecosystems):
    lanes, stock = ecosystems(LaneSteps(1e-5, 1e-7)), ecosystems(AdaptiveSteps(1e-5, 1e-7))
    error = np.abs(lanes - stock) / stock.max(axis=1, keepdims=True)
    assert error.max() < 4e-3


def test_wrong_settings():
    for wrong in ({"relative_tolerance": 0.0}, {"num_lanes": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="must be"):
            dataclasses.replace(LaneSteps(), **wrong)
    with pytest.raises(ValueError, match="real states"):
        LaneSteps().solve(field, jnp.ones(3, complex), 0.0, np.ones(1), jnp.ones(3))


def test_reverse_derivatives_say_what_to_do():
    total = lambda rates: jnp.sum(solve(LaneSteps(), [1.0], rates).one)
    with pytest.raises(RuntimeError, match="forward mode"):
        jax.grad(total)(jnp.ones(2))
