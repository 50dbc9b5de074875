"""`calibrate_steps` finds the number of sub-steps, and says so where it cannot."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sgjax import simulators
from sgjax.simulators import ExponentialDecay, OrnsteinUhlenbeck, Robertson, calibrate_steps
from sgjax.simulators._calibration import scaled_errors, solve_precisely
from sgjax.solvers import FixedSteps, GridSteps
from sgjax.studies import READY_MADE

KEY = jax.random.key(0)


def decay(**changes):
    return ExponentialDecay(ts=range(1, 5), solver=FixedSteps(1, "heun"), **changes)


@pytest.fixture(scope="module")
def found():
    return calibrate_steps(
        decay(), KEY, num_draws=512, candidates=(32, 1), num_references=8, quantile=0.99
    )


def test_chooses_the_smallest_that_will_do(found):
    assert [row[0] for row in found.table] == [1, 32]
    assert found.num_substeps == 32
    assert found.table[-1][2] <= 1e-3 < found.table[-2][2]
    for _, median, common, rare, largest in found.table:
        assert 0 < median <= common <= rare <= largest


def test_changes_the_number_and_nothing_else(found):
    solver = FixedSteps(found.num_substeps, "heun")
    assert found.simulator.solver == solver
    np.testing.assert_array_equal(found.simulator.ts, decay().ts)
    assert type(found.simulator) is ExponentialDecay


def test_holds_it_against_a_reference(found):
    assert found.num_references == 8
    # The check passes lanes below the tolerance, of which these are the first.
    assert 0 < found.reference_error < 2e-3


def test_reference_is_in_double_precision():
    thetas = {"rate": jnp.array([0.3, 1.7])}
    values = solve_precisely(decay(), thetas).values
    rates = np.asarray(thetas["rate"], np.float64)
    exact = np.exp(-rates[:, None] * np.arange(1, 5))[..., None]
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, exact, rtol=1e-7)
    assert jnp.ones(1).dtype == jnp.float32


def test_errors_are_relative_to_each_channel():
    reference = np.array([[[1.0, 100.0], [2.0, 200.0]]])
    values = reference + np.array([[[0.0, 0.0], [0.1, 2.0]]])
    np.testing.assert_allclose(scaled_errors(values, reference), [0.05])


def test_a_silent_channel_has_no_error():
    assert scaled_errors(np.zeros((1, 3, 1)), np.zeros((1, 3, 1))) == 0


def test_non_finite_simulations_count_as_infinite():
    values = np.array([[[1.0]], [[np.nan]], [[np.inf]]])
    np.testing.assert_array_equal(scaled_errors(values, np.ones((3, 1, 1))), [0, np.inf, np.inf])
    np.testing.assert_array_equal(scaled_errors(np.ones((3, 1, 1)), values), [0, np.inf, np.inf])


def test_no_candidate_will_do():
    stiff = decay(prior={"rate": dist.LogNormal(8.0, 0.1)})
    with pytest.raises(ValueError, match=r"no candidate.*not finite.*'rate'.*implicit=True"):
        calibrate_steps(stiff, KEY, num_draws=32, candidates=(1,))


def test_needs_fixed_steps_of_an_ode(unchecked):
    with pytest.raises(ValueError, match="adaptive steps"):
        calibrate_steps(Robertson(), KEY)
    with pytest.raises(ValueError, match="solves no ODE"):
        calibrate_steps(OrnsteinUhlenbeck(), KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is empty"):
        calibrate_steps(decay(), KEY, candidates=())


@pytest.mark.slow
def test_a_field_that_depends_on_the_precision_is_caught():
    class Fickle(simulators.AbstractODESimulator):
        """Twice as fast in float64: agrees with itself at 2n, and with the reference never."""

        prior: dict
        ts: np.ndarray
        t0: float = 0.0
        solver: FixedSteps = FixedSteps(8)

        channels = ("value",)

        def initial_state(self, theta):
            return jnp.ones(())

        def vector_field(self, t, state, theta):
            return -theta["rate"] * state * (2.0 if state.dtype == jnp.float64 else 1.0)

        def readout(self, trajectory, theta):
            return trajectory[:, None]

    fickle = Fickle({"rate": dist.Uniform(0.5, 1.0)}, np.arange(1.0, 4.0))
    with pytest.raises(ValueError, match="agrees with itself"):
        calibrate_steps(fickle, KEY, num_draws=8, candidates=(8,), num_references=2)


FIXED = [
    name
    for name, cls in vars(simulators).items()
    if isinstance(cls, type)
    and issubclass(cls, simulators.AbstractODESimulator)
    and isinstance(getattr(cls, "solver", None), GridSteps)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_shipped_defaults_meet_the_tolerance(name):
    simulator = getattr(simulators, name)()
    default = simulator.solver.num_substeps
    found = calibrate_steps(simulator, jax.random.key(3), candidates=(default,))
    assert found.simulator.solver == simulator.solver
    assert dataclasses.replace(simulator).solver.num_substeps == found.num_substeps


def test_the_shipped_table_is_of_what_ships():
    """Every mechanism on a grid of steps, those of the ready-made studies too, as it is now."""
    shipped = {
        name: value()
        for name, value in vars(simulators).items()
        if inspect.isclass(value) and isinstance(getattr(value, "solver", None), GridSteps)
    }
    for name, ready in READY_MADE.items():
        for mechanism, simulator in ready.study().mechanisms.items():
            shipped[f"{name}: {mechanism}"] = simulator
    rows = simulators.shipped_errors()
    assert rows.keys() == shipped.keys()
    for name, simulator in shipped.items():
        row, solver = rows[name], simulator.solver
        method = getattr(solver, "method", type(solver).__name__)
        assert (row["num_substeps"], row["method"]) == (solver.num_substeps, method)
        assert 0 <= row["median"] <= row["q99"] <= row["q999"] <= 1e-3
