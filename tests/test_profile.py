"""Profile likelihoods of many series at once, held against parabolas in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from worlds import SD, TIMES, Constant, Polynomial, record

import sgjax as sg
from sgjax.observations import Observed
from sgjax.references import profile_likelihood

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """Series of eight measurements of a level with unit noise."""
    random = np.random.default_rng(0)
    return random.normal(random.normal(size=(5, 1)), 1.0, (5, 8))


def constant(values: np.ndarray) -> Observed:
    ts = np.broadcast_to(np.arange(1.0, 9.0, dtype=np.float32), values.shape)
    values = jnp.asarray(values, jnp.float32)[..., None]
    return Observed(jnp.asarray(ts), values, jnp.ones(values.shape, bool))


def test_the_only_parameter_has_the_likelihood_itself(levels):
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    found = profile_likelihood(study, "Constant", constant(levels), "level", KEY)
    mean = levels.mean(axis=1)
    exact = stats.norm.logpdf(levels[:, None], found.values[None, :, None]).sum(axis=2)
    np.testing.assert_allclose(found.log_likelihood, exact, atol=1e-4)
    # In standard errors, 1/sqrt(8): the top is as flat as rounding of the likelihood allows.
    np.testing.assert_allclose(found.estimate, mean, atol=0.01 / np.sqrt(8))
    half = np.sqrt(stats.chi2.ppf(0.95, 1) / 8)
    np.testing.assert_allclose(found.low, mean - half, atol=0.001 / np.sqrt(8))
    np.testing.assert_allclose(found.high, mean + half, atol=0.001 / np.sqrt(8))
    assert (found.verdict == "identified").all()


def test_other_parameters_are_maximised():
    """A line with normal errors: the profile of a coefficient is the parabola of its estimate."""
    prior = {"c0": dist.Normal(0.0, 3.0), "c1": dist.Normal(0.0, 3.0)}
    study = sg.Study(Polynomial(prior), sg.observations.Gaussian(sd=SD, prior={}), sg.Estimate())
    random = np.random.default_rng(1)
    truth = random.normal(0, 1, (6, 2))
    values = truth[:, :1] + truth[:, 1:] * TIMES + random.normal(0, SD, (6, TIMES.size))
    mask = np.ones(values.shape, bool)
    mask[0, 4:] = False
    records = [record(row, seen) for row, seen in zip(values, mask, strict=True)]
    observed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    found = profile_likelihood(study, "Polynomial", observed, "c1", KEY, values=15, level=0.9)
    assert found.converged.all()
    for row, seen in enumerate(mask):
        x = np.stack([np.ones(TIMES.size), TIMES], axis=1)[seen]
        best = np.linalg.lstsq(x, values[row][seen], rcond=None)[0]
        error = SD * np.sqrt(np.linalg.inv(x.T @ x)[1, 1])
        drop = ((found.values - best[1]) / error) ** 2 / 2
        top = stats.norm.logpdf(values[row][seen], x @ best, SD).sum()
        np.testing.assert_allclose(found.log_likelihood[row], top - drop, rtol=1e-4, atol=2e-3)
        assert abs(found.maximum[row] - top) < 2e-3
        half = stats.norm.ppf(0.95) * error
        assert abs(found.low[row] - (best[1] - half)) < 0.01 * error
        assert abs(found.high[row] - (best[1] + half)) < 0.01 * error


class Share(Polynomial):
    """Only the product of `size` and `share` is seen."""

    def simulate(self, key, theta):
        level = jnp.broadcast_to(theta["size"] * theta["share"], self.ts.shape)
        return sg.simulators.Latent(jnp.asarray(self.ts, level.dtype), level[:, None], None)


@pytest.mark.slow
def test_what_only_a_product_shows_is_flat_and_what_nothing_bounds_is_open():
    prior = {"size": dist.LogUniform(1e-2, 1e2), "share": dist.Uniform(0.1, 0.9)}
    study = sg.Study(Share(prior), sg.observations.Gaussian(sd=SD, prior={}), sg.Estimate())
    # One series shows a product of 2, the other of nothing.
    records = [record(np.full(TIMES.size, level)) for level in (2.0, 0.0)]
    observed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    share = profile_likelihood(study, "Share", observed, "share", KEY, values=5)
    assert share.verdict.tolist() == ["flat", "flat"]
    size = profile_likelihood(study, "Share", observed, "size", KEY, values=9)
    assert size.verdict.tolist() == ["identified", "open below"]
    half = np.sqrt(stats.chi2.ppf(0.95, 1) / TIMES.size) * SD
    np.testing.assert_allclose(size.low, [(2 - half) / 0.9, -np.inf], rtol=0.01)
    np.testing.assert_allclose(size.high, [(2 + half) / 0.1, half / 0.1], rtol=0.01)
    assert "open below" in str(size)


def test_wrong_input_is_one_message(levels, unchecked):
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    good = constant(levels)

    def call(name="level", observed=good, **options):
        return profile_likelihood(study, "Constant", observed, name, KEY, **options)

    for message, options in (
        ("no unknown 'slope'; its unknowns are", {"name": "slope"}),
        ("`values` must be at least 3; got 2", {"values": 2}),
        ("at least 3 finite numbers", {"values": np.array([0.0, np.nan, 1.0])}),
        ("`values` must increase", {"values": [0.0, 2.0, 1.0]}),
        ("`level` must be between 0 and 1", {"level": 95}),
        ("`starts` must be at least 1", {"starts": 0}),
        ("`bounds` must be", {"bounds": "box"}),
        ("values that are not finite", {"observed": constant(np.full((1, 8), np.inf))}),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options)
