"""Distances of two samples against closed forms, and their false-alarm rates."""

import builtins

import jax
import numpy as np
import pytest
from scipy import stats

from sgjax.diagnostics import c2st, mmd, sliced_wasserstein, wasserstein_1

KEY = jax.random.key(0)


def normal(seed: int, points: int, dimensions: int = 2, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(points, dimensions))
    return values + shift / np.sqrt(dimensions)


def test_classifier_finds_as_much_as_there_is():
    """For a shift by d sds the best possible accuracy is Phi(d / 2); 0.5 for no shift."""
    points = 500
    same = c2st(normal(0, points), normal(1, points))
    error = 0.5 / np.sqrt(2 * points)
    assert abs(same.accuracy - 0.5) < 4 * error
    apart = c2st(normal(0, points), normal(1, points, shift=2.0))
    # A trained network stays a little below the best rule.
    assert abs(apart.accuracy - stats.norm.cdf(1.0)) < 4 * error
    assert apart.fold_accuracies.shape == (5,) and apart.p_value is None


@pytest.mark.slow
def test_classifier_against_its_own_null():
    same = c2st(normal(0, 50, 1), normal(1, 50, 1), num_null=9)
    apart = c2st(normal(0, 50, 1), normal(1, 50, 1, 1.5), num_null=9)
    assert same.null.shape == (9,) and same.p_value > 0.1
    assert apart.p_value == 1 / 10
    assert abs(same.null.mean() - 0.5) < 4 * same.null.std() / np.sqrt(9)
    assert same.folded == max(same.accuracy, 1 - same.accuracy)


def test_classifier_says_what_it_needs(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        c2st(normal(0, 20), normal(1, 20))


def test_weighted_wasserstein_against_scipy_and_by_hand():
    random = np.random.default_rng(0)
    x, y = random.normal(size=50), random.normal(size=70)
    v, w = random.uniform(size=50), random.uniform(size=70)
    expected = stats.wasserstein_distance(x, y, v, w)
    np.testing.assert_allclose(wasserstein_1(x, v, y, w), expected, rtol=1e-12)
    # A quarter of the mass moves by 1, a quarter by 3.
    assert wasserstein_1([0.0, 1.0], None, [0.0, 2.0, 4.0], [2, 1, 1]) == pytest.approx(1.0)
    np.testing.assert_allclose(wasserstein_1(x, v, x + 0.3, v), 0.3, rtol=1e-12)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="weights"):
        wasserstein_1([0.0, 1.0], weights, [0.0], None)


def test_sliced_wasserstein_of_a_shift():
    """For a shift by d it is |d| / sqrt(dimensions) exactly, on average over directions."""
    a, number = normal(0, 300, 3), 2000
    shift = np.array([3.0, 0.0, 0.0])
    found = sliced_wasserstein(a, a + shift, KEY, num_directions=number)
    # u_1^2 on the sphere in 3 dimensions is Beta(1/2, 1): variance 4/45.
    assert abs(found**2 - 3.0) < 4 * 9 * np.sqrt(4 / 45 / number)
    # One dimension has one direction; sizes may differ.
    b = np.random.default_rng(1).normal(size=40)
    one = sliced_wasserstein(a[:, 0], b, KEY, order=1, num_directions=3)
    np.testing.assert_allclose(one, stats.wasserstein_distance(a[:, 0], b), rtol=1e-5)


def gaussian_kernel_mmd(shift: float, bandwidth: float, dimensions: int) -> float:
    """Squared MMD of two unit normals a shift apart, in closed form (Gretton et al., 2012)."""
    total = bandwidth**2 + 2
    return 2 * (bandwidth**2 / total) ** (dimensions / 2) * (1 - np.exp(-(shift**2) / 2 / total))


def test_kernel_distance_is_unbiased_and_right():
    shift, bandwidth = 1.0, 1.5
    values = [
        mmd(normal(2 * i, 60), normal(2 * i + 1, 80, shift=shift), KEY, bandwidth=bandwidth,
            num_permutations=1).squared
        for i in range(100)
    ]  # fmt: skip
    error = np.std(values) / 10
    assert abs(np.mean(values) - gaussian_kernel_mmd(shift, bandwidth, 2)) < 4 * error


@pytest.mark.slow
def test_kernel_test_holds_its_level_and_finds_a_shift():
    repeats, level = 400, 0.1
    alarms = sum(
        mmd(normal(2 * i, 30), normal(2 * i + 1, 40), jax.random.key(i), num_permutations=99)
        .p_value <= level
        for i in range(repeats)
    )  # fmt: skip
    assert abs(alarms / repeats - level) < 4 * np.sqrt(level * (1 - level) / repeats)
    found = mmd(normal(0, 200), normal(1, 200, shift=0.7), KEY)
    assert found.p_value == 1 / 1001
    # Of the six distances of two points, taken twice, the median is the one between them.
    apart = np.linalg.norm(np.diff(normal(0, 2), axis=0))
    bandwidth = mmd(normal(0, 2), normal(0, 2), KEY, num_permutations=1).bandwidth
    np.testing.assert_allclose(bandwidth, apart, rtol=1e-6)


def test_samples_must_match():
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        mmd(normal(0, 9, 2), normal(0, 9, 3), KEY)
    with pytest.raises(ValueError, match="not finite"):
        sliced_wasserstein([0.0, np.nan], [0.0, 1.0], KEY)
    with pytest.raises(ValueError, match="folds"):
        c2st(normal(0, 3), normal(1, 3))
