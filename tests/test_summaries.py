"""Posterior means, sds and quantiles of many series at once, held against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sgjax as sg
from sgjax.observations import Observed
from sgjax.references import posterior_summaries
from sgjax.references.summaries import weighted_quantiles

TIMES = np.arange(1.0, 9.0)
SD, LOW, HIGH = 0.05, 0.1, 0.5
LEVELS = (0.05, 0.5, 0.95)
ASKED = {"rate": lambda theta: theta["rate"], "half-life": lambda t: np.log(2) / t["rate"]}


@pytest.fixture(scope="module")
def study() -> sg.Study:
    return sg.Study(
        sg.simulators.ExponentialDecay(prior={"rate": dist.Uniform(LOW, HIGH)}, ts=TIMES),
        sg.observations.Gaussian(sd=SD, prior={}),
        sg.Estimate(),
    )


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    """Of rates inside the prior, at its edges, and far outside it."""
    rates = np.array([0.2, 0.35, 0.101, 0.499, 0.9])
    noise = np.random.default_rng(0).normal(0, SD, (rates.size, TIMES.size))
    return np.exp(-rates[:, None] * TIMES) + noise


def record(values: np.ndarray) -> Observed:
    values = np.asarray(values, np.float32)[..., None]
    ts = np.broadcast_to(TIMES.astype(np.float32), values.shape[:-1])
    return Observed(jnp.asarray(ts), jnp.asarray(values), jnp.ones(values.shape, bool))


def by_quadrature(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A fine grid of rates with its weights."""
    edges = np.linspace(LOW, HIGH, 40_001)
    grid = (edges[1:] + edges[:-1]) / 2
    logs = stats.norm.logpdf(values, np.exp(-grid[:, None] * TIMES), SD).sum(axis=1)
    weights = np.exp(logs - logs.max())
    return grid, weights / weights.sum()


def test_they_are_the_integrals(study, series):
    found = posterior_summaries(
        study, "ExponentialDecay", record(series), jax.random.key(0), ASKED, levels=LEVELS
    )
    assert found.trusted.all() and (found.ess >= 1000).all()
    for row, values in enumerate(series):
        grid, weights = by_quadrature(values)
        for name, numbers in (("rate", grid), ("half-life", np.log(2) / grid)):
            mean = weights @ numbers
            sd = np.sqrt(weights @ (numbers - mean) ** 2)
            error = found.error[name][row]
            # float32 likelihoods far from the prior are rounded by 1e-4.
            assert abs(found.mean[name][row] - mean) < 4 * error + 1e-3 * sd
            assert error < 0.05 * sd
            assert abs(found.sd[name][row] / sd - 1) < 4 / np.sqrt(found.ess[row])
            # A quantile's share of the exact law has the binomial error of as many draws.
            shares = [weights @ (numbers <= each) for each in found.quantiles[name][row]]
            errors = np.sqrt(np.multiply(LEVELS, np.subtract(1, LEVELS)) / found.ess[row])
            assert np.all(np.abs(np.subtract(shares, LEVELS)) < 4 * errors)


@pytest.mark.slow
def test_errors_of_two_keys_are_independent(study, series):
    """The product of two differences has no share of the references' own error."""
    draw = lambda seed: posterior_summaries(
        study, "ExponentialDecay", record(series[:2]), jax.random.key(seed), ASKED,
        num_samples=1024, min_ess=0.0,
    ).mean["rate"]  # fmt: skip
    means = np.stack([draw(seed) for seed in range(100)])
    exact = np.array([np.dot(*by_quadrature(values)) for values in series[:2]])
    gaps = means - exact
    products = gaps[::2] * gaps[1::2]
    error = products.std(axis=0, ddof=1) / np.sqrt(len(products))
    assert np.all(np.abs(products.mean(axis=0)) < 4 * error)
    assert np.all((gaps**2).mean(axis=0) > 4 * error)


def test_one_series_alone(study, series):
    one = jax.tree.map(lambda leaf: leaf[0], record(series))
    found = posterior_summaries(study, "ExponentialDecay", one, jax.random.key(0), ASKED)
    assert found.mean["rate"].shape == (1,)
    assert found.quantiles["rate"].shape == (1, 5)


def test_quantiles_of_equal_weights_are_those_of_the_sample():
    values = np.random.default_rng(1).normal(size=1001)
    found = weighted_quantiles(values, np.full(1001, 1 / 1001), (0.25, 0.5, 0.75))
    np.testing.assert_allclose(found, np.quantile(values, (0.25, 0.5, 0.75), method="hazen"))


def test_wrong_input_is_one_message(study, series):
    ask = lambda asked, **options: posterior_summaries(
        study, "ExponentialDecay", record(series), jax.random.key(0), asked, **options
    )
    with pytest.raises(ValueError, match="`quantities` is empty"):
        ask({})
    with pytest.raises(ValueError, match=r"within \(0, 1\); got \[0.0\]"):
        ask(ASKED, levels=(0.0,))
    with pytest.raises(ValueError, match="no recorded value"):
        empty = record(series)
        posterior_summaries(
            study, "ExponentialDecay", Observed(empty.ts, empty.values, empty.mask & False),
            jax.random.key(0), ASKED,
        )  # fmt: skip
