"""`calibrate_tolerances` lets the smallest state that matters decide the absolute tolerance."""

import jax
import numpy as np
import pytest

from sgjax.simulators import SIR, calibrate_tolerances
from sgjax.simulators._tolerances import smallest_size
from sgjax.solvers import LaneSteps

KEY = jax.random.key(0)


def outbreak(**changes):
    """Begins with a millionth of the population, which is counted in fractions."""
    return SIR(
        population=1.0, initial_infectious=1e-6, ts=(1, 50, 100), solver=LaneSteps(**changes)
    )


@pytest.fixture(scope="module")
def found():
    return calibrate_tolerances(
        outbreak(absolute_tolerance=1e-9),
        KEY,
        num_draws=64,
        candidates=(1e-4, 0.3),
        num_references=4,
    )


def test_the_smallest_state_that_matters_decides(found):
    assert found.smallest == pytest.approx(1e-6, rel=1e-3)
    assert found.absolute == pytest.approx(found.relative * found.smallest)
    solver = found.simulator.solver
    assert (solver.relative_tolerance, solver.absolute_tolerance) == (
        found.relative,
        found.absolute,
    )


def test_the_loosest_that_will_do_is_chosen_and_checked(found):
    assert [row[0] for row in found.table] == [0.3, 1e-4]
    assert found.relative == 1e-4
    assert found.table[1][2] <= 1e-3 < found.table[0][2]
    assert 0 < found.reference_error < 1e-3


def test_sizes_are_of_starts_and_of_courses():
    starts = {"A": np.ones(100), "B": np.zeros(100)}
    courses = {"A": np.full((100, 3), 2.0), "B": np.linspace(0, 1e-5, 300).reshape(3, 100).T}
    largest = courses["B"].max(axis=1)
    assert smallest_size(starts, courses) == pytest.approx(np.quantile(largest, 0.01))


def test_no_tolerance_will_do():
    with pytest.raises(ValueError, match=r"no tolerance brings.*beta"):
        calibrate_tolerances(
            outbreak(absolute_tolerance=1e-9), KEY, num_draws=16, candidates=(0.5,), tolerance=1e-9
        )


def test_needs_adaptive_steps():
    with pytest.raises(ValueError, match="calibrate_steps"):
        calibrate_tolerances(SIR(), KEY)
