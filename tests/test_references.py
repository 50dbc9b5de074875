"""References against closed forms, against each other, and the stored ones for consistency."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jaxtyping import Array
from worlds import MASK, SD, TIMES, VALUES, Polynomial, record, regression

from sgjax import datasets
from sgjax._types import Prior, Times, as_times
from sgjax.observations import Gaussian, MissingAtRandom, Observed, Poisson
from sgjax.references import (
    compute_reference,
    grid,
    grid_posterior,
    linear_gaussian_posterior,
    load_reference,
    log_joint,
    mechanism_probabilities,
    nuts_posterior,
)
from sgjax.references.likelihood import LogJoint, compiled
from sgjax.simulators import AbstractSimulator, Latent
from sgjax.studies import influenza_1978
from sgjax.study import Study
from sgjax.tasks import Estimate


def regression_truth(size: int, values: np.ndarray, mask: np.ndarray):
    """Mean, covariance and log evidence of the linear-Gaussian world in closed form."""
    design = np.stack([TIMES**power for power in range(size)], axis=1)[mask]
    scales = 1.0 + np.arange(size)
    exact = linear_gaussian_posterior(
        design, values[mask], SD, 0.3 * np.arange(size), np.diag(scales**2)
    )
    return exact.mean, exact.covariance, exact.log_evidence


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_grid_is_exact_in_a_linear_gaussian_world(size):
    mean, covariance, evidence = regression_truth(size, VALUES, MASK)
    posterior = grid_posterior(
        regression(size),
        "Polynomial",
        record(VALUES, MASK),
        points={1: None, 2: 60, 3: 32, 4: 24}[size],
    )
    assert posterior.log_evidence == pytest.approx(evidence, abs=1e-4)
    for index in range(size):
        name, sd = f"c{index}", np.sqrt(covariance[index, index])
        assert posterior.mean(name) == pytest.approx(mean[index], abs=1e-4 * sd)
        assert posterior.sd(name) == pytest.approx(sd, rel=1e-4)
        levels = np.array([0.01, 0.05, 0.5, 0.95, 0.99])
        expected = mean[index] + sd * scipy.stats.norm.ppf(levels)
        np.testing.assert_allclose(posterior.quantile(name, levels), expected, atol=2e-3 * sd)
    assert posterior.mean("double") == pytest.approx(2 * mean[0] + 1, abs=1e-3)
    assert posterior.diagnostics["log_evidence_error"] < 1e-3
    assert posterior.diagnostics["border_mass"] < 1e-5


def test_grid_is_exact_for_a_positive_parameter():
    """Gamma prior and Poisson counts: the Jacobian of the map to the real line is in."""
    shape, rate = 3.0, 0.5
    counts = np.array([4, 7, 5, 3, 8, 6, 4, 5, 6], float)
    study = Study(
        simulator=Polynomial({"c0": dist.Gamma(shape, rate)}),
        observation=Poisson(),
        task=Estimate(derived={"inverse": lambda theta: 1 / theta["c0"]}),
    )
    posterior = grid_posterior(study, "Polynomial", record(counts))
    truth = scipy.stats.gamma(shape + counts.sum(), scale=1 / (rate + counts.size))
    # The evidence is the ratio of prior times likelihood to posterior, at any point.
    likelihood = scipy.stats.poisson(5.0).logpmf(counts).sum()
    prior = scipy.stats.gamma(shape, scale=1 / rate).logpdf(5.0)
    assert posterior.log_evidence == pytest.approx(prior + likelihood - truth.logpdf(5.0), abs=1e-4)
    assert posterior.mean("c0") == pytest.approx(truth.mean(), rel=1e-4)
    assert posterior.sd("c0") == pytest.approx(truth.std(), rel=1e-4)
    levels = np.array([0.05, 0.5, 0.95])
    np.testing.assert_allclose(posterior.quantile("c0", levels), truth.ppf(levels), rtol=1e-4)
    np.testing.assert_allclose(
        posterior.quantile("inverse", levels), 1 / truth.ppf(1 - levels), rtol=1e-4
    )


def test_grid_holds_two_modes():
    """The sign of a squared parameter is not identified; both halves count."""

    class Square(AbstractSimulator):
        prior: Prior
        ts: Times = eqx.field(converter=as_times, default_factory=lambda: TIMES)
        channels = ("level",)

        def simulate(self, key, theta):
            values = jnp.full((self.ts.size, 1), theta["a"] ** 2)
            return Latent(jnp.asarray(self.ts, values.dtype), values, None)

    study = Study(
        Square({"a": dist.Normal(0.0, 2.0)}), Gaussian(sd=SD, prior={}), Estimate(), (), "square"
    )
    values = VALUES + 3
    posterior = grid_posterior(study, "Square", record(values))
    line = np.linspace(-8, 8, 20001)
    joint = scipy.stats.norm(0, 2).logpdf(line)
    joint += scipy.stats.norm(line[:, None] ** 2, SD).logpdf(values).sum(axis=1)
    evidence = np.log(np.sum(np.exp(joint - joint.max())) * 16 / 20000) + joint.max()
    assert posterior.log_evidence == pytest.approx(evidence, abs=1e-3)
    assert posterior.mean("a") == pytest.approx(0.0, abs=1e-3)


@pytest.fixture(scope="module")
def chains():
    return nuts_posterior(
        regression(2),
        "Polynomial",
        record(VALUES, MASK),
        jax.random.key(3),
        num_warmup=300,
        num_samples=400,
    )


def test_nuts_agrees_with_the_grid(chains):
    exact = grid_posterior(regression(2), "Polynomial", record(VALUES, MASK))
    errors = chains.diagnostics["mcse"]
    for name, row in exact.summary().items():
        for entry, value in row.items():
            assert abs(chains.summary()[name][entry] - value) < 4 * errors[name][entry]
            assert errors[name][entry] < 0.15 * row["sd"]
    assert max(chains.diagnostics["r_hat"].values()) < 1.01
    assert min(chains.diagnostics["ess"].values()) > 1000
    assert chains.diagnostics["warning"] is None
    assert chains.log_evidence is None


def test_nuts_agrees_with_the_closed_form(chains):
    mean, covariance, _ = regression_truth(2, VALUES, MASK)
    correlation = np.corrcoef(chains.values["c0"], chains.values["c1"])[0, 1]
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    ess = chains.diagnostics["ess"]["c1"]
    assert abs(correlation - expected) < 4 / np.sqrt(ess)
    assert abs(chains.mean("c1") - mean[1]) < 4 * np.sqrt(covariance[1, 1] / ess)


@pytest.mark.slow
def test_nuts_says_where_it_has_not_converged():
    with pytest.warns(UserWarning, match="R-hat"):
        short = nuts_posterior(
            regression(1),
            "Polynomial",
            record(VALUES),
            jax.random.key(0),
            num_warmup=1,
            num_samples=8,
        )
    assert "num_warmup" in short.diagnostics["warning"]


def test_log_joint_of_one_point_is_that_of_a_batch():
    joint = log_joint(regression(3), "Polynomial", record(VALUES, MASK))
    vectors = jax.random.normal(jax.random.key(0), (5, 3))
    single = jax.jit(lambda vector: joint(joint.split(vector)))
    together = jax.jit(lambda vectors: joint.batch(vectors))(vectors)
    np.testing.assert_allclose(together, [single(vector) for vector in vectors], rtol=1e-6)
    assert joint.size == 3


def test_records_of_one_study_share_their_programs():
    study = regression(2)
    first, second = (
        compiled(log_joint(study, "Polynomial", record(values)), LogJoint.batch)
        for values in (VALUES, VALUES + 1)
    )
    vectors = jnp.zeros((3, 2))
    assert not np.allclose(first(vectors), second(vectors))
    assert first.func is second.func and first.func._cache_size() == 1


def test_known_parameters_are_conditioned_on():
    """With the intercept known, and the slope's prior a function of it, one unknown is left."""
    prior = {"c0": dist.Normal(0.0, 1.0), "c1": lambda theta: dist.Normal(theta["c0"], 2.0)}
    study = Study(Polynomial(prior), Gaussian(sd=SD, prior={}), Estimate("c1"), known=("c0",))
    known: dict[str, Array] = {"c0": jnp.asarray(0.8)}
    posterior = grid_posterior(study, "Polynomial", record(VALUES), known=known)
    precision = 1 / 2.0**2 + (TIMES**2).sum() / SD**2
    mean = (0.8 / 2.0**2 + (TIMES * (VALUES - 0.8)).sum() / SD**2) / precision
    assert set(posterior.values) == {"c1"}
    assert posterior.mean("c1") == pytest.approx(mean, abs=1e-4)
    assert posterior.sd("c1") == pytest.approx(precision**-0.5, rel=1e-4)
    with pytest.raises(ValueError, match="must name"):
        grid_posterior(study, "Polynomial", record(VALUES))


