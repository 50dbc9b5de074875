"""The tasks of sbibm: noise against its density, exact samplers, the layout of published files."""

import bz2

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from benchmarks import sbibm_files
from benchmarks.sbibm_exact import exact_draws
from benchmarks.sbibm_tasks import TASKS, Instant, make_task
from sgjax.observations import log_likelihood
from sgjax.simulators import Latent

KEY = jax.random.key(0)


def latent_of(task, theta):
    """The noiseless record of a task without time."""
    return task.study.simulator.simulate(KEY, {"theta": jnp.asarray(theta, jnp.float32)})


def densities(task, theta, data):
    """The likelihood of many data under one theta."""
    latent = latent_of(task, theta)
    given = {"theta": jnp.asarray(theta, jnp.float32)}

    @jax.jit
    @jax.vmap
    def density(values):
        record = task.observed(np.zeros(latent.values.size))
        record = record.with_values(values.reshape(latent.values.shape))
        return log_likelihood(task.study.observation, given, latent, record)

    return np.exp(np.asarray(density(jnp.asarray(data, jnp.float32)), np.float64))


def draws(task, theta, num):
    """Data of one theta."""
    latent = latent_of(task, theta)
    given = {"theta": jnp.asarray(theta, jnp.float32)}
    repeated = Latent(*(jnp.repeat(x[None], num, 0) for x in (latent.ts, latent.values)), None)
    thetas = {name: jnp.repeat(value[None], num, 0) for name, value in given.items()}
    made = task.study.observe(jax.random.split(KEY, num), thetas, repeated)
    return np.asarray(made.values, np.float64).reshape(num, -1)


def grid(centre, half, points):
    """A square of points, and the area of each."""
    axis = np.linspace(-half, half, points)
    mesh = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return mesh + centre, (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize(
    ("name", "theta"), [("two_moons", [0.3, -0.5]), ("gaussian_mixture", [2, 1])]
)
def test_density_integrates_to_one_and_is_that_of_the_draws(name, theta):
    task = make_task(name)
    made = draws(task, theta, 4000)
    spread = {"two_moons": 0.2, "gaussian_mixture": 6.0}[name]
    centre = np.asarray(latent_of(task, theta).values)[0] + (
        [0.25, 0.0] if name == "two_moons" else 0.0
    )
    points, area = grid(centre, spread, 600)  # no point on the edge of the crescent
    mass = densities(task, theta, points) * area
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    for moment in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: (x[:, 0] - centre[0]) ** 2):
        found = moment(made)
        error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - mass @ moment(points)) < 4 * error


def test_correlated_pairs():
    task, theta = make_task("slcp"), [0.7, -1.5, -0.9, 1.1, 0.6]
    made = draws(task, theta, 4000)
    s, t, rho = 0.9**2, 1.1**2, np.tanh(0.6)
    covariance = np.array([[s**2, rho * s * t], [rho * s * t, t**2]]) + 1e-6 * np.eye(2)
    law = scipy.stats.multivariate_normal([0.7, -1.5], covariance)
    expected = law.logpdf(made.reshape(-1, 4, 2)).sum(axis=1)
    np.testing.assert_allclose(np.log(densities(task, theta, made)), expected, rtol=2e-5, atol=1e-4)
    # Squared Mahalanobis distances of eight numbers.
    distances = -2 * (expected - 4 * law.logpdf([0.7, -1.5]))
    assert scipy.stats.kstest(distances, scipy.stats.chi2(8).cdf).pvalue > 1e-3


def test_strongly_correlated_pairs_keep_their_density():
    task, theta = make_task("slcp"), [0.0, 0.0, 2.0, 2.5, 3.0]
    made = draws(task, theta, 50)
    s, t, rho = 4.0, 6.25, np.tanh(3.0)
    covariance = np.array([[s**2, rho * s * t], [rho * s * t, t**2]]) + 1e-6 * np.eye(2)
    law = scipy.stats.multivariate_normal([0.0, 0.0], covariance)
    expected = law.logpdf(made.reshape(-1, 4, 2)).sum(axis=1)
    np.testing.assert_allclose(np.log(densities(task, theta, made)), expected, rtol=1e-3)


