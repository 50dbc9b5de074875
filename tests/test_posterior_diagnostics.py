"""Diagnostics of posteriors, both ways, in a normal world whose posterior is known.

Two parameters, each N(0, 1), are seen once with noise of sd 1/2, so the exact posterior is
N(0.8 x, 0.2), independently. A thousand simulations with 255 draws each, fixed seeds.
"""

import numpy as np
import pytest
from scipy import stats

from sgjax.diagnostics import (
    area_to_curve,
    c2st,
    centrality,
    contraction,
    ecdf,
    ecdf_band,
    expected_calibration_error,
    expected_coverage,
    holm,
    log_score_gain,
    neighbour_references,
    pit,
    rank_pits,
    sbc_ranks,
    tarp,
    uniform_references,
    uniformity,
)

NOISE = 0.5
GAIN, SD = 1 / (1 + NOISE**2), np.sqrt(NOISE**2 / (1 + NOISE**2))
NUM, DRAWS = 1000, 255
PAIRS = 150


class World:
    """Simulations with draws of a claimed posterior: the exact one, a wrong one, or the prior."""

    def __init__(self, seed: int, *, sharpen=1.0, shift=0.0, prior=False, num=NUM, draws=DRAWS):
        random = np.random.default_rng(seed)
        self.theta, pool = random.normal(size=(2, num, 2))
        self.data, self.other_data = (
            theta + NOISE * random.normal(size=theta.shape) for theta in (self.theta, pool)
        )
        self.other_theta = pool
        self.mean = 0.0 * self.data if prior else GAIN * self.data + shift * SD
        self.sd = 1.0 if prior else SD * sharpen
        self.draws = self.mean[:, None] + self.sd * random.normal(size=(num, draws, 2))

    def log_likelihood(self, theta):
        return stats.norm.logpdf(self.data.reshape(theta.shape[0], *[1] * (theta.ndim - 2), 2),
                                 theta, NOISE).sum(-1)  # fmt: skip

    def log_posterior(self, theta):
        mean = self.mean.reshape(theta.shape[0], *[1] * (theta.ndim - 2), 2)
        return stats.norm.logpdf(theta, mean, self.sd).sum(-1)

    def ranks(self, draws, truth):
        return rank_pits(sbc_ranks(draws, truth), draws.shape[1])

    def pits(self) -> dict[str, np.ndarray]:
        """By test, what is uniform where the posterior is right."""
        parameters = self.ranks(self.draws, self.theta)
        fixed = uniform_references(self.theta)
        near = neighbour_references(self.data, self.other_data, self.other_theta)
        return {
            "first": parameters[:, 0],
            "second": parameters[:, 1],
            "coverage": centrality(parameters[:, 0]),
            "density": self.ranks(self.log_posterior(self.draws), self.log_posterior(self.theta)),
            "likelihood": self.ranks(
                self.log_likelihood(self.draws), self.log_likelihood(self.theta)
            ),
            "tarp fixed": tarp(self.draws, self.theta, fixed),
            "tarp by data": tarp(self.draws, self.theta, near),
        }

    def p_values(self) -> dict[str, float]:
        pits = self.pits()
        adjusted = holm([uniformity(values).p_value for values in pits.values()])
        return dict(zip(pits, adjusted, strict=True))


def joint_accuracy(world: World) -> float:
    """Of a classifier between pairs of data with the truth and with a draw."""
    joint = np.concatenate([world.theta, world.data], axis=1)
    claimed = np.concatenate([world.draws[:, 0], world.data], axis=1)
    return c2st(joint[:PAIRS], claimed[:PAIRS]).accuracy


def test_exact_posterior_passes_everything():
    world = World(0)
    assert min(world.p_values().values()) > 0.05
    for values in world.pits().values():
        found = uniformity(values)
        assert found.ks_p > 0.001 and found.chi_square_p > 0.001
    found = contraction(world.draws.mean(1)[:, 0], world.theta[:, 0])
    # The mean of 255 draws adds a 255th of the posterior variance.
    assert abs(found.value - (1 - SD**2 * (1 + 1 / DRAWS))) < 4 * found.standard_error
    prior = stats.norm.logpdf(world.theta).sum(-1)
    gain = log_score_gain(world.log_posterior(world.theta), prior)
    assert abs(gain.value - np.log(1 + 1 / NOISE**2)) < 4 * gain.standard_error
    assert found.informative and gain.informative


@pytest.mark.parametrize(
    ("wrong", "found_by", "words"),
    [
        (
            {"sharpen": 0.8},
            {"first", "second", "coverage", "density", "likelihood", "tarp fixed", "tarp by data"},
            "too narrow",
        ),
        (
            {"sharpen": 1.25},
            {"first", "second", "coverage", "density", "likelihood", "tarp fixed", "tarp by data"},
            "too wide",
        ),
        ({"shift": 0.2}, {"first", "second"}, "too high by"),
        ({"shift": -0.2}, {"first", "second"}, "too low by"),
    ],
)
def test_wrong_posterior_is_found_out(wrong, found_by, words):
    world = World(0, **wrong)
    p_values = world.p_values()
    assert {name for name, p in p_values.items() if p < 0.01} >= found_by, p_values
    found = uniformity(world.pits()["first"])
    assert found.words.startswith(words)
    error = 1 / np.sqrt(NUM)
    assert abs(found.width - wrong.get("sharpen", 1.0)) < 4 * found.width * error
    assert abs(found.bias - wrong.get("shift", 0.0)) < 4 * error / found.width


