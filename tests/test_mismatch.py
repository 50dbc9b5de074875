"""Many series without labels: exact under the null, awake under a shift, honest in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sgjax as sg
from sgjax.diagnostics import holm, mmd, wasserstein_1
from sgjax.mismatch import MismatchReport, TotalVariation, report_mismatch
from sgjax.mismatch.classifier import accuracy, half_width, log_odds, series_needed
from sgjax.mismatch.groups import (
    combined,
    draw_groups,
    kernel_statistics,
    mean_statistics,
    p_value,
    transport_statistics,
)
from sgjax.mismatch.many import pool_report
from sgjax.mismatch.pool import PRIMARY, Pool
from sgjax.mismatch.report import ASSUMED, BLIND, LEVEL

SIZES = {"num_pool": 400, "num_simulations": 512}


@pytest.fixture(scope="module")
def world(growth):
    stream = sg.SimulationStream(growth, jax.random.key(0), batch_size=128)
    predictor = sg.predictors.for_study(growth, jax.random.key(1), width=16, depth=1)
    return sg.train(predictor, stream, 150, interval=150), stream


@pytest.fixture(scope="module")
def pool(world):
    return Pool(*world, **SIZES)


@pytest.fixture(scope="module")
def ordinary(world) -> np.ndarray:
    """Simulations that neither the pool nor the search has seen."""
    return np.asarray(world[1].held_out().take(1000, 50_000).observed.values)


@pytest.fixture(scope="module")
def shifted(ordinary) -> np.ndarray:
    """The same mechanism under twice the noise, 0.1 instead of 0.05."""
    more = np.random.default_rng(8).normal(0, np.sqrt(0.1**2 - 0.05**2), (64, 8, 1))
    return ordinary[500:564] + more.astype(np.float32)


# Statistics of groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 80])  # entry by entry, and by a matrix product
def test_the_kernel_distance_is_that_of_two_samples(size):
    points = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    groups = draw_groups(jax.random.key(0), size, 200, 3)
    found = kernel_statistics(jnp.asarray(points), groups, jnp.float32(1.5))
    for group, value in zip(np.asarray(groups), found, strict=True):
        rest = np.delete(points, group, axis=0)
        exact = mmd(points[group], rest, jax.random.key(0), bandwidth=1.5, num_permutations=1)
        assert value == pytest.approx(exact.squared, abs=1e-5)


@pytest.mark.parametrize("size", [1, 7])  # 7 does not divide the number of points
def test_the_transport_distance_is_that_of_two_samples(size):
    points = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    groups = draw_groups(jax.random.key(1), size, 50, 3)
    found = transport_statistics(jnp.asarray(points), jnp.eye(2), groups)
    for group, value in zip(np.asarray(groups), found, strict=True):
        rest = np.delete(points, group, axis=0)
        exact = [wasserstein_1(points[group, d], None, rest[:, d], None) for d in range(2)]
        assert value == pytest.approx(np.mean(exact), rel=1e-4)


def test_groups_hold_each_point_once_and_begin_with_the_real_one():
    groups = np.asarray(draw_groups(jax.random.key(2), 5, 40, 99))
    assert groups.shape == (100, 5) and list(groups[0]) == [0, 1, 2, 3, 4]
    assert all(len(set(group)) == 5 for group in groups)
    assert set(groups.ravel()) == set(range(40))


def test_a_combination_is_the_least_p_value():
    values = np.array([[5.0, 1, 2, 3], [0.0, 9, 2, 1]])
    # p-values 1/4, 1, 3/4, 1/2 of the first and 1, 1/4, 1/2, 3/4 of the second.
    found = combined(values)
    np.testing.assert_allclose(np.floor(4 * found) / 4, [-0.25, -0.25, -0.5, -0.5])
    # Of the two at 1/4 the second lies farther out, in standard deviations.
    assert found[1] > found[0] > max(found[2:]) and p_value(found) == 0.5


def test_p_values_are_uniform_where_nothing_differs():
    """Of 400 replicates, each with its own points; the levels are multiples of 1 / 20."""
    random = np.random.default_rng(3)
    found = {"kernel": [], "mean": [], "combined": []}
    for replicate in range(400):
        points = jnp.asarray(random.normal(size=(60, 2)).astype(np.float32))
        groups = draw_groups(jax.random.key(replicate), 6, 60, 19)
        kernel = np.asarray(kernel_statistics(points, groups, jnp.float32(1.0)))
        mean = np.asarray(mean_statistics(points[:, 0], groups))
        found["kernel"].append(p_value(kernel))
        found["mean"].append(p_value(mean))
        found["combined"].append(p_value(combined(np.stack([kernel, mean, -mean]))))
    for name, values in found.items():
        for level in (0.05, 0.5):
            below = int(np.sum(np.array(values) <= level + 1e-9))
            test = stats.binomtest(
                below, 400, level, "two-sided" if name != "combined" else "greater"
            )
            assert test.pvalue > 1e-3, f"{name} is at most {level} in {below} of 400"


# The total variation ------------------------------------------------------------------------------


def exact_total_variation(shift: float) -> float:
    """Of N(0, 1) and N(shift, 1)."""
    return float(2 * stats.norm.cdf(shift / 2) - 1)


def test_the_limit_is_hoeffdings_of_the_accuracy():
    # With as many real as simulated ones, 2 (a - sqrt(ln(1/delta) / 2N)) - 1 of all N.
    bound = TotalVariation("inputs", 0.9, 100, 100)
    assert bound.lower_limit == pytest.approx(2 * (0.9 - np.sqrt(np.log(20) / 400)) - 1)
    assert TotalVariation("inputs", 0.5, 100, 100).lower_limit == 0
    needed = series_needed(0.1) // 2
    assert half_width(needed, 10**9) <= 0.1 < half_width(needed - 1, 10**9)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_limit_stays_below_the_exact_total_variation(shift):
    """Violations of a 95 % limit, of 20; and the estimate is close where series are many."""
    random, truth, above, estimates = np.random.default_rng(4), exact_total_variation(shift), 0, []
    for replicate in range(20):
        real = random.normal(shift, 1, (400, 1)).astype(np.float32)
        simulated = random.normal(0, 1, (400, 1)).astype(np.float32)
        labelled = jnp.concatenate([real[:200], simulated[:200]])
        asked = jnp.concatenate([real[200:], simulated[200:]])
        odds = log_odds(jax.random.key(replicate), labelled, jnp.arange(400) < 200, asked)
        bound = TotalVariation("x", accuracy(odds[:200], odds[200:]), 200, 200)
        above += bound.lower_limit > truth
        estimates.append(bound.estimate)
    assert stats.binomtest(above, 20, 0.05, alternative="greater").pvalue > 1e-3
    error = np.std(estimates) / np.sqrt(20)
    # A trained classifier falls short of the best one, but not by much; it never exceeds it.
    assert truth - 0.06 - 4 * error < np.mean(estimates) < truth + 4 * error


# Reports ------------------------------------------------------------------------------------------


def test_simulations_pass_and_a_shift_does_not(world, pool, ordinary, shifted):
    calm = pool_report(pool, pool.sample(inputs(world, ordinary[:64])), 199)
    assert calm.p_value > 0.01 and not calm.total_variation
    assert calm.verdict.endswith(BLIND)
    alarmed = pool_report(pool, pool.sample(inputs(world, shifted)), 199)
    assert alarmed.p_value == 1 / 200
    assert "none of these mechanisms" in alarmed.verdict and alarmed.verdict.endswith(BLIND)
    assert 0 < alarmed.total_variation < 1 and "at least (90 % confidence)" in alarmed.verdict
    others = alarmed.divergences[1:]
    assert alarmed.primary.name == PRIMARY and not any(each.primary for each in others)
    np.testing.assert_allclose(
        [each.p_adjusted for each in others], holm([each.p_value for each in others])
    )
    assert alarmed.primary.p_adjusted == alarmed.p_value
    assert len(alarmed.table()) == len(alarmed.divergences) == 8
    assert alarmed.risk_bounds(2.0) == {assumed: 2 * assumed for assumed in ASSUMED}


def test_the_words_follow_the_tests(world, pool, ordinary):
    report = pool_report(pool, pool.sample(inputs(world, ordinary[:1])), 99)
    tests = report.divergences
    # Only a test that is not the primary one finds something.
    other = (*(dataclasses.replace(each, p_value=0.9, p_adjusted=0.9) for each in tests[:-1]),
             dataclasses.replace(tests[-1], p_adjusted=LEVEL))  # fmt: skip
    assert "unusual among" in dataclasses.replace(report, divergences=other).verdict
    none = (*other[:-1], dataclasses.replace(tests[-1], p_adjusted=0.9))
    assert dataclasses.replace(report, divergences=none).verdict.startswith("Nothing found")
    primary = (dataclasses.replace(tests[0], p_value=0.03, p_adjusted=0.03), *none[1:])
    assert "The data are unusual" in dataclasses.replace(report, divergences=primary).verdict


def test_one_series_has_a_report_without_classifiers(world, pool, ordinary):
    report = pool_report(pool, pool.sample(inputs(world, ordinary[:1])), 99)
    assert report.num_real == 1 and not report.bounds and report.total_variation == 0
    assert "needs 20 real series; there are 1" in report.notes[0]
    assert not any("classifier" in each.name for each in report.divergences)
    strange = pool.sample(inputs(world, np.linspace(-3, 6, 8)[None, :, None]))
    assert pool_report(pool, strange, 99).p_value == 1 / 401


@pytest.mark.slow
def test_one_door_for_one_and_for_many(world, ordinary):
    predictor, stream = world
    sizes = {"num_simulations": 512}
    one = sg.check_mismatch(predictor, stream, ordinary[0], **sizes, num_held_out=99)
    assert isinstance(one, sg.Mismatch)
    few = SIZES | {"num_groups": 19}
    many = sg.check_mismatch(predictor, stream, ordinary[:3], **few)
    listed = sg.check_mismatch(predictor, stream, [row[:, 0] for row in ordinary[:3]], **few)
    asked = sg.check_mismatch(predictor, stream, [predictor(row) for row in ordinary[:3]], **few)
    assert isinstance(many, MismatchReport) and many.num_real == 3
    for other in (listed, asked):
        assert [each.value for each in other.divergences] == [e.value for e in many.divergences]
    index = sg.SimulationIndex.build(predictor, stream, 256)
    indexed = sg.check_mismatch(predictor, index, ordinary[:3], **few)
    assert indexed.p_value == many.p_value


def test_missing_values_and_known_quantities_are_taken(world, ordinary):
    gaps = ordinary[:3].copy()
    gaps[0, 2:4] = np.nan
    report = report_mismatch(*world, gaps, **SIZES, num_groups=19)
    assert 0 < report.p_value <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values[:, :5], r"\(series, 8, 1\)"),
        (lambda values: values[..., 0], r"\(series, 8, 1\)"),
        (lambda values: [values[0], values[1, :5]], "Series 1: The data have shape"),
        (lambda values: [], "There is no real series"),
        (lambda values: np.where(values > 0.5, np.inf, values), "a value that is not finite"),
        (lambda values: [*values[:2], np.full(8, np.inf)], "Series 2: .* infinite"),
        (lambda values: values * np.nan, "Every value of series 0 is missing"),
        (lambda values: [values[0] * np.nan], "Series 0: Every value of the data is missing"),
        (lambda values: np.tile(values, (2600, 1, 1)), "10,000 at most"),
    ],
)
def test_bad_series_are_refused(world, ordinary, change, message):
    with pytest.raises(ValueError, match=message):
        report_mismatch(*world, change(ordinary[:4]), **SIZES)


def test_bad_settings_are_refused(world, ordinary):
    predictor, stream = world
    with pytest.raises(ValueError, match="`num_groups` 5"):
        report_mismatch(predictor, stream, ordinary[:2], num_groups=5)
    with pytest.raises(ValueError, match="`num_pool` 10"):
        report_mismatch(predictor, stream, ordinary[:2], num_pool=10)
    with pytest.raises(ValueError, match="2 values of 'population' for 3 series"):
        report_mismatch(predictor, stream, list(ordinary[:3]), {"population": np.ones(2)})
    index = sg.SimulationIndex.build(predictor, stream, 256)
    other = sg.predictors.for_study(predictor.study, jax.random.key(7), width=16, depth=1)
    with pytest.raises(ValueError, match="another predictor"):
        sg.check_mismatch(other, index, ordinary[:2])


# In full ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 10])
def test_false_alarms_are_as_many_as_promised(world, pool, ordinary, size):
    """Of 400 replicates: the primary test, and any of the others after Holm."""
    drawn = np.asarray(world[1].held_out().take(400 * size, 100_000).observed.values)
    samples = pool.sample(inputs(world, drawn))
    reports = [pool_report(pool, samples.rows(size * n, size * (n + 1)), 99) for n in range(400)]
    alarms = sum(report.p_value <= LEVEL for report in reports)
    assert stats.binomtest(alarms, 400, LEVEL).pvalue > 1e-3
    others = sum(any(not each.primary for each in report.alarms) for report in reports)
    assert stats.binomtest(others, 400, LEVEL, alternative="greater").pvalue > 1e-3


@pytest.mark.slow
def test_a_shift_is_found_and_its_total_variation_not_overstated():
    """All values are moved alike: given the course, by a total variation in closed form."""
    study = sg.Study(
        sg.simulators.ExponentialDecay(prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[1.0, 2.0]),
        sg.observations.Gaussian(sd=0.2, prior={}),
        sg.Estimate(),
    )
    stream = sg.SimulationStream(study, jax.random.key(0), 128)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=16, depth=1)
    pool = Pool(sg.train(predictor, stream, 300, interval=300), stream, num_pool=1000)
    for shift, found in ((0.0, False), (0.4, True)):
        values = np.array(stream.held_out().take(500, 10_000).observed.values)
        values[:, :, 0] += shift
        report = pool_report(pool, pool.sample(inputs((pool.predictor, stream), values)), 199)
        # Given the course, the shift moves two normal values of sd 0.2: this bounds the law of all.
        limit = exact_total_variation(np.sqrt(2) * shift / 0.2)
        assert report.total_variation <= limit
        assert (report.p_value <= LEVEL) == found


def inputs(world, values: np.ndarray):
    """Series as the predictor sees them."""
    from sgjax.mismatch.views import inputs_of

    return inputs_of(world[0], np.asarray(values, np.float32))