def test_normal_mean_in_closed_form():
    """Precisions add; the evidence is that of a normal with everything correlated."""
    values, prior = np.array([1.0, 2.5, 0.3]), (np.array([2.0]), np.array([[4.0]]))
    exact = linear_gaussian_posterior(np.ones((3, 1)), values, 0.5, *prior)
    precision = 1 / 4 + 3 / 0.25
    assert exact.mean[0] == pytest.approx((2 / 4 + values.sum() / 0.25) / precision)
    assert exact.sd[0] == pytest.approx(precision**-0.5)
    marginal = scipy.stats.multivariate_normal(np.full(3, 2.0), 0.25 * np.eye(3) + 4.0)
    assert exact.log_evidence == pytest.approx(marginal.logpdf(values))
    with pytest.raises(ValueError, match="design"):
        linear_gaussian_posterior(np.ones((2, 1)), values, 0.5, *prior)
    with pytest.raises(ValueError, match="positive"):
        linear_gaussian_posterior(np.ones((3, 1)), values, 0.0, *prior)


def test_wrong_use_raises():
    values = record(VALUES)
    with pytest.raises(ValueError, match="5 unknowns"):
        grid_posterior(regression(5), "Polynomial", values)
    with pytest.raises(ValueError, match="No mechanism 'SIR'"):
        log_joint(regression(1), "SIR", values)
    with pytest.raises(ValueError, match="draws chance"):
        log_joint(regression(1, jitter=0.1), "Polynomial", values)
    with pytest.raises(ValueError, match="shape"):
        log_joint(regression(1, ts=TIMES[:4]), "Polynomial", values)
    with pytest.raises(ValueError, match="border"):
        grid_posterior(regression(1), "Polynomial", values, max_border=1e-12)
    with pytest.raises(ValueError, match="still changes"):
        grid_posterior(regression(1), "Polynomial", values, tolerance=0.0, max_evaluations=1000)
    with pytest.raises(ValueError, match="finite density"):
        grid_posterior(regression(1), "Polynomial", record(np.full(9, np.inf)))
    with pytest.raises(ValueError, match="2 chains"):
        nuts_posterior(regression(1), "Polynomial", values, jax.random.key(0), num_chains=1)
    study = regression(1)
    lossy = Study(study.simulator, MissingAtRandom(), study.task)
    with pytest.raises(ValueError, match="noise"):
        grid_posterior(lossy, "Polynomial", values)