def test_prior_passes_what_it_can_and_fails_the_rest():
    """The prior is calibrated; only what looks at data and parameters together finds it out."""
    world = World(0, prior=True)
    p_values = world.p_values()
    passed = {"first", "second", "coverage", "density", "tarp fixed"}
    assert min(p_values[name] for name in passed) > 0.05
    assert max(p_values[name] for name in p_values.keys() - passed) < 0.01
    assert joint_accuracy(world) > 0.5 + 4 * 0.5 / np.sqrt(2 * PAIRS)
    found = contraction(world.draws.mean(1)[:, 0], world.theta[:, 0])
    prior = stats.norm.logpdf(world.theta).sum(-1)
    assert abs(found.value) < 4 * found.standard_error + 1 / DRAWS
    assert log_score_gain(world.log_posterior(world.theta), prior).value == 0
    assert not found.informative


def test_joint_classifier_passes_the_exact_posterior():
    assert abs(joint_accuracy(World(0)) - 0.5) < 4 * 0.5 / np.sqrt(2 * PAIRS)


def test_false_alarms_are_as_rare_as_stated():
    """Of 500 exact posteriors of 100 simulations, each test condemns 5 %; Holm's, 5 % at most."""
    repeats, level = 500, 0.05
    raw = []
    for seed in range(repeats):
        pits = World(seed, num=100, draws=63).pits()
        raw.append([uniformity(values).p_value for values in pits.values()])
    alarms = np.mean(np.array(raw) < level, axis=0)
    error = np.sqrt(level * (1 - level) / repeats)
    assert np.all(np.abs(alarms - level) < 4 * error), alarms
    family = np.mean([holm(row).min() < level for row in raw])
    assert family < level + 4 * error


@pytest.mark.parametrize("num", [50, 1000])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_band_holds_the_whole_curve_as_often_as_stated(num, level):
    repeats = 2000
    band = ecdf_band(num, level)
    curves = [ecdf(np.random.default_rng(seed).random(num)) for seed in range(repeats)]
    inside = np.mean([np.all((c >= band.lower) & (c <= band.upper)) for c in curves])
    error = np.sqrt(level * (1 - level) / repeats)
    # Counts are whole numbers, so that a band may hold a little more than it says.
    assert level - 4 * error < inside < level + 4 * error + 0.5 / num
    # The p-value is that of the same band.
    p_values = [uniformity(np.random.default_rng(seed).random(num)).p_value for seed in range(200)]
    outside = [np.any((c < band.lower) | (c > band.upper)) for c in curves[:200]]
    assert np.array_equal(np.array(p_values) < 1 - level, outside)


def test_ranks_break_ties_at_random_and_put_what_is_no_number_last():
    draws = np.zeros((4000, 3))
    ranks = sbc_ranks(draws, np.zeros(4000))
    assert stats.chisquare(np.bincount(ranks, minlength=4)).pvalue > 1e-3
    assert sbc_ranks(np.array([[np.nan, 1.0, 3.0]]), np.array([2.0])) == 2
    several = sbc_ranks(np.arange(6.0).reshape(1, 3, 2), np.array([[1.0, 2.0]]))
    assert several.tolist() == [[1, 1]]


def test_counts_need_the_randomised_transform():
    rate = 3.0
    counts = stats.poisson(rate).rvs(4000, random_state=0)
    below, at = stats.poisson.cdf(counts - 1, rate), stats.poisson.cdf(counts, rate)
    assert uniformity(pit(below, at)).p_value > 0.01
    assert uniformity(at).p_value < 0.001
    narrow = pit(stats.binom.cdf(counts - 1, 6, 0.5), stats.binom.cdf(counts, 6, 0.5))
    assert uniformity(narrow).words.startswith("too narrow")


def test_coverage_is_that_of_central_intervals():
    levels = np.array([0.5, 0.9])
    world = World(0, sharpen=0.8)
    found = expected_coverage(world.pits()["first"], levels)
    expected = 2 * stats.norm.cdf(0.8 * stats.norm.ppf((1 + levels) / 2)) - 1
    assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / NUM))


def test_area_to_curve_has_the_sign_of_the_width():
    for sharpen, sign in ((0.8, -1), (1.25, 1)):
        assert sign * area_to_curve(World(0, sharpen=sharpen).pits()["tarp by data"]) > 0.01
    # The area under a straight line, by hand: uniform shares.
    assert abs(area_to_curve((np.arange(1000) + 0.5) / 1000)) < 1e-6


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


def test_uniformity_needs_shares():
    with pytest.raises(ValueError, match="at least 10"):
        uniformity(np.full(9, 0.5))
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        uniformity(np.linspace(0, 1.5, 20))


def test_calibration_error_of_class_probabilities():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1.0, 1.0, 1.0], 3000)
    truths = np.array([random.choice(3, p=row) for row in probabilities])
    right = expected_calibration_error(probabilities, truths)
    assert right.p_value > 0.01 and right.low < 0.005
    # Probabilities made extreme are overconfident: confidence minus accuracy, by hand.
    sharp = probabilities**3 / np.sum(probabilities**3, axis=1, keepdims=True)
    wrong = expected_calibration_error(sharp, truths)
    assert wrong.p_value == 1 / 1001
    excess = sharp.max(1) - probabilities.max(1)
    assert abs(wrong.value - excess.mean()) < 4 * 0.5 / np.sqrt(3000)
    assert wrong.low < excess.mean() < wrong.high
