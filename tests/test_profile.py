"""Profile likelihoods, held against closed forms: a parabola, and parameters no data can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from worlds import SD, TIMES, regression

import sgjax as sg
from sgjax.observations import Observed
from sgjax.references import Profile, profile_likelihood


class Product(sg.simulators.AbstractSimulator):
    """A level of which only the product of two parameters is seen."""

    prior = {"a": dist.Uniform(1.0, 2.0), "b": dist.Uniform(1.0, 2.0)}  # noqa: RUF012
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["a"] * theta["b"], (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


@pytest.fixture(scope="module")
def product() -> sg.Study:
    return sg.Study(Product(), sg.observations.Gaussian(sd=0.1, prior={}), sg.Estimate())


def record(values: np.ndarray, ts: np.ndarray) -> Observed:
    values = jnp.asarray(values, jnp.float32)[..., None]
    times = jnp.broadcast_to(jnp.asarray(ts, jnp.float32), values.shape[:-1])
    return Observed(times, values, jnp.ones(values.shape, bool))


def test_a_line_has_a_parabola():
    study = regression(2)
    random = np.random.default_rng(0)
    values = 0.5 - 0.8 * TIMES + SD * random.normal(size=(6, TIMES.size))
    found = profile_likelihood(
        study, "Polynomial", record(values, TIMES), "c1", jax.random.key(0), points=12
    )
    design = np.stack([np.ones_like(TIMES), TIMES], axis=1)
    best = np.linalg.lstsq(design, values.T, rcond=None)[0][1]
    error = SD * np.sqrt(np.linalg.inv(design.T @ design)[1, 1])
    assert found.converged.all() and found.values.shape == (6, 24)
    drop = found.log_likelihood.max(axis=1, keepdims=True) - found.log_likelihood
    z = (found.values - best[:, None]) / error
    least = np.min(z**2, axis=1, keepdims=True)  # the estimate is one of the values tried
    np.testing.assert_allclose(drop, (z**2 - least) / 2, atol=2e-3, rtol=1e-3)
    expected = best[:, None] + 1.96 * error * np.array([-1, 1])
    np.testing.assert_allclose(found.interval, expected, atol=0.05 * error)
    assert found.verdicts == ["identified"] * 6


def test_only_a_product_is_seen(product):
    """a b = 2 can be had with any a; 3.6 only with an a of 1.8 at least, 1.1 with 1.1 at most."""
    random = np.random.default_rng(1)
    noise = 0.1 * random.normal(size=(3, 8))
    values = np.array([[2.0], [3.6], [1.1]]) + noise - noise.mean(axis=1, keepdims=True)
    found = profile_likelihood(product, "Product", record(values, np.arange(1.0, 9.0)), "a",
                               jax.random.key(0))  # fmt: skip
    assert found.verdicts == ["flat", "open above", "open below"]
    means = values.mean(axis=1)
    assert abs(found.interval[1, 0] - (means[1] - 1.96 * 0.1 / np.sqrt(8)) / 2) < 0.02
    assert abs(found.interval[2, 1] - (means[2] + 1.96 * 0.1 / np.sqrt(8))) < 0.02
    assert np.isinf(found.interval[0]).all()


def test_a_series_without_a_fit_is_told():
    found = Profile(
        "M", "a", np.arange(3.0)[None], np.full((1, 3), -np.inf), np.zeros((1, 3), bool), 0.95
    )
    assert found.verdicts == ["no fit"] and np.isnan(found.interval).all()


def test_wrong_input_is_one_message(product):
    ask = lambda name, **options: profile_likelihood(
        product, "Product", record(np.ones((1, 8)), np.arange(8.0)), name, jax.random.key(0),
        **options,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'c' is no unknown parameter; those are \['a', 'b'\]"):
        ask("c")
    with pytest.raises(ValueError, match="three finite values"):
        ask("a", values=[1.0, 2.0])
    with pytest.raises(ValueError, match="only unknown parameter"):
        line = regression(1)
        profile_likelihood(
            line, "Polynomial", record(np.ones((1, 9)), TIMES), "c0", jax.random.key(0)
        )