def test_spike_sums():
    """They come from spikes, and their density has the ratios that the spikes' has."""
    task = make_task("bernoulli_glm")
    design = np.asarray(task.study.observation.design, np.float64)
    assert design.shape == (100, 10)
    thetas = [np.linspace(-1, 1, 10), np.cos(np.arange(10.0))]
    spikes = np.random.default_rng(0).random(100) < 0.4
    data = (spikes @ design)[None]
    found = [np.log(densities(task, theta, data))[0] for theta in thetas]
    odds = [design @ theta for theta in thetas]
    exact = [spikes @ o - np.logaddexp(0, o).sum() for o in odds]
    assert found[0] - found[1] == pytest.approx(exact[0] - exact[1], rel=1e-4)
    made = draws(task, thetas[1], 2000)
    expected = scipy.special.expit(odds[1]) @ design
    np.testing.assert_allclose(latent_of(task, thetas[1]).values[0], expected, rtol=1e-4, atol=1e-3)
    errors = made.std(axis=0) / np.sqrt(len(made))
    assert np.all(np.abs(made.mean(axis=0) - expected) < 4 * errors)
    counts = made[:, 0]
    np.testing.assert_array_equal(counts, np.round(counts))


@pytest.mark.parametrize(
    ("name", "data"), [("two_moons", [-0.6, 0.2]), ("gaussian_mixture", [9.0, 1.0])]
)
def test_exact_samplers_draw_from_prior_times_likelihood(name, data):
    task = make_task(name)
    made, facts = exact_draws(task, np.array(data), 4000, KEY)
    assert facts == {"method": "closed form"}
    half = {"two_moons": 1.0, "gaussian_mixture": 10.0}[name]
    points, _ = grid(0.0, half - 1e-6, 801)

    @jax.jit
    @jax.vmap
    def likelihood(theta):
        given = {"theta": theta}
        latent = task.study.simulator.simulate(KEY, given)
        record = task.observed(np.array(data))
        return log_likelihood(task.study.observation, given, latent, record)

    mass = np.exp(np.asarray(likelihood(jnp.asarray(points, jnp.float32)), np.float64))
    mass /= mass.sum()
    for moment in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1]):
        values = moment(made)
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - mass @ moment(points)) < 4 * error


@pytest.mark.parametrize("name", TASKS)
def test_published_numbers_find_their_place(name):
    """The record of the numbers 0, 1, 2, ... and parameters in the published order."""
    task = make_task(name)
    times, channels = task.study.ts.size, len(task.study.channels)
    record = task.observed(np.arange(times * channels, dtype=float))
    first = [0, 10] if name == "lotka_volterra" else list(range(channels))
    assert record.values[0].tolist() == first
    labels = task.study.specs["parameters"].names
    parts = {label: np.full(3, place) for place, label in enumerate(labels)}
    assert task.columns(parts)[0].tolist() == list(range(len(labels)))
    if isinstance(task.study.simulator, Instant):
        whole = {"theta": np.tile(np.arange(len(labels)), (3, 1))}
        np.testing.assert_array_equal(task.columns(whole), task.columns(parts))


def test_files_of_an_installed_package_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "sbibm" / "tasks" / "sir" / "files" / "num_observation_3"
    folder.mkdir(parents=True)
    (tmp_path / "sbibm" / "__init__.py").write_text("raise ImportError('never imported')")
    (folder / "observation.csv").write_text("data_1,data_2\n1.0,2.5\n")
    (folder / "true_parameters.csv").write_text("a,b\n0.5,0.25\n")
    rows = "\n".join(f"{i},{-i}" for i in range(sbibm_files.NUM_DRAWS))
    packed = folder / "reference_posterior_samples.csv.bz2"
    packed.write_bytes(bz2.compress(f"a,b\n{rows}\n".encode()))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = sbibm_files.published("sir", 3)
    assert found.data.tolist() == [1.0, 2.5]
    assert found.parameters.tolist() == [0.5, 0.25]
    assert found.draws.shape == (10_000, 2)
    assert found.draws[7].tolist() == [7.0, -7.0]
    with pytest.raises(ValueError, match="no observation 4"):
        sbibm_files.published("sir", 4)
    packed.write_bytes(bz2.compress(b"a,b\n1,2\n"))
    with pytest.raises(ValueError, match="1 draws"):
        sbibm_files.published("sir", 3)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(sbibm_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps sbibm"):
        sbibm_files.published("sir", 1)
    with pytest.raises(ValueError, match="choose one of"):
        make_task("no_such_task")
