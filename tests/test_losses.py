"""Every loss is proper: over a known law its expectation is least at the stated functional."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sgjax import losses

LAW = stats.gamma(2.0)
"""Skewed, so that mean, median and quantiles differ."""
OUTCOMES = jnp.asarray(LAW.ppf((np.arange(4000) + 0.5) / 4000), jnp.float32)[:, None]
LEVELS = np.array([0.1, 0.5, 0.8])


def pinball(at, y):
    return losses.pinball(at[None], y, LEVELS)


def interval(at, y):
    return losses.interval_score(at[:1], at[1:], y, 0.8)


@pytest.mark.parametrize(
    ("score", "truth"),
    [
        (losses.squared_error, [LAW.mean()]),
        (losses.absolute_error, [LAW.median()]),
        (pinball, LAW.ppf(LEVELS)),
        (interval, LAW.ppf([0.1, 0.9])),
    ],
    ids=["mean", "median", "quantiles", "interval"],
)
def test_functional_minimises(score, truth):
    expected = jax.jit(
        jax.value_and_grad(lambda at: jax.vmap(lambda y: score(at, y))(OUTCOMES).mean())
    )
    truth = jnp.asarray(truth, jnp.float32)
    least, slope = expected(truth)
    np.testing.assert_allclose(slope, 0, atol=2e-3)
    for index in range(truth.size):
        for step in (-0.5, -0.1, 0.1, 0.5):
            assert expected(truth.at[index].add(step))[0] > least


def gaussian_outcomes(mean, covariance):
    """Nodes and weights of a quadrature that is exact for quadratic functions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    return jnp.asarray(mean + grid @ np.linalg.cholesky(covariance).T), jnp.asarray(weights)


def test_gaussian_log_score_minimises_at_mean_and_covariance():
    mean, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 1.0]])
    outcomes, weights = gaussian_outcomes(mean, covariance)
    truth = (jnp.asarray(mean), jnp.asarray(np.linalg.cholesky(np.linalg.inv(covariance))))

    @jax.jit
    @jax.value_and_grad
    def expected(at):
        scores = jax.vmap(lambda y: losses.gaussian_log_score(*at, y))(outcomes)
        return weights @ scores

    least, (slope_mean, slope_factor) = expected(truth)
    np.testing.assert_allclose(slope_mean, 0, atol=1e-5)
    np.testing.assert_allclose(jnp.tril(slope_factor), 0, atol=1e-5)
    np.testing.assert_allclose(least, stats.multivariate_normal(mean, covariance).entropy(), 1e-5)
    for row, column in ((0, 0), (1, 0), (1, 1)):
        for step in (-0.1, 0.1):
            assert expected((truth[0], truth[1].at[row, column].add(step)))[0] > least


def test_gaussian_log_score_is_least_at_the_moments_of_any_law():
    at = (jnp.array([LAW.mean()]), jnp.array([[1 / LAW.std()]]))
    scores = lambda at: jax.vmap(lambda y: losses.gaussian_log_score(*at, y))(OUTCOMES).mean()
    for slope in jax.jit(jax.grad(scores))(at):
        np.testing.assert_allclose(slope, 0, atol=5e-3)


@pytest.mark.parametrize("rule", [losses.log_score, losses.brier_score])
def test_class_scores_minimise_at_the_probabilities(rule):
    truth = jnp.array([0.6, 0.3, 0.1])

    @jax.jit
    @jax.value_and_grad
    def expected(logits):
        given = logits if rule is losses.log_score else jax.nn.softmax(logits)
        return truth @ jax.vmap(lambda label: rule(given, label))(jnp.eye(3))

    least, slope = expected(jnp.log(truth))
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    for index in range(3):
        assert expected(jnp.log(truth).at[index].add(0.3))[0] > least
        assert expected(jnp.log(truth).at[index].add(-0.3))[0] > least
    entropy = -float(truth @ jnp.log(truth))
    expected_least = entropy if rule is losses.log_score else 1 - float(truth @ truth)
    assert float(least) == pytest.approx(expected_least, rel=1e-5)