def test_mass_outside_the_grid_raises(monkeypatch):
    def too_small(*arguments):
        frame = place(*arguments)
        return frame._replace(low=frame.low / 4, high=frame.high / 4)

    place = grid.place
    monkeypatch.setattr(grid, "place", too_small)
    with pytest.raises(ValueError, match="second mode"):
        grid_posterior(regression(1), "Polynomial", record(VALUES), max_border=1.0)


def test_mechanism_probabilities():
    weighed = mechanism_probabilities({"a": -1000.0, "b": -1000.0 + np.log(3)})
    assert weighed == pytest.approx({"a": 0.25, "b": 0.75})
    prior = {"a": 0.75, "b": 0.25}
    assert mechanism_probabilities({"a": -5.0, "b": -5.0}, prior) == pytest.approx(prior)
    with pytest.raises(ValueError, match="prior names"):
        mechanism_probabilities({"a": 0.0}, prior)


@pytest.fixture(scope="module")
def stored():
    return load_reference("influenza_1978")


def test_the_stored_reference_is_consistent(stored):
    for part in (stored, *stored["other_priors"].values()):
        evidence, weighed = part["log_evidence"], part["mechanisms"]
        assert sum(weighed.values()) == pytest.approx(1, abs=1e-7)
        assert weighed == pytest.approx(mechanism_probabilities(evidence), abs=2e-6)
        for row in part["diagnostics"].values():
            assert max(row["log_evidence_error"], row["summary_error"]) < 1e-3
            assert row["border_mass"] < 1e-5
    finer = stored["finer_substeps"]
    for mechanism, evidence in stored["log_evidence"].items():
        assert evidence == pytest.approx(finer["log_evidence"][mechanism], abs=1e-3)
        assert finer["estimate_change"][mechanism] < 5e-3


