"""Lanes for stiff systems: the order, the linear systems, stiff equations with known solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from test_lanes import Pair, solve

from sgjax.simulators import Robertson
from sgjax.solvers import LaneSteps
from sgjax.solvers.rosenbrock import inverse, rodas4

TS = np.array([0.1, 0.5, 2.0])


def circle(t, y, pull):
    """Around the unit circle once in 2 pi, its first number pulled towards where it should be."""
    square = y.one**2 + jnp.sum(y.two**2, axis=1)
    towards = pull * (jnp.cos(t) - y.one)
    return Pair(-y.two[:, 0] * square + towards * y.one**2, (y.one * square)[:, None])


def test_order():
    @jax.jit
    def errors(count):
        pull = jnp.array([0.0, 5.0])
        h = jnp.full(2, 2.0) / count

        def step(index, carry):
            state, _ = carry
            return rodas4(circle, index * h, h, state, pull)

        start = Pair(jnp.ones(2), jnp.zeros((2, 1)))
        end, error = jax.lax.fori_loop(0, count, step, (start, start))
        return jnp.hypot(end.one - np.cos(2.0), end.two[:, 0] - np.sin(2.0)), jnp.abs(error.one)

    with jax.enable_x64(True):
        found = [errors(count) for count in (128, 256, 512)]
    found, estimated = (np.log2(np.array(values)) for values in zip(*found, strict=True))
    # The error of a whole course goes with the fourth power, and the estimate of a step as well.
    np.testing.assert_allclose(-np.diff(found, axis=0), 4, atol=0.25)
    np.testing.assert_allclose(-np.diff(estimated, axis=0), 4, atol=0.25)


@pytest.mark.parametrize("size", [1, 5, 14])
def test_inverse(size):
    matrices = np.random.default_rng(size).normal(size=(32, size, size))
    matrices[: 16 if size > 1 else 0, 0, 0] = 0.0  # without pivots this would be the end
    found = inverse(jnp.asarray(np.moveaxis(matrices, 0, 2), jnp.float32))
    exact = np.moveaxis(np.linalg.inv(matrices), 0, 2)
    scale = np.abs(exact).max(axis=(0, 1)) * np.linalg.cond(matrices)
    assert (np.abs(found - exact) / scale).max() < 1e-6


def test_a_singular_matrix_is_not_finite_and_its_neighbour_is():
    growth = lambda t, y, args: y
    end, _ = rodas4(growth, jnp.zeros(2), jnp.array([4.0, 0.5]), jnp.ones(2), None)
    assert not np.isfinite(end[0])
    np.testing.assert_allclose(end[1], np.exp(0.5), rtol=1e-3)


def follows(t, y, rate):
    """After exp(-rate t): both are cos t. Prothero and Robinson (1974)."""
    towards = lambda y, rate, t: rate * (jnp.cos(t) - y) - jnp.sin(t)
    return Pair(towards(y.one, rate, t), towards(y.two, rate[:, None], t[:, None]))


def test_stiff_and_others_together():
    rates = np.geomspace(0.1, 1e6, 100).astype(np.float32)
    found = solve(LaneSteps(1e-4, 1e-6, num_lanes=7, implicit=True), TS, rates, field=follows)
    exact = np.tile(np.cos(TS)[:, None], 100)
    np.testing.assert_allclose(found.one, exact, atol=2e-4)
    np.testing.assert_allclose(found.two, np.stack([exact, exact], axis=2), atol=2e-4)


def test_one_that_never_ends_holds_up_its_lane_only():
    def lost(t, y, rate):
        gone = (rate > 2) & (t > 0.3)
        return follows(t, y._replace(one=jnp.where(gone, jnp.nan, y.one)), rate)

    rates = np.where(np.arange(60) % 10 == 3, 5.0, 1.0)
    found = solve(LaneSteps(num_lanes=8, implicit=True), TS, rates, field=lost)
    np.testing.assert_array_equal(np.isnan(found.one), (rates > 2) & (TS[:, None] > 0.3))
    kept = np.cos(np.tile(TS[:, None], 54))
    np.testing.assert_allclose(found.one[:, rates < 2], kept, rtol=1e-3)


def test_too_few_steps_are_not_finite():
    hurried = lambda t, y, rate: follows(rate * t, y, 1e4 + 0 * rate)
    steps = LaneSteps(max_steps=40, implicit=True)
    found = solve(steps, [10.0], [20.0, 1e-3], field=hurried)
    np.testing.assert_array_equal(np.isnan(found.one[0]), [True, False])


def test_forward_derivatives():
    decay = lambda t, y, rate: Pair(-rate * y.one, -(rate**2 * y.two.T).T)
    ends = lambda rate: solve(LaneSteps(1e-5, 1e-8, implicit=True), [1.0], rate, field=decay)
    rates = jnp.array([0.5, 2.0])
    _, slopes = jax.jvp(ends, (rates,), (jnp.ones(2),))
    np.testing.assert_allclose(slopes.one[0], -np.exp(-rates), rtol=1e-3)
    exact = -2 * rates * np.exp(-(rates**2))
    np.testing.assert_allclose(slopes.two[0], np.stack([exact, exact], axis=1), rtol=1e-3)


@pytest.mark.parametrize("sites", [5, 16])
def test_diffusion(sites):
    """Of few numbers and of many, whose linear systems are solved in another way."""
    site = np.arange(1, sites + 1)
    mode = np.sin(np.pi * site / (sites + 1)) + np.sin(np.pi * site * sites / (sites + 1))
    eigenvalues = 4 * np.sin(np.pi * np.array([1, sites]) / (2 * (sites + 1))) ** 2

    def diffusion(t, u, rate):
        wide = jnp.pad(u, ((0, 0), (1, 1)))
        return rate[:, None] * (wide[:, 2:] - 2 * u + wide[:, :-2])

    rates = jnp.array([0.1, 1.0, 1e3])
    start = jnp.tile(jnp.asarray(mode, jnp.float32), (3, 1))
    steps = LaneSteps(1e-5, 1e-6, implicit=True)
    found = jax.jit(lambda rates: steps.solve(diffusion, start, 0.0, TS, rates))(rates)
    slow, fast = np.exp(-eigenvalues[:, None, None] * TS[:, None] * np.asarray(rates))
    smooth = np.sin(np.pi * site / (sites + 1))
    exact = slow[..., None] * smooth + fast[..., None] * (mode - smooth)
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_van_der_pol():
    """With a ratio of time scales of a million; values of Hairer and Wanner (1996) at 1 and 2."""

    def oscillator(t, y, scale):
        return Pair(y.two[:, 0], ((1 - y.one**2) * y.two[:, 0] - y.one)[:, None] / scale[:, None])

    start = Pair(jnp.full(2, 2.0), jnp.zeros((2, 1)))
    steps = LaneSteps(1e-5, 1e-6, implicit=True)
    run = jax.jit(lambda scale: steps.solve(oscillator, start, 0.0, np.array([1.0, 2.0]), scale))
    found = run(jnp.full(2, 1e-6))
    np.testing.assert_array_equal(found.one[:, 0], found.one[:, 1])
    np.testing.assert_allclose(found.one[:, 0], [-1.863646254808130, 1.706167732170483], rtol=2e-3)
    np.testing.assert_allclose(
        found.two[:, 0, 0], [0.7535430865435460, -0.8928097010247975], rtol=2e-3
    )


@pytest.mark.slow
def test_robertson():
    """Right to what its docstring says, by an implicit Runge-Kutta method in float64."""
    rates = {
        "k1": np.array([0.04, 0.02, 0.08]),
        "k2": np.array([3e7, 6e7, 1.5e7]),
        "k3": np.array([1e4, 2e4, 5e3]),
    }
    world, keys = Robertson(), jax.random.split(jax.random.key(0), 3)
    run = jax.jit(lambda keys, thetas: world.simulate_batch(keys, thetas).values)
    found = run(keys, {name: jnp.asarray(rate, jnp.float32) for name, rate in rates.items()})

    def reference(k1, k2, k3):
        def field(t, y):
            first, second, third = k1 * y[0], k2 * y[1] ** 2, k3 * y[1] * y[2]
            return [third - first, first - second - third, second]

        span, start = (0.0, world.ts[-1]), [1.0, 0.0, 0.0]
        return solve_ivp(field, span, start, "Radau", world.ts, rtol=1e-8, atol=1e-12).y.T

    exact = np.stack([reference(*each) for each in zip(*rates.values(), strict=True)])
    error = np.abs(found - exact)
    largest = exact.max(axis=1)
    assert (error.max(axis=1) / largest)[:, [0, 2]].max() < 1e-5
    assert (error / exact)[..., 1].max() < 1e-4