def ensemble_slopes(rule, num, fair):
    """Mean slope of the score in the spread of 3 members, at the right spread, and its error."""
    key = jax.random.key(0)
    normal = jax.random.normal(key, (30_000, 4, num))

    def score(spread, draws):
        return rule(spread * draws[:3], draws[3], fair=fair)

    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(score), (None, 0)))(1.0, normal))
    return slopes.mean(), slopes.std() / np.sqrt(len(slopes))


@pytest.mark.parametrize(("rule", "size"), [(losses.crps_ensemble, 1), (losses.energy_score, 2)])
def test_only_fair_ensemble_scores_want_the_right_spread(rule, size):
    fair, error = ensemble_slopes(rule, size, fair=True)
    assert abs(fair) < 4 * error
    unfair, error = ensemble_slopes(rule, size, fair=False)
    assert unfair > 20 * error  # a smaller spread would score better


def test_crps_ensemble_against_its_definition():
    samples = jax.random.normal(jax.random.key(1), (7, 2))
    values = jnp.array([0.3, -1.0])
    accuracy = np.abs(samples - values[None]).mean(0)
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1))
    fair = (accuracy - pairs / (2 * 7 * 6)).mean()
    unfair = (accuracy - pairs / (2 * 7 * 7)).mean()
    assert float(losses.crps_ensemble(samples, values)) == pytest.approx(fair, rel=1e-5)
    unfair_found = losses.crps_ensemble(samples, values, fair=False)
    assert float(unfair_found) == pytest.approx(unfair, rel=1e-5)


def test_energy_score_of_one_component_is_crps():
    samples = jax.random.normal(jax.random.key(2), (6, 1))
    energy = losses.energy_score(samples, jnp.array([0.4]))
    assert float(energy) == pytest.approx(
        float(losses.crps_ensemble(samples, jnp.array([0.4]))), rel=1e-5
    )


@pytest.mark.parametrize("score", [losses.crps_ensemble, losses.energy_score])
def test_ensembles_need_two_members(score):
    with pytest.raises(ValueError, match="at least 2"):
        score(jnp.zeros((1, 2)), jnp.zeros(2))


FACTOR = jnp.tril(jnp.arange(1.0, 10.0).reshape(3, 3))
PREDICTIONS = {
    "squared_error": (jnp.arange(3.0),),
    "absolute_error": (jnp.arange(3.0),),
    "pinball": (jnp.arange(6.0).reshape(3, 2),),
    "interval_score": (jnp.arange(3.0), jnp.arange(1.0, 4.0)),
    "gaussian_log_score": (jnp.arange(3.0), FACTOR),
    "crps_ensemble": (jnp.arange(12.0).reshape(4, 3) ** 2,),
    "energy_score": (jnp.arange(12.0).reshape(4, 3) ** 2,),
}
EXTRA = {"pinball": (np.array([0.2, 0.7]),), "interval_score": (0.8,)}


def keep(name, prediction, kept):
    """A prediction of the kept components alone."""
    if name == "gaussian_log_score":
        return prediction[0][kept], prediction[1][np.ix_(kept, kept)]
    if name in ("crps_ensemble", "energy_score"):
        return tuple(part[:, kept] for part in prediction)
    return tuple(part[kept] for part in prediction)


@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_masked_components_do_not_exist(name):
    rule, prediction, extra = getattr(losses, name), PREDICTIONS[name], EXTRA.get(name, ())
    mask, kept = jnp.array([True, False, True]), np.array([0, 2])
    values = jnp.array([0.5, jnp.nan, -1.0])

    @jax.jit
    def everything(prediction):
        masked = lambda prediction: rule(*prediction, values, *extra, mask=mask)
        alone = rule(*keep(name, prediction, kept), values[kept], *extra)
        nothing = rule(*prediction, values, *extra, mask=jnp.zeros(3, bool))
        return *jax.value_and_grad(masked)(prediction), alone, nothing

    found, slopes, alone, nothing = everything(prediction)
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    assert float(nothing) == 0
