"""Evidence of many series at once, held against quadrature, and Bayes factors from it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import sgjax as sg
from sgjax.observations import Observed
from sgjax.references import evidence, grid_posterior, mechanism_posterior

TIMES = np.arange(1.0, 9.0)
SD = 0.05


def study(prior: dist.Distribution, sd: float = SD) -> sg.Study:
    return sg.Study(
        sg.simulators.ExponentialDecay(prior={"rate": prior}, ts=TIMES),
        sg.observations.Gaussian(sd=sd, prior={}),
        sg.Estimate(),
    )


def record(values: np.ndarray) -> Observed:
    values = np.asarray(values, np.float32)[..., None]
    ts = np.broadcast_to(TIMES.astype(np.float32), values.shape[:2])
    return Observed(jnp.asarray(ts), jnp.asarray(values), jnp.ones(values.shape, bool))


def by_quadrature(values: np.ndarray, low: float, high: float, sd: float = SD) -> float:
    """Log evidence under a uniform prior."""
    grid = np.linspace(low, high, 20_001)
    course = np.exp(-grid[:, None] * TIMES)
    logs = stats.norm.logpdf(values, course, sd).sum(axis=1)
    peak = logs.max()
    return peak + np.log(integrate.simpson(np.exp(logs - peak), x=grid) / (high - low))


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    """Of rates inside the prior, at its edge, and far outside it."""
    rates = np.array([0.2, 0.35, 0.101, 0.499, 0.9])
    noise = np.random.default_rng(0).normal(0, SD, (rates.size, TIMES.size))
    return np.exp(-rates[:, None] * TIMES) + noise


def test_it_is_the_integral(series):
    world = study(dist.Uniform(0.1, 0.5))
    found = evidence(world, "ExponentialDecay", record(series), jax.random.key(0))
    exact = np.array([by_quadrature(row, 0.1, 0.5) for row in series])
    assert found.trusted.all() and (found.ess >= 1000).all() and (found.error < 0.05).all()
    # float32 likelihoods of the series far outside are of size 1e2: a rounding of 1e-4 beside.
    assert np.all(np.abs(found.log_evidence - exact) < 4 * found.error + 1e-3)


@pytest.mark.slow
def test_its_error_is_that_of_repeats(series):
    world, few = study(dist.Uniform(0.1, 0.5)), record(series[:2])
    repeats = [
        evidence(world, "ExponentialDecay", few, jax.random.key(n), num_samples=256, min_ess=0.0)
        for n in range(40)
    ]
    spread = np.std([each.log_evidence for each in repeats], axis=0, ddof=1)
    told = np.mean([each.error for each in repeats], axis=0)
    assert np.all(np.abs(np.log(spread / told)) < 4 * np.sqrt(1 / 78))


@pytest.mark.slow
def test_more_draws_are_taken_where_few_are_effective(series):
    world = study(dist.Uniform(0.1, 0.5))
    found = evidence(
        world, "ExponentialDecay", record(series), jax.random.key(0), num_samples=256,
        min_ess=300.0, max_samples=4096,
    )  # fmt: skip
    assert (found.num_samples > 256).all() and (found.ess >= 300).all()


@pytest.mark.slow
def test_it_is_the_grids_for_outbreaks():
    """Two unknowns and counts; one posterior lies inside the prior's box, one leans on it."""
    rates = {"beta": dist.Uniform(0.2, 0.6), "gamma": dist.Uniform(0.1, 0.3)}
    world = {"population": 1e4, "initial_infectious": 20.0, "ts": range(1, 31)}
    outbreak = sg.Study(
        sg.simulators.SIR(prior=rates, **world),
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        sg.Estimate(),
    )
    observed = sg.SimulationStream(outbreak, jax.random.key(5), 8).take(2).observed
    # The one that leans is bent and thin at its ends, where few draws would find it.
    assert all(
        evidence(outbreak, "SIR", observed, jax.random.key(n)).trusted.all() for n in range(2, 13)
    )
    found = evidence(outbreak, "SIR", observed, jax.random.key(1))
    assert found.trusted.all()
    for row in range(2):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], observed)
        exact = grid_posterior(outbreak, "SIR", one, tolerance=5e-3).log_evidence
        assert exact is not None
        assert abs(found.log_evidence[row] - exact) < 4 * found.error[row] + 5e-3


@pytest.mark.slow
def test_bayes_factors_are_calibrated():
    """Two priors as two mechanisms: the posterior probability is a frequency."""
    low, high = study(dist.Uniform(0.1, 0.4)), study(dist.Uniform(0.2, 0.6))
    batches = [
        sg.SimulationStream(w, jax.random.key(n), 32).take(32) for n, w in enumerate((low, high))
    ]
    values = np.concatenate([np.asarray(each.observed.values)[..., 0] for each in batches])
    observed = record(values)
    evidences = {
        name: evidence(world, "ExponentialDecay", observed, jax.random.key(2))
        for name, world in (("low", low), ("high", high))
    }
    probability = mechanism_posterior(evidences)["high"]
    truth = np.repeat([0.0, 1.0], 32)
    error = np.sqrt(np.sum(probability * (1 - probability)))
    assert abs(np.sum(truth - probability)) < 4 * error
    exact = np.array(
        [by_quadrature(row, 0.2, 0.6) - by_quadrature(row, 0.1, 0.4) for row in values]
    )
    expected = 1 / (1 + np.exp(-exact))
    np.testing.assert_allclose(probability, expected, atol=0.05)
    other = mechanism_posterior(evidences, prior={"low": 3.0, "high": 1.0})["high"]
    np.testing.assert_allclose(
        other, probability / (probability + 3 * (1 - probability)), rtol=1e-6
    )


def test_wrong_input_is_one_message(series):
    world = study(dist.Uniform(0.1, 0.5))
    with pytest.raises(ValueError, match="No mechanism 'SIR'"):
        evidence(world, "SIR", record(series), jax.random.key(0))
    with pytest.raises(ValueError, match=r"series \[1\] have values that are not finite"):
        broken = np.where(np.arange(5)[:, None] == 1, np.nan, series)
        evidence(world, "ExponentialDecay", record(broken), jax.random.key(0))
