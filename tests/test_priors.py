"""Priors: draws against their distributions, and the map to and from the real line."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from sgjax.priors import (
    event_size,
    fold_name,
    from_unconstrained,
    log_prior,
    log_prior_unconstrained,
    merge_priors,
    sample_prior,
    to_unconstrained,
)

# Each with its law in scipy, to which the draws are compared.
LAWS = {
    "normal": (dist.Normal(2.0, 3.0), stats.norm(2.0, 3.0)),
    "uniform": (dist.Uniform(-1.0, 4.0), stats.uniform(-1.0, 5.0)),
    "log_normal": (dist.LogNormal(0.5, 0.7), stats.lognorm(0.7, scale=np.exp(0.5))),
    "half_normal": (dist.HalfNormal(2.0), stats.halfnorm(scale=2.0)),
    "exponential": (dist.Exponential(5.0), stats.expon(scale=0.2)),
    "beta": (dist.Beta(2.0, 5.0), stats.beta(2.0, 5.0)),
    "truncated": (dist.TruncatedNormal(0.4, 0.5, low=0.0), stats.truncnorm(-0.8, np.inf, 0.4, 0.5)),
    "log_uniform": (dist.LogUniform(0.01, 10.0), stats.loguniform(0.01, 10.0)),
}
PRIOR = {name: distribution for name, (distribution, _) in LAWS.items()}
LAW = pytest.mark.parametrize("name", LAWS)
VECTOR = {"weights": dist.LogNormal(jnp.array([0.0, 1.0, 2.0]), 0.5)}
SIMPLEX = {"shares": dist.Dirichlet(jnp.ones(4))}
SHARES = {"shares": jnp.array([0.1, 0.2, 0.3, 0.4])}


@pytest.fixture(scope="module")
def draws():
    """4,000 draws of every parameter."""
    keys = jax.random.split(jax.random.key(0), 4000)
    return jax.jit(jax.vmap(lambda key: sample_prior(key, PRIOR)))(keys)


@LAW
def test_draws_follow_the_distribution(draws, name):
    assert draws[name].dtype == jnp.float32
    assert stats.kstest(draws[name], LAWS[name][1].cdf).pvalue > 1e-3


def test_draws_of_different_parameters_are_independent(draws):
    ranks = np.stack([stats.rankdata(draws[name]) for name in LAWS])
    correlation = np.corrcoef(ranks)[np.triu_indices(len(LAWS), 1)]
    assert np.max(np.abs(correlation)) < 4 / np.sqrt(4000)


def test_log_prior_is_that_of_scipy(draws):
    theta = jax.tree.map(lambda leaf: leaf[7], draws)
    expected = sum(LAWS[name][1].logpdf(float(theta[name])) for name in LAWS)
    found = jax.jit(lambda theta: log_prior(PRIOR, theta))(theta)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert log_prior({}, {}) == 0


def test_adding_a_parameter_leaves_the_other_draws_as_they_were():
    key = jax.random.key(1)
    few = {"b": dist.Normal(), "a": dist.Normal()}
    more = {"a": dist.Normal(), "new": dist.Normal(), "b": dist.Normal()}
    one, other = sample_prior(key, few), sample_prior(key, more)
    assert one["a"] == other["a"] and one["b"] == other["b"]
    assert len({float(draw) for draw in other.values()}) == 3


def test_the_key_of_a_name_does_not_depend_on_the_process():
    # crc32("beta"), as any implementation of it gives.
    expected = jax.random.fold_in(jax.random.key(0), 0x8F910463)
    found = fold_name(jax.random.key(0), "beta")
    assert jnp.all(jax.random.key_data(found) == jax.random.key_data(expected))


def test_a_prior_may_depend_on_earlier_parameters():
    prior = {
        "scale": dist.Uniform(1.0, 100.0),
        "x": lambda theta: dist.Uniform(0.0, theta["scale"]),
    }
    keys = jax.random.split(jax.random.key(2), 4000)
    thetas = jax.jit(jax.vmap(lambda key: sample_prior(key, prior)))(keys)
    assert stats.kstest(thetas["x"] / thetas["scale"], "uniform").pvalue > 1e-3
    theta = {"scale": jnp.asarray(10.0), "x": jnp.asarray(3.0)}
    np.testing.assert_allclose(log_prior(prior, theta), -np.log(99) - np.log(10), rtol=1e-6)
    real = to_unconstrained(prior, theta)
    np.testing.assert_allclose(real["x"], np.log(0.3 / 0.7), rtol=1e-5)
    np.testing.assert_allclose(from_unconstrained(prior, real)["x"], 3.0, rtol=1e-5)


def test_a_prior_in_the_wrong_order_is_refused():
    prior = {"x": lambda theta: dist.Normal(theta["late"], 1.0), "late": dist.Normal()}
    with pytest.raises(ValueError, match=r"'x' asks for 'late'.*\['x', 'late'\]"):
        sample_prior(jax.random.key(0), prior)


def test_merging_keeps_the_order_and_refuses_a_clash():
    merged = merge_priors({"b": dist.Normal()}, {}, {"a": dist.Normal()})
    assert list(merged) == ["b", "a"]
    assert merge_priors() == {}
    with pytest.raises(ValueError, match=r"\['a'\]"):
        merge_priors(merged, {"a": dist.Normal()})


def test_vector_valued_parameters():
    theta = sample_prior(jax.random.key(3), VECTOR) | SHARES
    assert theta["weights"].shape == (3,)
    expected = stats.lognorm(0.5, scale=np.exp([0.0, 1.0, 2.0])).logpdf(theta["weights"]).sum()
    np.testing.assert_allclose(log_prior(VECTOR, theta), expected, rtol=1e-5)
    assert event_size(VECTOR, "weights", theta) == 3
    assert event_size(SIMPLEX, "shares", theta) == 3
    assert event_size(PRIOR, "beta", {"beta": jnp.asarray(0.5)}) == 1


def test_round_trip_to_the_real_line(draws):
    prior = PRIOR | VECTOR | SIMPLEX
    vectors = sample_prior(jax.random.key(4), VECTOR) | SHARES
    theta = jax.tree.map(lambda leaf: leaf[11], draws) | vectors
    real = jax.jit(lambda theta: to_unconstrained(prior, theta))(theta)
    assert real.keys() == prior.keys() and real["shares"].shape == (3,)
    back = jax.jit(lambda real: from_unconstrained(prior, real))(real)
    for name in prior:
        np.testing.assert_allclose(back[name], theta[name], rtol=2e-5)
    some = to_unconstrained(prior, theta, ["uniform", "beta"])
    assert list(some) == ["uniform", "beta"] and np.isclose(some["beta"], real["beta"], rtol=1e-6)


@LAW
def test_the_density_on_the_real_line_integrates_to_one(name):
    prior = {name: PRIOR[name]}
    grid = jnp.linspace(-30.0, 30.0, 20_001)
    density = jax.jit(jax.vmap(lambda x: jnp.exp(log_prior_unconstrained(prior, {name: x}))))(grid)
    # The trapezium rule is exact to rounding for a smooth density that has died out at both ends.
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, rtol=1e-4)


BOUNDED = {
    "truncated": (dist.TruncatedNormal(0.4, 0.5, low=0.0), 0.0, None),
    "truncated_twice": (dist.TruncatedNormal(0.4, 0.5, low=-0.3, high=1.7), -0.3, 1.7),
    "uniform": (dist.Uniform(2.0, 4.0), 2.0, 4.0),
    "beta": (dist.Beta(2.0, 5.0), 0.0, 1.0),
    "exponential": (dist.Exponential(1e4), 0.0, None),
    "half_cauchy": (dist.HalfCauchy(1.0), 0.0, None),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_draw_on_the_edge_of_its_support_is_moved_inside(name, monkeypatch):
    distribution, low, high = BOUNDED[name]
    for bound in (low, high):
        if bound is None:
            continue
        # What rounding does once in some millions of draws.
        monkeypatch.setattr(distribution, "sample", lambda key, at=bound: jnp.float32(at))
        theta = sample_prior(jax.random.key(0), {"x": distribution})
        x = float(theta["x"])
        assert (x > np.float32(low)) and (high is None or x < np.float32(high))
        assert abs(x - bound) < 1e-6 * max(1.0, abs(bound))
        real = to_unconstrained({"x": distribution}, theta)
        assert np.isfinite(real["x"])
        assert np.isfinite(log_prior({"x": distribution}, theta))
        assert np.isfinite(log_prior_unconstrained({"x": distribution}, real))
        if low == 0.0:
            assert np.isfinite(np.log(theta["x"]))


def test_a_share_of_zero_is_moved_inside(monkeypatch):
    distribution = dist.Dirichlet(jnp.ones(3))
    monkeypatch.setattr(distribution, "sample", lambda key: jnp.array([0.0, 0.25, 0.75]))
    shares = sample_prior(jax.random.key(0), {"shares": distribution})["shares"]
    assert np.all(shares > 0)
    np.testing.assert_allclose(np.sum(shares), 1.0, rtol=1e-6)


def test_draws_inside_are_left_alone(monkeypatch):
    distribution = dist.Uniform(2.0, 4.0)
    monkeypatch.setattr(distribution, "sample", lambda key: jnp.float32(2.5))
    assert sample_prior(jax.random.key(0), {"x": distribution})["x"] == 2.5
