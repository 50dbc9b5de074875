"""Corrected posteriors against closed forms, from proposals that are wrong on purpose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from worlds import MASK, SD, TIMES, VALUES, Polynomial, record, regression

import sgjax as sg
from sgjax.predictors import ByMechanism, CannotGive, Gaussian, Posterior, Quantiles
from sgjax.references import (
    NormalPosterior,
    amortisation_break_even,
    correct,
    importance_posterior,
    linear_gaussian_posterior,
    mechanism_probabilities,
    pareto_smooth,
)
from sgjax.references.weights import fit_generalised_pareto, weigh
from sgjax.simulators import MechanismMixture

KEY = jax.random.key(0)
LEVELS = (5, 50, 95)


def exact(size, mean=None, scales=None, kept=MASK) -> NormalPosterior:
    """The closed form for `regression(size)`, by default under its own prior."""
    design = np.stack([TIMES**power for power in range(size)], axis=1)[kept]
    mean = 0.3 * np.arange(size) if mean is None else mean
    scales = 1.0 + np.arange(size) if scales is None else np.asarray(scales)
    return linear_gaussian_posterior(design, VALUES[kept], SD, mean, np.diag(scales**2))


def answer(study, laws, observed=None) -> Posterior:
    """What a predictor would say whose head gives the normal laws (mean, covariance)."""
    size = max(len(mean) for mean, _ in laws)
    rows = []
    for mean, covariance in laws:
        location, factor, present = np.zeros(size), np.eye(size), np.arange(size) < len(mean)
        location[: len(mean)] = mean
        factor[: len(mean), : len(mean)] = np.linalg.cholesky(np.linalg.inv(covariance))
        rows.append((location, factor, present))
    location, factor, present = map(np.stack, zip(*rows, strict=True))
    law = Gaussian(
        jnp.asarray(location, jnp.float32), jnp.asarray(factor, jnp.float32), jnp.asarray(present)
    )
    inputs = study.inputs(record(VALUES, MASK) if observed is None else observed)
    return Posterior(study, inputs, {}, jnp.zeros(1), {"parameters": ByMechanism(law)})


def wrong(size, shift=0.5, stretch=1.4) -> Posterior:
    """The right answer, shifted by half a standard deviation and too wide."""
    right = exact(size)
    return answer(
        regression(size), [(right.mean + shift * right.sd, stretch**2 * right.covariance)]
    )


def check(found, right: NormalPosterior):
    """Mean, sd and quantiles within four Monte Carlo standard errors, themselves small."""
    for index, (mean, sd) in enumerate(zip(right.mean, right.sd, strict=True)):
        row, errors = found.summary()[f"c{index}"], found.diagnostics["mcse"][f"c{index}"]
        truth = {"mean": mean, "sd": sd}
        truth |= {f"q{level:02}": mean + sd * scipy.stats.norm.ppf(level / 100) for level in LEVELS}
        for entry, value in truth.items():
            assert abs(row[entry] - value) < 4 * errors[entry], (index, entry)
            assert errors[entry] < 0.05 * sd
    error = found.diagnostics["log_evidence_error"]
    assert abs(found.log_evidence - right.log_evidence) < 4 * error
    assert error < 0.05


@pytest.fixture(scope="module")
def corrected():
    return importance_posterior(wrong(2), KEY)


def test_a_wrong_answer_is_put_right(corrected):
    check(corrected, exact(2))
    # The proposal itself is off by far more than the errors allow.
    assert 0.5 * exact(2).sd[0] > 20 * corrected.diagnostics["mcse"]["c0"]["mean"]
    assert corrected.mean("double") == pytest.approx(2 * corrected.mean("c0") + 1)
    assert corrected.diagnostics["trusted"]
    assert corrected.diagnostics["verdict"].startswith("Exact")


def test_the_correlation_is_right_too(corrected):
    draws = corrected.resample(jax.random.key(1), 4000)
    covariance = exact(2).covariance
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    found = np.corrcoef(draws["c0"], draws["c1"])[0, 1]
    assert abs(found - expected) < 4 / np.sqrt(4000)


def test_resampling_without_replacement_gives_different_draws(corrected):
    draws = corrected.resample(jax.random.key(2), 1000, replace=False)
    assert len(np.unique(np.stack([draws["c0"], draws["c1"]]), axis=1).T) == 1000
    right = exact(2)
    assert abs(draws["c0"].mean() - right.mean[0]) < 4 * right.sd[0] / np.sqrt(1000)
    with pytest.raises(ValueError, match="different draws"):
        corrected.resample(KEY, 30_000, replace=False)


def test_effective_sample_size():
    r"""For a proposal $s$ times too wide it is $\sqrt{2 s^2 - 1} / s^2$ of the draws."""
    s, size = 1.5, 200_000
    draws = s * np.random.default_rng(0).standard_normal(size)
    log_weights = scipy.stats.norm.logpdf(draws) - scipy.stats.norm.logpdf(draws, scale=s)
    diagnostics, weights = weigh(log_weights)
    raw = np.exp(log_weights)
    influence = 2 * raw / raw.mean() - raw**2 / np.mean(raw**2)
    share = diagnostics["ess"] / size
    error = share * influence.std() / np.sqrt(size)
    assert abs(share - np.sqrt(2 * s**2 - 1) / s**2) < 4 * error
    assert error < 0.01 * share
    assert abs(diagnostics["log_evidence"]) < 4 * diagnostics["log_evidence_error"]
    assert weights.sum() == pytest.approx(1)
    assert weigh(np.full(100, 3.0))[0]["ess"] == pytest.approx(100)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.8])
def test_generalised_pareto_fit(k):
    size = 4000
    draws = np.sort(scipy.stats.genpareto(k, scale=2.0).rvs(size, random_state=1))
    found, scale = fit_generalised_pareto(draws)
    unpulled = (found * (size + 10) - 5) / size
    # Asymptotic errors of maximum likelihood (Smith, 1987), the same to first order.
    assert abs(unpulled - k) < 4 * (1 + k) / np.sqrt(size)
    assert abs(scale / 2 - 1) < 4 * np.sqrt(2 * (1 + k) / size)


def test_smoothing_keeps_the_bulk_and_the_order():
    log_weights = np.random.default_rng(2).standard_normal(2000)
    smoothed, k = pareto_smooth(log_weights)
    tail = int(np.ceil(3 * np.sqrt(2000)))
    order = np.argsort(log_weights)
    np.testing.assert_array_equal(smoothed[order[:-tail]], log_weights[order[:-tail]])
    assert np.all(np.diff(smoothed[order]) >= 0)
    assert smoothed.max() <= log_weights.max()
    assert k < 0.5
    assert pareto_smooth(np.zeros(100)) == (pytest.approx(np.zeros(100)), 0.0)
    assert pareto_smooth(np.array([0.0, 1.0, 2.0]))[1] == np.inf


def test_too_narrow_an_answer_is_not_trusted():
    r"""A normal proposal with $s$ times the sd has weights of tail shape $1 - s^2$."""
    narrow = wrong(1, shift=0.0, stretch=0.35)
    with pytest.warns(UserWarning, match="Do not trust"):
        found = importance_posterior(narrow, KEY)
    assert found.diagnostics["pareto_k"] == pytest.approx(1 - 0.35**2, abs=0.15)
    assert not found.diagnostics["trusted"]
    # The prior as a part of the proposal bounds the weights.
    defended = importance_posterior(narrow, KEY, prior_share=0.3)
    assert defended.diagnostics["trusted"]
    check(defended, exact(1))


def test_few_effective_draws_are_called_rough():
    with pytest.warns(UserWarning, match="rough"):
        importance_posterior(wrong(1), KEY, num_samples=300)


def test_another_prior_needs_no_new_training():
    found = importance_posterior(wrong(2), KEY, prior={"c1": dist.Normal(-1.0, 0.8)})
    check(found, exact(2, np.array([0.0, -1.0]), [1.0, 0.8]))


def test_another_prior_of_smaller_support():
    """A uniform prior within the line truncates the likelihood."""
    found = importance_posterior(wrong(1), KEY, prior={"c0": dist.Uniform(0.0, 1.0)})
    likelihood_mean = VALUES[MASK].mean()
    sd = SD / np.sqrt(MASK.sum())
    ends = (np.array([0.0, 1.0]) - likelihood_mean) / sd
    truth = scipy.stats.truncnorm(*ends, likelihood_mean, sd)
    errors = found.diagnostics["mcse"]["c0"]
    assert abs(found.mean("c0") - truth.mean()) < 4 * errors["mean"]
    assert abs(found.sd("c0") - truth.std()) < 4 * errors["sd"]
    assert 0 <= found.values["c0"].min() <= found.values["c0"].max() <= 1


def test_a_positive_parameter():
    """Gamma prior and Poisson counts: the Jacobian of the map to the real line is in."""
    counts = np.array([4, 7, 5, 3, 8, 6, 4, 5, 6], float)
    study = sg.Study(
        Polynomial({"c0": dist.Gamma(3.0, 0.5)}), sg.observations.Poisson(), sg.Estimate()
    )
    posterior = answer(study, [(np.log([5.0]), np.array([[0.2**2]]))], record(counts))
    found = importance_posterior(posterior, KEY)
    truth = scipy.stats.gamma(3 + counts.sum(), scale=1 / (0.5 + counts.size))
    errors = found.diagnostics["mcse"]["c0"]
    assert abs(found.mean("c0") - truth.mean()) < 4 * errors["mean"]
    assert abs(found.sd("c0") - truth.std()) < 4 * errors["sd"]
    joint = scipy.stats.poisson(5.0).logpmf(counts).sum()
    joint += scipy.stats.gamma(3.0, scale=2.0).logpdf(5.0)
    error = found.diagnostics["log_evidence_error"]
    assert abs(found.log_evidence - (joint - truth.logpdf(5.0))) < 4 * error


def test_mechanisms_are_weighed_by_their_evidences():
    simulators = {f"degree{size - 1}": regression(size).simulator for size in (1, 2)}
    study = sg.Study(
        MechanismMixture(simulators, (0.25, 0.75), table_size=4),
        regression(1).observation,
        sg.Several(sg.Estimate(), sg.Identify()),
    )
    rights = [exact(1), exact(2)]
    laws = [(right.mean + 0.3 * right.sd, 1.5 * right.covariance) for right in rights]
    found = correct(answer(study, laws), KEY)
    for right, posterior in zip(rights, found.posteriors.values(), strict=True):
        check(posterior, right)
    evidences = {name: right.log_evidence for name, right in zip(simulators, rights, strict=True)}
    truth = mechanism_probabilities(evidences, study.mechanism_probabilities)
    for name, share in truth.items():
        assert abs(found.mechanisms[name] - share) < 4 * found.mechanism_errors[name]
        assert 0 < found.mechanism_errors[name] < 0.02
    assert found.verdict.count("Exact") == 2
    with pytest.raises(ValueError, match="Name one"):
        importance_posterior(answer(study, laws), KEY)


def test_only_what_the_predictor_saw_counts():
    """With a context, later values are missing to the likelihood as well."""
    study = dataclasses.replace(regression(1), task=sg.Estimate(context=6))
    kept = MASK & (np.arange(9) < 6)
    right = exact(1, kept=kept)
    posterior = answer(study, [(right.mean + 0.2, 2 * right.covariance)])
    check(importance_posterior(posterior, KEY), right)


def test_wrong_use_raises():
    posterior = wrong(2)
    with pytest.raises(ValueError, match="prior_share"):
        importance_posterior(posterior, KEY, prior_share=1.0)
    with pytest.raises(ValueError, match="unknown parameters"):
        importance_posterior(posterior, KEY, prior={"slope": dist.Normal(0.0, 1.0)})
    for improper in (dist.ImproperUniform(dist.constraints.real, (), ()), dist.Delta(0.0)):
        with pytest.raises(ValueError, match="no density"):
            importance_posterior(posterior, KEY, prior={"c1": improper})
    bounded = sg.Study(
        Polynomial({"c0": dist.Uniform(0.0, 1.0)}), regression(1).observation, sg.Estimate()
    )
    laws = [(np.zeros(1), np.eye(1))]
    with pytest.raises(ValueError, match="wider prior"):
        importance_posterior(answer(bounded, laws), KEY, prior={"c0": dist.Uniform(0.0, 2.0)})
    partial = dataclasses.replace(regression(2), task=sg.Estimate("c1"))
    with pytest.raises(ValueError, match="does not estimate"):
        importance_posterior(answer(partial, laws), KEY)
    with pytest.raises(ValueError, match="draws chance"):
        importance_posterior(answer(regression(1, jitter=0.1), laws), KEY)
    far = answer(bounded, laws, record(np.full(9, np.inf)))
    with pytest.raises(ValueError, match="explains the record"):
        importance_posterior(far, KEY)


def test_a_head_without_density_is_refused():
    law = ByMechanism(Quantiles(jnp.zeros((1, 1, 9)), jnp.ones((1, 1))))
    with pytest.raises(CannotGive, match="sample"):
        importance_posterior(dataclasses.replace(wrong(1), blocks={"parameters": law}), KEY)


def test_break_even():
    assert amortisation_break_even(100.0, 1.0, 5.0) == 25
    assert amortisation_break_even(101.0, 1.0, 5.0) == 26
    assert amortisation_break_even(100.0, 5.0, 5.0) == np.inf
