"""Steps: measured convergence order, grids of uneven times, what happens at the limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.solvers import TABLEAUS, AdaptiveSteps, FixedSteps, step_grid


def swing(t, y, rate):
    """Its solution from 1 is exp(rate * sin t)."""
    return rate * y * jnp.cos(t)


def solve(steps, ts, t0=0.0, field=swing):
    ts = np.asarray(ts, float)
    start = jnp.ones((), jnp.result_type(float))
    return np.asarray(jax.jit(lambda rate: steps.solve(field, start, t0, ts, rate))(1.5))


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "tsit5"])
def test_convergence_order(method):
    order = TABLEAUS[method].order
    counts = {1: (16, 64), 2: (8, 32), 4: (4, 16), 5: (4, 16)}[order]
    ts = np.arange(1.0, 5.0)
    exact = np.exp(1.5 * np.sin(ts))
    with jax.enable_x64(True):
        errors = [np.abs(solve(FixedSteps(n, method), ts) - exact).max() for n in counts]
    slope = np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])
    assert slope == pytest.approx(order, abs=0.35)


def test_every_method_has_a_consistent_tableau():
    for tableau in TABLEAUS.values():
        assert sum(tableau.b) == pytest.approx(1, abs=1e-12)
        for node, row in zip(tableau.c, tableau.a, strict=True):
            assert sum(row) == pytest.approx(node, abs=1e-12)
        # The condition of order two, which Euler's method alone fails.
        second = sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True))
        assert second == pytest.approx(0.5 if tableau.order > 1 else 0.0, abs=1e-12)


def test_substeps_are_steps():
    whole = solve(FixedSteps(4, "rk4"), np.arange(1.0, 5.0))
    quarters = solve(FixedSteps(1, "rk4"), np.arange(0.25, 4.25, 0.25))
    np.testing.assert_allclose(whole, quarters[3::4], rtol=1e-6)


def test_even_times_are_the_grid():
    knots, kept = step_grid(0.0, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(knots, [0, 1, 2, 3])
    np.testing.assert_array_equal(knots[kept], [1, 2, 3])


def test_long_gaps_are_cut_up():
    ts = np.array([1.0, 2.0, 10.0, 11.0])
    knots, kept = step_grid(0.0, ts)
    np.testing.assert_array_equal(knots[kept], ts)
    np.testing.assert_array_equal(knots, [0, 1, 2, 4, 6, 8, 10, 11])


def test_the_start_alone():
    knots, kept = step_grid(2.0, np.array([2.0]))
    np.testing.assert_array_equal(knots[kept], [2.0])
    np.testing.assert_array_equal(solve(FixedSteps(), [2.0], t0=2.0), [1.0])


def test_uneven_times_are_solved():
    ts = np.array([0.0, 1.0, 1.5, 6.0])
    np.testing.assert_allclose(solve(FixedSteps(8), ts), np.exp(1.5 * np.sin(ts)), rtol=1e-4)


@pytest.mark.parametrize("implicit", [False, True])
def test_adaptive_steps_meet_their_tolerance(implicit):
    ts = np.array([0.5, 3.0, 4.0])
    steps = AdaptiveSteps(relative_tolerance=1e-5, implicit=implicit)
    np.testing.assert_allclose(solve(steps, ts), np.exp(1.5 * np.sin(ts)), rtol=2e-4)


def test_too_few_steps_are_not_finite():
    assert np.all(np.isnan(solve(AdaptiveSteps(max_steps=3), [40.0])))


def test_wrong_settings(unchecked):
    with pytest.raises(ValueError, match="num_substeps"):
        FixedSteps(num_substeps=0)
    with pytest.raises(ValueError, match="euler"):
        FixedSteps(method="leapfrog")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="positive"):
        AdaptiveSteps(relative_tolerance=0.0)
