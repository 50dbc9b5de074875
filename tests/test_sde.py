"""The noise of stochastic differential equations: its law, and what each number depends on."""

import functools
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sgjax import samplers
from sgjax.simulators import AbstractSDESimulator
from sgjax.simulators._sde import CounterBrownianPath, EulerMaruyama

KEYS = jax.random.split(jax.random.key(11), 512)
STEPS, DIMENSIONS = 128, 3


@functools.cache
def normals() -> np.ndarray:
    """Simulations x steps x dimensions."""
    index = jnp.arange(STEPS * DIMENSIONS).reshape(STEPS, DIMENSIONS)
    first, second = (half[:, None, None] for half in samplers.seeds(KEYS))
    return np.asarray(samplers.normal_at((first, second), index), np.float64)


def test_normals_are_normal():
    z = normals().ravel()
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        sample = z**power
        assert abs(sample.mean() - expected) < 4 * sample.std() / np.sqrt(z.size)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(z * 1.03, "norm").pvalue < 1e-3, "the test would tell a wrong scale"
    # Each simulation, each step and each dimension on its own.
    for axes in ((1, 2), (0, 2), (0, 1)):
        size = z.size / normals().mean(axis=axes).size
        assert stats.kstest(normals().mean(axis=axes) * np.sqrt(size), "norm").pvalue > 1e-3
        spread = (normals() ** 2 - 1).sum(axis=axes) / np.sqrt(2 * size)
        assert np.abs(spread).max() < 5


def test_normals_are_independent():
    """No correlation of values or sizes between steps, dimensions and neighbouring simulations."""
    for z in (normals(), normals() ** 2 - 1):
        z = z / z.std()
        steps = [(z[:, lag:] * z[:, :-lag]).mean() for lag in (1, 2, 3, 7, 32, 64)]
        lanes = [(z[lag:] * z[:-lag]).mean() for lag in (1, 2, 16, 256)]
        # Shifted against each other, two simulations might share a stream.
        shifted = [(z[1:, lag:] * z[:-1, :-lag]).mean() for lag in (1, 2, 32)]
        across = [(z[..., a] * z[..., b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
        assert np.abs([*steps, *lanes, *shifted, *across]).max() < 4 / np.sqrt(z.size / 3)


def test_keys_that_count_up_are_as_good():
    """Seeds are whitened: users write `jax.random.key(0)`, `key(1)`, and so on."""
    keys = jax.vmap(jax.random.key)(jnp.arange(512))
    first, second = (half[:, None] for half in samplers.seeds(keys))
    z = np.asarray(samplers.normal_at((first, second), jnp.arange(256)), np.float64)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(z)[np.triu_indices(512, 1)]).max() < 6 / np.sqrt(256)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(z.size)


def test_normals_are_the_exact_quantiles():
    """Over the whole range of words, to the roundings of float32."""
    words = jnp.arange(2**16, dtype=jnp.uint32) * 2**16 + jnp.uint32(2**15)
    words = jnp.concatenate([words, jnp.asarray([0, 255, 2**32 - 1], jnp.uint32)])
    exact = stats.norm.ppf((np.asarray(words >> 8, np.float64) + 0.5) / 2**24)
    z = np.asarray(jax.jit(samplers._normal, static_argnums=1)(words, jnp.dtype(jnp.float32)))
    assert np.abs(z / exact - 1).max() < 1e-6
    assert np.all(np.diff(z[:-3]) > 0)


# The path and its solver --------------------------------------------------------------------------


class Pair(NamedTuple):
    """A scalar and a vector, each with noise of its own."""

    level: jax.Array
    modes: jax.Array


class Wiener(AbstractSDESimulator):
    """Brownian motion that grows: three components in two quantities."""

    prior: dict
    ts: np.ndarray
    t0: float = 0.0
    num_substeps: int = 4

    channels = ("level", "first", "second")

    def initial_state(self, theta):
        return Pair(jnp.zeros(()), jnp.zeros(2))

    def drift(self, t, state, theta):
        return Pair(0.1 * state.level, jnp.zeros(2))

    def diffusion(self, t, state, theta):
        return Pair(theta["noise"], theta["noise"] * (1 + 0.1 * state.modes))

    def readout(self, trajectory, theta):
        return jnp.concatenate([trajectory.level[:, None], trajectory.modes], axis=1)


WIENER = Wiener({}, np.asarray([0.5, 1.0, 1.5, 3.5]))


@functools.cache
def wiener():
    thetas = {"noise": jnp.linspace(0.5, 1.5, 512)}
    values = jax.jit(lambda k, t: WIENER.simulate_batch(k, t).values)
    return thetas, np.asarray(values(KEYS, thetas))


def test_components_are_independent():
    values = wiener()[1] / np.asarray(wiener()[0]["noise"])[:, None, None]
    table = np.corrcoef(values[:, -1].T)
    assert np.abs(table - np.eye(3)).max() < 4 / np.sqrt(512)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_any_batch_gives_the_same_bits(size):
    thetas, values = wiener()
    few = jax.jit(lambda k, t: WIENER.simulate_batch(k, t).values)
    places = np.arange(100, 100 + size)
    np.testing.assert_array_equal(
        few(KEYS[places], {"noise": thetas["noise"][places]}), values[places]
    )


def test_another_key_gives_another_course():
    assert len(np.unique(wiener()[1][:, -1, 0])) > 500


def stepped(solver, stops: np.ndarray, every: int, start=None):
    """A solve of one scalar equation of 16 simulations, saved every so many stops."""
    grid = jnp.linspace(0.0, 2.0, 33)
    path = CounterBrownianPath(
        t0=0.0, t1=2.0, seeds=samplers.seeds(KEYS[:16]), stops=grid, example=jnp.zeros(())
    )
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y),
        diffrax.ControlTerm(lambda t, y, args: jnp.diag(1 + 0.1 * y), path),
    )
    y0 = jnp.ones(16) if start is None else start
    knots = jnp.asarray(stops[::every])
    return diffrax.diffeqsolve(
        terms, solver, stops[0], stops[-1], None, y0, stepsize_controller=diffrax.StepTo(knots)
    ).ys[-1]


@pytest.mark.slow
def test_substeps_are_steps_of_euler_and_maruyama():
    stops = np.linspace(0.0, 2.0, 33)
    whole = stepped(EulerMaruyama(8), stops, 8)
    np.testing.assert_allclose(whole, stepped(diffrax.Euler(), stops, 1), rtol=1e-5)
    # And a solve that starts half-way goes on with the same noise.
    half = stepped(EulerMaruyama(8), stops[:17], 8)
    np.testing.assert_array_equal(stepped(EulerMaruyama(8), stops[16:], 8, half), whole)


def test_path_refuses_what_is_no_increment():
    path = CounterBrownianPath(
        t0=0.0,
        t1=1.0,
        seeds=samplers.seeds(KEYS[:2]),
        stops=jnp.asarray([0.0, 1.0]),
        example=jnp.zeros(()),
    )
    with pytest.raises(ValueError, match="increments over the steps"):
        path.evaluate(0.0)