def test_the_stored_grids_and_chains_agree(stored):
    distances = []
    for mechanism, chains in stored["nuts"].items():
        assert max(chains["r_hat"].values()) < 1.01
        for name, row in stored["estimates"][mechanism].items():
            for entry, value in row.items():
                error = chains["mcse"][name][entry]
                assert error < 0.1 * row["sd"]
                distances.append((chains["estimates"][name][entry] - value) / error)
    assert np.max(np.abs(distances)) < 4
    # Chains that agreed far better than chance would not be independent of the grid.
    assert np.sqrt(np.mean(np.square(distances))) > 0.2


def test_loading_what_is_not_stored_raises():
    with pytest.raises(ValueError, match="No reference"):
        load_reference("no_such_study")


@pytest.mark.slow
def test_a_reference_is_computed_with_its_checks(growth):
    """The whole recipe on a world of one unknown, with a finer solver and another prior."""
    decay = growth.mechanisms["ExponentialDecay"]
    signal = decay.simulate(jax.random.key(0), {"rate": jnp.asarray(1.2)})
    other = dataclasses.replace(
        growth, simulator=dataclasses.replace(decay, prior={"rate": dist.LogNormal(0.5, 0.5)})
    )
    reference = compute_reference(
        growth, Observed.of(signal), {"later": other}, num_chains=4, num_samples=500
    )
    row = reference["estimates"]["ExponentialDecay"]["rate"]
    assert row["q05"] < 1.2 < row["q95"]
    assert reference["mechanisms"] == {"ExponentialDecay": 1.0}
    assert reference["finer_substeps"]["estimate_change"]["ExponentialDecay"] < 1e-2
    chain = reference["nuts"]["ExponentialDecay"]
    error = chain["mcse"]["rate"]["mean"]
    assert abs(chain["estimates"]["rate"]["mean"] - row["mean"]) < 4 * error
    shifted = reference["other_priors"]["later"]["log_evidence"]["ExponentialDecay"]
    # The data decide: the evidences differ as the two prior densities at 1.2, to second order.
    densities = scipy.stats.norm([0.5, 0.0], 0.5).logpdf(np.log(1.2))
    change = shifted - reference["log_evidence"]["ExponentialDecay"]
    assert change == pytest.approx(densities[0] - densities[1], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["SIR", "SEIR"])
def test_the_stored_reference_is_reproduced(stored, mechanism):
    """In float32 too, which bounds what single precision costs."""
    values = jnp.asarray(datasets.influenza_1978.values, jnp.float32)
    ts = jnp.asarray(datasets.influenza_1978.ts, jnp.float32)
    observed = Observed(ts, values, jnp.ones(values.shape, bool))
    posterior = grid_posterior(influenza_1978(), mechanism, observed)
    assert posterior.log_evidence == pytest.approx(stored["log_evidence"][mechanism], abs=1e-3)
    for name, row in posterior.summary().items():
        for entry, value in stored["estimates"][mechanism][name].items():
            assert row[entry] == pytest.approx(value, abs=2e-3 * row["sd"])
