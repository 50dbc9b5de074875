"""What data can tell: contraction and Fisher information against closed forms, and controls."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from worlds import SD, TIMES, Polynomial

import sgjax as sg
from benchmarks.claims.worlds import reported
from sgjax.predictors import ByMechanism, Gaussian
from sgjax.references import profile_likelihood

KEY = jax.random.key(0)
SHARES = np.array([[1 + 8, 8], [8, 1 + 8.0]])
"""The precision of two standard normals whose sum is measured eight times with unit noise."""


class Sum(sg.simulators.AbstractSimulator):
    """Two levels of which only the sum is seen."""

    prior = {"a": dist.Normal(0.0, 1.0), "b": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 9.0)
    channels = ("sum",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["a"] + theta["b"], (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


class Exact(sg.predictors.Network):
    """The conjugate posterior; or one whose sds are too small by `sharpen`, or the prior."""

    def __init__(self, sharpen=1.0, prior=False):
        self.sharpen, self.prior = sharpen, prior

    def __call__(self, inputs):
        precision = np.eye(2) if self.prior else SHARES
        mean = jnp.zeros(2)
        if not self.prior:
            mean = jnp.asarray(np.linalg.inv(SHARES).sum(axis=1), jnp.float32) * inputs.values.sum()
        factor = jnp.asarray(np.linalg.cholesky(precision) / self.sharpen, jnp.float32)
        inner = Gaussian(mean[None], factor[None], jnp.ones((1, 2), bool))
        return inputs.values[:, 0], {"parameters": ByMechanism(inner)}


@pytest.fixture(scope="module")
def stream() -> sg.SimulationStream:
    study = sg.Study(
        Sum(),
        sg.observations.Gaussian(sd=1.0, prior={}),
        sg.Estimate(derived={"all": lambda theta: theta["a"] + theta["b"]}),
    )
    return sg.SimulationStream(study, jax.random.key(3), batch_size=64)


def measured(stream, network, **options):
    options = {"num_simulations": 4000, "num_draws": 64} | options
    return sg.identifiability(sg.Predictor(stream.study, network), stream, KEY, **options)


def test_contraction_is_the_closed_form(stream):
    found = measured(stream, Exact())
    # Var(a | x) = 9 / 17, Var(a + b | x) = 2 / 17.
    for name, exact in (("a", 8 / 17), ("b", 8 / 17), ("all", 16 / 17)):
        score, expected = found[name].score, found[name].expected
        assert abs(score.value - exact) < 4 * score.standard_error
        assert abs(expected.value - exact) < 4 * (score.standard_error + 1e-3)
        assert not found[name].logarithmic
    assert found["all"].verdict == "the data carry it"
    assert found["a"].verdict.startswith("only in part")
    known, unknown = found.directions
    assert abs(known.score.value - 16 / 17) < 4 * known.score.standard_error
    assert abs(unknown.score.value) < 4 * unknown.score.standard_error
    # A rotation by the sampling error of the covariances, some 1/sqrt(4000).
    np.testing.assert_allclose(np.abs(known.loadings), np.sqrt(0.5), atol=0.08)
    assert known.loadings.prod() > 0 > unknown.loadings.prod()
    assert found.unknown == (unknown,) and "-0." in unknown.words.replace("- ", "-")
    assert "the data carry it" in str(found) and len(found.strata_table()) == 15


def test_strata_and_local_scores_are_of_the_series(stream):
    found = measured(stream, Exact())["a"]
    sd = np.sqrt(9 / 17)
    assert [each.num for each in found.strata] == [800] * 5
    for stratum in found.strata:
        # All series have the same posterior sd; the strata are of its Monte Carlo error alone.
        assert abs(stratum.rmse - sd) < 4.5 * stratum.rmse_error
        assert abs(stratum.predicted - sd) < sd * 4 / np.sqrt(2 * 64)
        assert abs(stratum.score - (1 - stratum.rmse**2 / found.prior_sd**2)) < 1e-12
    observed = stream.held_out().take(7).observed
    whole = measured(stream, Exact(), num_draws=4096, num_simulations=200)
    local = whole.local(observed)["all", "Sum"]
    exact = np.asarray(observed.values).sum(axis=(1, 2)) * 2 / 17
    np.testing.assert_allclose(local.mean, exact, atol=4 * np.sqrt(2 / 17 / 4096))
    prior = whole["all"].prior_sd ** 2
    np.testing.assert_allclose(local.score, 1 - 2 / 17 / prior, atol=0.02)
    one = np.asarray(observed.values)[0]
    np.testing.assert_allclose(whole.local(one)["all", "Sum"].mean, local.mean[:1], atol=0.03)


def test_the_prior_scores_nothing_and_false_sharpness_is_seen(stream):
    nothing = measured(stream, Exact(prior=True))
    for each in nothing.contractions:
        assert abs(each.score.value) < 4 * each.score.standard_error + 1e-3
        assert each.verdict == "this is the prior mean"
    assert len(nothing.unknown) == 2
    sharp = measured(stream, Exact(sharpen=0.5))["a"]
    assert sharp.score.value == pytest.approx(8 / 17, abs=4 * sharp.score.standard_error)
    assert sharp.expected.value == pytest.approx(1 - 9 / 17 / 4, abs=0.02)


def test_fisher_information_is_that_of_a_regression():
    prior = {"c0": dist.Normal(0.0, 3.0), "c1": dist.LogNormal(0.0, 0.5)}
    study = sg.Study(Polynomial(prior), sg.observations.Gaussian(sd=SD, prior={}), sg.Estimate())
    theta = {"c0": 1.0, "c1": np.array([0.5, 2.0])}
    found = sg.fisher_information(study, "Polynomial", KEY, theta=theta, num_records=2000)
    np.testing.assert_allclose(found.prior_sd, [3.0, 0.5], rtol=4 / np.sqrt(2 * 4096))
    assert found.logarithmic.tolist() == [False, True]
    for slope, matrix in zip(theta["c1"], found.matrices, strict=True):
        design = np.stack([np.ones(TIMES.size), slope * TIMES], axis=1) * found.prior_sd / SD
        # Each term is a square of a standard normal, of variance 2, averaged over the records.
        squares = np.einsum("ti,tj,ti,tj->ij", design, design, design, design)
        error = np.sqrt(2 * squares / 2000)
        assert np.all(np.abs(matrix - design.T @ design) < 4 * error)
    assert found.rank == 2 and found.ranks.tolist() == [2, 2]
    assert found.verdict.startswith("Rank 2 of 2")


def test_losses_and_the_context_take_information_away():
    prior = {"c0": dist.Normal(0.0, 1.0), "c1": dist.Normal(0.0, 1.0)}
    gaussian = sg.observations.Gaussian(sd=SD, prior={})
    lossy = sg.observations.Chain(gaussian, sg.observations.MissingAtRandom(0.5, prior={}))

    def first(observation, **options):
        study = sg.Study(Polynomial(prior), observation, sg.Estimate(**options))
        found = sg.fisher_information(study, "Polynomial", KEY, num_points=1, num_records=2000)
        return found.matrices[0, 0, 0] / found.prior_sd[0] ** 2

    error = 4 * np.sqrt(2 / TIMES.size / 2000)
    assert first(gaussian, context=4) == pytest.approx(4 / SD**2, rel=2 * error)
    assert first(lossy) == pytest.approx(TIMES.size / 2 / SD**2, rel=2 * error)


@pytest.mark.slow
def test_only_the_product_of_reporting_and_population_matters():
    """The rank lacks exactly one, and its direction is the rate up and the population down."""
    study = reported(leaky=True)
    found = sg.fisher_information(study, "ReportedCases", KEY, num_points=4, num_records=4)
    assert found.rank == 4
    (direction,) = found.null_directions
    move = dict(zip(found.names, direction * found.prior_sd, strict=True))
    assert move["reporting_rate"] == pytest.approx(-move["inhabitants"], rel=1e-3)
    others = [move[name] for name in ("beta", "gamma", "initial_share")]
    np.testing.assert_allclose(others, 0, atol=1e-3 * abs(move["inhabitants"]))
    assert "log reporting_rate up" in found.verdict and "log inhabitants down" in found.verdict
    assert "nothing depends on it" in str(found)


@pytest.mark.slow
def test_the_profile_of_an_unidentifiable_rate_is_flat():
    study = reported(leaky=False)
    observed = sg.SimulationStream(study, jax.random.key(5), 4).take(4).observed
    found = profile_likelihood(
        study, "ReportedCases", observed, "reporting_rate", KEY, values=5, starts=4
    )
    assert (found.verdict == "flat").all(), str(found)
    known = profile_likelihood(
        study, "ReportedCases", observed, "reported_population", KEY, values=9, starts=4
    )
    assert not (known.verdict == "flat").any()


def test_wrong_input_is_one_message(stream, unchecked):
    for message, options in (
        ("20 simulations a stratum at least; got 5, 64 and 50", {"num_simulations": 50}),
        ("`log_scale` names \\['c'\\]", {"log_scale": ["c"]}),
        ("not always positive", {"log_scale": ["a"]}),
    ):
        with pytest.raises(ValueError, match=message):
            measured(stream, Exact(), **options)
    found = measured(stream, Exact(), num_simulations=100)
    with pytest.raises(ValueError, match="There is no 'c'; known are"):
        found["c"]
    point = sg.predictors.for_study(stream.study, KEY, heads={"parameters": "point"}, width=4)
    with pytest.raises(ValueError, match="cannot give `sample`"):
        sg.identifiability(point, stream, KEY)
    study = stream.study
    for message, mechanism, options in (
        ("No mechanism 'SIR'", "SIR", {}),
        ("must be at least 1", "Sum", {"num_records": 0}),
        ("it lacks \\['b'\\]", "Sum", {"theta": {"a": 0.0}}),
    ):
        with pytest.raises(ValueError, match=message):
            sg.fisher_information(study, mechanism, KEY, **options)
