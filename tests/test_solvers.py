"""Steps: measured convergence order, grids of uneven times, what happens at the limits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.simulators import SIR, HarmonicOscillator
from sgjax.solvers import (
    SPLITTINGS,
    TABLEAUS,
    AdaptiveSteps,
    ExponentialSteps,
    FixedSteps,
    Semilinear,
    SymplecticSteps,
    step_grid,
)
from sgjax.solvers.exponential import weights


def swing(t, y, rate):
    """Its solution from 1 is exp(rate * sin t)."""
    return rate * y * jnp.cos(t)


def solve(steps, ts, t0=0.0, field=swing):
    ts = np.asarray(ts, float)
    start = jnp.ones((), jnp.result_type(float))
    return np.asarray(jax.jit(lambda rate: steps.solve(field, start, t0, ts, rate))(1.5))


@pytest.mark.parametrize("method", list(TABLEAUS))
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


@pytest.mark.parametrize("method", ["heun", "tsit5", "carpenter_kennedy"])
def test_forms_are_the_same_numbers(method):
    ts = np.arange(1.0, 5.0)
    with jax.enable_x64(True):
        unrolled, scanned = (
            solve(FixedSteps(3, method, form), ts) for form in ("unrolled", "scanned")
        )
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-13)


def test_the_form_follows_from_the_size_of_the_state():
    few, many = (jax.ShapeDtypeStruct((count,), jnp.float32) for count in (8, 9))
    assert FixedSteps().for_state(few).form == "unrolled"
    assert FixedSteps().for_state(many).form == "scanned"
    assert FixedSteps(form="unrolled").for_state(many).form == "unrolled"


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
    with pytest.raises(ValueError, match="scanned"):
        FixedSteps(form="rolled")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="positive"):
        AdaptiveSteps(relative_tolerance=0.0)


class Swing(NamedTuple):
    """A pendulum, or a planet."""

    angle: jax.Array
    speed: jax.Array


def pendulum(t, y, rate):
    return Swing(y.speed, -rate * jnp.sin(y.angle) + 0.3 * jnp.cos(2 * t))


def swing_pendulum(steps, ts, field=pendulum, start=(1.0, 0.0)):
    state = Swing(*(jnp.asarray(value, jnp.result_type(float)) for value in start))
    return jax.jit(lambda rate: steps.solve(field, state, 0.0, np.asarray(ts, float), rate))(1.5)


@pytest.mark.parametrize("method", list(SPLITTINGS))
def test_symplectic_order_under_a_force_that_varies(method):
    order = SPLITTINGS[method].order
    ts = np.arange(1.0, 5.0)
    with jax.enable_x64(True):
        exact = swing_pendulum(FixedSteps(64), ts).angle
        errors = [
            np.abs(swing_pendulum(SymplecticSteps(("angle",), n, method), ts).angle - exact).max()
            for n in (8, 32)
        ]
    assert np.log(errors[0] / errors[1]) / np.log(4) == pytest.approx(order, abs=0.25)


def test_splittings_are_consistent():
    for splitting in SPLITTINGS.values():
        assert sum(splitting.drifts) == pytest.approx(1, abs=1e-12)
        assert sum(splitting.kicks) == pytest.approx(1, abs=1e-12)
        # Symmetric in time, hence of even order and reversible.
        assert splitting.kicks == pytest.approx(splitting.kicks[::-1])
        assert splitting.drifts == pytest.approx(splitting.drifts[::-1])


def test_energy_does_not_drift():
    field = lambda t, y, rate: Swing(y.speed, -rate * jnp.sin(y.angle))
    ts = np.arange(1.0, 1501.0)  # about 250 swings

    def energy_error(steps) -> np.ndarray:
        motion = swing_pendulum(steps, ts, field)
        energy = motion.speed**2 / 2 - 1.5 * jnp.cos(motion.angle)
        return np.abs(np.asarray(energy) + 1.5 * np.cos(1.0))

    with jax.enable_x64(True):
        kept = energy_error(SymplecticSteps(("angle",), 3))
        lost = energy_error(FixedSteps(3, "rk4"))
    assert kept[-100:].max() < 1.2 * kept[:100].max()
    assert lost[-100:].max() > 8 * lost[:100].max()


@pytest.mark.parametrize("method", list(SPLITTINGS))
def test_time_reversed_motion_returns(method):
    field = lambda t, y, rate: Swing(y.speed, -rate * jnp.sin(y.angle))
    steps = SymplecticSteps(("angle",), 4, method)
    with jax.enable_x64(True):
        end = swing_pendulum(steps, range(1, 21), field)
        back = swing_pendulum(steps, range(1, 21), field, (end.angle[-1], -end.speed[-1]))
    np.testing.assert_allclose([back.angle[-1], -back.speed[-1]], [1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (lambda t, y, rate: Swing(y.speed, -y.angle - rate * y.speed), "rate of speed depends"),
        (lambda t, y, rate: Swing(y.speed - rate * y.angle, -y.angle), "rate of angle depends"),
        (lambda t, y, rate: Swing(y.speed + t, -y.angle), "depends on the time"),
    ],
)
def test_symplectic_steps_refuse_what_is_not_separable(field, words):
    with pytest.raises(ValueError, match=words):
        swing_pendulum(SymplecticSteps(("angle",)), [1.0, 2.0], field)


def test_symplectic_steps_ask_for_positions(unchecked):
    for names in ((), ("x",), ("angle", "speed")):
        with pytest.raises(ValueError, match="positions"):
            swing_pendulum(SymplecticSteps(names), [1.0])
    with pytest.raises(ValueError, match="verlet"):
        SymplecticSteps(("angle",), method="euler")  # pyright: ignore[reportArgumentType]


STIFF = Semilinear(
    linear=lambda rate: jnp.asarray([-40.0, -1.0, 0.0, 0.5]) * rate,
    nonlinear=lambda t, y, rate: jnp.cos(t) * jnp.roll(y, 1) - y * jnp.roll(y, 2) ** 2,
)


def solve_stiff(steps, ts, field=STIFF):
    start = jnp.asarray([0.005, -0.5, 0.3, 0.2], jnp.result_type(float))
    return np.asarray(
        jax.jit(lambda rate: steps.solve(field, start, 0.0, np.asarray(ts, float), rate))(1.0)
    )


@pytest.mark.slow
def test_exponential_order():
    ts = np.arange(0.5, 2.5, 0.5)
    with jax.enable_x64(True):
        exact = solve_stiff(FixedSteps(512), ts)
        errors = [np.abs(solve_stiff(ExponentialSteps(n), ts) - exact).max() for n in (2, 8, 32)]
        explicit = solve_stiff(FixedSteps(2), ts)
    # The stiff part does not bound the step; it costs a part of the order while it is large.
    assert errors[0] < 1e-4
    assert not np.all(np.abs(explicit) < 10)
    assert 3.3 < np.log(errors[1] / errors[2]) / np.log(4) < 4.3


def test_the_linear_part_is_exact_and_may_rotate():
    rates = jnp.asarray([-1e5, -3.0, 2j * np.pi, -1 + 5j], jnp.complex64)
    field = Semilinear(lambda args: rates, lambda t, y, args: 0 * y)
    start = jnp.ones(4, jnp.complex64)
    ts = np.array([0.25, 1.0])
    found = ExponentialSteps(1).solve(field, start, 0.0, ts, None)
    np.testing.assert_allclose(found, np.exp(np.asarray(rates) * ts[:, None]), atol=1e-5)


def test_weights_near_zero_keep_their_digits():
    # The limits at z = 0 are those of the classical method of order four.
    for rate in (0.0, 1e-6):
        found = weights(jnp.asarray(rate), jnp.asarray(1.0))
        expected = [1, rate, rate / 2, 1 / 2, 1 / 6, 1 / 3, 1 / 6]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_many_small_steps_do_not_add_up_to_another_rate():
    rates = jnp.asarray([-0.9, -0.3, 0.1, 0.7], jnp.float32)
    field = Semilinear(lambda args: rates, lambda t, y, args: 0 * y)
    count = 4096
    steps = ExponentialSteps(count)
    found = jax.jit(lambda y: steps.solve(field, y, 0.0, np.array([1.0]), None))(jnp.ones(4))
    # Roundings that are each as good as drawn: a sum like a root, not like the number of steps.
    error = np.abs(np.asarray(found[0]) / np.exp(np.asarray(rates, float)) - 1)
    assert error.max() < 2 * np.sqrt(count) * np.finfo(np.float32).eps


def test_adaptive_steps_control_complex_states():
    field = lambda t, y, rate: rate * y
    start, ts, rate = jnp.ones(1, jnp.complex64), np.array([0.5, 1.0]), jnp.complex64(-1 + 6j)
    steps = AdaptiveSteps(relative_tolerance=1e-5)
    found = jax.jit(lambda rate: steps.solve(field, start, 0.0, ts, rate))(rate)
    # The tolerance is of each step, of which there are some dozens.
    np.testing.assert_allclose(found[:, 0], np.exp(complex(rate) * ts), atol=30 * 1e-5)


def test_exponential_steps_ask_for_the_linear_part():
    with pytest.raises(ValueError, match="AbstractSemilinearSimulator"):
        solve(ExponentialSteps(), [1.0, 2.0])


def test_a_mechanism_may_step_symplectically():
    thetas = {"angular_frequency": jnp.array([0.5, 2.0]), "initial_velocity": jnp.array([0.0, 1.0])}
    keys = jax.random.split(jax.random.key(0), 2)
    for method, error in (("verlet", 2e-2), ("yoshida4", 1e-4)):
        steps = SymplecticSteps(("position",), num_substeps=16, method=method)
        latent = HarmonicOscillator(solver=steps).simulate_batch(keys, thetas)
        exact = jax.vmap(HarmonicOscillator().analytic)(thetas)
        np.testing.assert_allclose(latent.values, exact, atol=error)
    outbreak = SIR(solver=SymplecticSteps(("S",)))
    with pytest.raises(ValueError, match="FixedSteps"):
        outbreak.simulate(jax.random.key(0), {"beta": jnp.array(2.0), "gamma": jnp.array(0.5)})


@pytest.mark.parametrize(
    "steps",
    [
        FixedSteps(4),
        SymplecticSteps(("angle",), 4, "yoshida4"),
        pytest.param(AdaptiveSteps(1e-9, 1e-11), marks=pytest.mark.slow),
    ],
    ids=lambda steps: type(steps).__name__,
)
def test_reverse_derivatives_of_a_solve(steps):
    def end(rate):
        state = Swing(jnp.ones(()), jnp.zeros(()))
        return steps.solve(pendulum, state, 0.0, np.array([1.0, 3.0]), rate).angle[-1]

    check_derivative(end, 1.5)


@pytest.mark.slow
def test_reverse_derivatives_of_an_exponential_solve():
    start = jnp.asarray([0.005, -0.5, 0.3, 0.2])
    ends = lambda rate: ExponentialSteps(4).solve(STIFF, start.astype(float), 0.0, TWO, rate)
    check_derivative(lambda rate: jnp.sum(ends(rate)[-1] ** 2), 1.0)


TWO = np.array([1.0, 2.0])


def check_derivative(function, at: float, step: float = 1e-4) -> None:
    """Against central differences, in float64."""
    with jax.enable_x64(True):
        run, slope = jax.jit(function), float(jax.jit(jax.grad(function))(at))
        measured = float((run(at + step) - run(at - step)) / (2 * step))
    assert abs(measured) > 1e-3
    assert slope == pytest.approx(measured, rel=1e-5)
