"""Calibration: an exact posterior passes, an overconfident or shifted one fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Constant

import sgjax as sg
from sgjax.predictors import ByMechanism, Gaussian
from sgjax.predictors.quantile import LEVELS, Quantiles


class Exact(sg.predictors.Network):
    """The conjugate posterior of a normal mean as a network; `sharpen` < 1 is overconfident."""

    def __init__(self, sharpen: float = 1.0, shift: float = 0.0):
        self.sharpen, self.shift = sharpen, shift

    def __call__(self, inputs):
        sd = 1 / 3
        mean = inputs.values.mean() * 8 / 9 + self.shift * sd
        inner = Gaussian(mean[None, None], jnp.full((1, 1, 1), 1 / (sd * self.sharpen)),
                         jnp.ones((1, 1), bool))  # fmt: skip
        return inputs.values[:, 0], {"parameters": ByMechanism(inner)}


@pytest.fixture(scope="module")
def stream():
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    return sg.SimulationStream(study, jax.random.key(0), batch_size=64)


def coverage(stream, network) -> tuple[float, sg.diagnostics.Calibration]:
    predictor = sg.Predictor(stream.study, network)
    calibration = sg.calibrate(predictor, stream, jax.random.key(1), 4096)
    return calibration.coverage("level"), calibration


def test_exact_posterior_is_calibrated(stream):
    share, calibration = coverage(stream, Exact())
    error = np.sqrt(0.09 / 4096)
    assert abs(share - 0.9) < 4 * error
    assert abs(calibration.coverage("level", 0.5) - 0.5) < 4 * np.sqrt(0.25 / 4096)
    ranks = calibration.ranks["level"]
    counts = np.histogram(ranks, bins=10, range=(0, 1))[0]
    assert np.sum((counts - 409.6) ** 2 / 409.6) < 27.9  # 99.9 % of chi-square, 9 degrees
    summary = calibration.summary()["level"]
    assert summary["num_simulations"] == 4096
    np.testing.assert_allclose(np.mean(summary["coverage_90_by_sd_tercile"]), share, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"sharpen": 0.8}, {"shift": 0.5}])
def test_wrong_posterior_is_found_out(stream, wrong):
    share, _ = coverage(stream, Exact(**wrong))
    assert share < 0.9 - 4 * np.sqrt(0.09 / 4096)


def test_prior_is_calibrated_too(stream):
    # A posterior that ignores the data passes: calibration alone is not skill.
    class Prior(sg.predictors.Network):
        def __init__(self):
            pass

        def __call__(self, inputs):
            inner = Gaussian(jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), jnp.ones((1, 1), bool))
            return inputs.values[:, 0], {"parameters": ByMechanism(inner)}

    share, _ = coverage(stream, Prior())
    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / 4096)


class ExactQuantiles(sg.predictors.Network):
    """The conjugate answers as quantiles: of the level and of the next observations."""

    def __init__(self, stretch: float = 1.0):
        self.stretch = stretch

    def __call__(self, inputs):
        count = inputs.values.shape[0]
        mean = inputs.values.mean() * count / (count + 1)
        normal = jax.scipy.stats.norm.ppf(jnp.asarray(LEVELS)) * self.stretch
        sd = 1 / np.sqrt(count + 1)
        level = Quantiles((mean + sd * normal)[None, None], jnp.ones((1, 1)), LEVELS)
        ahead = jnp.arcsinh(mean + np.sqrt(sd**2 + 1) * normal)
        forecast = Quantiles(jnp.tile(ahead, (2, 1)), jnp.ones(2), LEVELS)
        return inputs.values[:, 0], {"parameters": ByMechanism(level), "forecast": forecast}


@pytest.mark.parametrize(("stretch", "share"), [(1.0, 0.9), (0.8, None)])
def test_quantiles_are_judged_without_draws(stretch, share):
    study = sg.Study(
        Constant(),
        sg.observations.Chain(
            sg.observations.Gaussian(sd=1.0, prior={}),
            sg.observations.MissingAtRandom(missing_rate=0.0, prior={}),
        ),
        sg.Several(sg.Estimate(), sg.Forecast(context=6, horizon=2)),
    )
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=64)
    predictor = sg.Predictor(study, ExactQuantiles(stretch))
    calibration = sg.calibrate(predictor, stream, jax.random.key(1), 4096)
    assert set(calibration.ranks) == {"level", "level[+1]", "level[+2]"}
    expected = share or 2 * float(jax.scipy.stats.norm.cdf(0.8 * 1.6448536)) - 1
    error = np.sqrt(expected * (1 - expected) / 4096)
    for name in calibration.ranks:
        # Between levels the quantiles are interpolated; at 5 % and 95 % they are exact.
        assert abs(calibration.coverage(name) - expected) < 4 * error
