"""Posteriors in the user's units: the density of parameters, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sgjax as sg
from sgjax.predictors import CannotGive

HIGH = 3.0


class Wave(sg.simulators.AbstractSimulator):
    """A bounded frequency, and an amplitude whose prior depends on it."""

    prior = {  # noqa: RUF012
        "frequency": dist.Uniform(1.0, HIGH),
        "amplitude": lambda theta: dist.TruncatedNormal(theta["frequency"], 0.5, low=0.0),
    }
    ts = np.arange(0.25, 2.25, 0.25)
    channels = ("height",)

    def simulate(self, key, theta):
        ts = jnp.asarray(self.ts, jnp.float32)
        height = theta["amplitude"] * jnp.sin(theta["frequency"] * ts)
        return sg.simulators.Latent(ts, height[:, None], None)


def posterior(head):
    task = sg.Estimate(derived={"period": lambda theta: 2 * jnp.pi / theta["frequency"]})
    study = sg.Study(Wave(), sg.observations.Gaussian(sd=0.1, prior={}), task)
    predictor = sg.predictors.for_study(
        study, jax.random.key(0), width=8, depth=1, heads={"parameters": head}
    )
    return predictor(np.sin(Wave.ts))


@pytest.mark.slow
def test_log_prob_is_a_density_in_natural_units():
    one = posterior("gaussian")
    frequency, amplitude = np.linspace(0.9, 3.1, 221), np.linspace(-0.5, 9.5, 501)
    grid = dict(zip(("frequency", "amplitude"), np.meshgrid(frequency, amplitude), strict=True))

    @jax.jit
    def log_density(theta):
        flat = jax.tree.map(lambda leaf: jnp.ravel(jnp.asarray(leaf, jnp.float32)), theta)
        return jax.vmap(one.log_prob)(flat)

    table = np.exp(np.asarray(log_density(grid), np.float64)).reshape(grid["frequency"].shape)
    table *= (frequency[1] - frequency[0]) * (amplitude[1] - amplitude[0])
    outside = (grid["frequency"] < 1) | (grid["frequency"] > HIGH) | (grid["amplitude"] < 0)
    assert not table[outside].any()
    assert table.sum() == pytest.approx(1, abs=2e-3)
    draws = one.sample(jax.random.key(1), 4000)
    for name, axis, along in (("frequency", frequency, 0), ("amplitude", amplitude, 1)):
        law = lambda x, a=axis, d=along: np.interp(
            x, a + (a[1] - a[0]) / 2, np.cumsum(table.sum(axis=d))
        )
        assert stats.kstest(np.asarray(draws[name]), law).pvalue > 1e-3
    # A draw will do as it is, the derived quantity included; the bounds have no density.
    found = jax.vmap(one.log_prob)(jax.tree.map(lambda leaf: leaf[:5], draws))
    np.testing.assert_allclose(found, log_density(jax.tree.map(lambda leaf: leaf[:5], draws)))
    assert float(one.log_prob({"frequency": HIGH, "amplitude": 1.0})) == -np.inf


def test_log_prob_says_what_it_lacks():
    one = posterior("point")
    with pytest.raises(ValueError, match=r"give \['amplitude'\] too"):
        one.log_prob({"frequency": 2.0})
    with pytest.raises(CannotGive, match="gaussian"):
        one.log_prob({"frequency": 2.0, "amplitude": 1.0})
