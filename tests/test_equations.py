"""Equations that cannot be compiled, or say something else than meant: one message, the remedy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax._types import as_times
from sgjax.simulators import (
    SIR,
    AbstractODESimulator,
    AbstractSDESimulator,
    HarmonicOscillator,
    check_equations,
)
from sgjax.solvers import AdaptiveSteps, FixedSteps, LaneSteps


class Level(NamedTuple):
    level: jax.Array


class Tank(AbstractODESimulator):
    """A tank that empties, by the equations given."""

    field: object
    start: object = lambda theta: Level(1)
    seen: object = lambda trajectory: trajectory.level[:, None]
    prior: dict = None
    ts: np.ndarray = None
    t0: float = 0.0
    solver: FixedSteps = FixedSteps(1)

    channels = ("level",)

    def initial_state(self, theta):
        return self.start(theta)

    def vector_field(self, t, state, theta):
        return self.field(t, state, theta)

    def readout(self, trajectory, theta):
        return self.seen(trajectory)


def tank(field, **changes):
    return Tank(field, prior={"rate": dist.LogNormal(0.0, 1.0)}, ts=as_times([1.0, 2.0]), **changes)


def outflow(t, y, theta):
    return Level(-theta["rate"] * y.level)


def branch(t, y, theta):
    return outflow(t, y, theta) if y.level > 0 else Level(0.0 * y.level)


def shape_of_data(t, y, theta):
    return Level(-theta["rate"] * jnp.sum(jnp.ones(4)[jnp.arange(4) < y.level]))


def length_of_data(t, y, theta):
    return Level(-theta["rate"] * jnp.ones(int(theta["rate"])).sum())


def host(t, y, theta):
    return Level(-theta["rate"] * np.sqrt(y.level))


def calls_back(t, y, theta):
    kind = jax.ShapeDtypeStruct((), jnp.float32)
    return Level(-jax.pure_callback(lambda level: np.float32(level), kind, y.level))


def prints(t, y, theta):
    jax.debug.print("{}", y.level)
    return outflow(t, y, theta)


def prints_deep_down(t, y, theta):
    return Level(
        jax.lax.fori_loop(0, 2, lambda i, level: prints(t, Level(level), theta).level, 1.0)
    )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (branch, r"Tank.vector_field needs the value.*jnp.where"),
        (shape_of_data, "needs the value"),
        (length_of_data, "needs the value"),
        (host, "NumPy function"),
        (calls_back, "calls back to the host"),
        (prints, "calls back to the host"),
        (prints_deep_down, "calls back to the host"),
        (
            lambda t, y, theta: Level(-theta["speed"] * y.level),
            r"'speed', which has no prior.*rate",
        ),
        (lambda t, y, theta: (-y.level,), "one rate for each quantity"),
        (lambda t, y, theta: Level(jnp.stack([y.level] * 2)), r"level.* the shape \(2,\)"),
    ],
)
def test_wrong_equations_are_named(field, message):
    with pytest.raises(ValueError, match=message):
        sg.Study(tank(field), sg.observations.Poisson(), sg.Estimate())


def test_wrong_starts_and_readouts_are_named():
    with pytest.raises(ValueError, match=r"Tank.initial_state asks for 'level'"):
        check_equations(tank(outflow, start=lambda theta: Level(theta["level"])))
    with pytest.raises(ValueError, match=r"Tank.readout gives .*\(2,\) instead of \(2, 1\)"):
        check_equations(tank(outflow, seen=lambda trajectory: trajectory.level))


def test_stochastic_equations_are_checked():
    class Walk(AbstractSDESimulator):
        """A walk whose noise has two parts, its state one."""

        prior: dict
        ts: np.ndarray
        t0: float = 0.0
        num_substeps: int = 1

        channels = ("level",)

        def initial_state(self, theta):
            return Level(0.0)

        def drift(self, t, state, theta):
            return Level(-theta["rate"] * state.level)

        def diffusion(self, t, state, theta):
            return Level(jnp.ones(2))

        def readout(self, trajectory, theta):
            return trajectory.level[:, None]

    with pytest.raises(ValueError, match=r"Walk.diffusion gives the rate"):
        check_equations(Walk({"rate": dist.LogNormal(0.0, 1.0)}, as_times([1.0])))


def test_whole_numbers_are_real_ones():
    """A start of 1, not 1.0, and a rate of 0 are what people write."""
    simulator = tank(lambda t, y, theta: Level(0), start=lambda theta: Level(1))
    check_equations(simulator)
    values = simulator.simulate(jax.random.key(0), {"rate": jnp.ones(())}).values
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, [[1.0], [1.0]])


def test_a_tolerance_that_hides_the_outbreak_is_refused():
    shares = {"population": 1.0, "initial_infectious": 1e-6}
    with pytest.raises(ValueError, match=r"begins with .I of about 1e-06.*to 1e-08 or less"):
        check_equations(SIR(solver=LaneSteps(), **shares))
    check_equations(SIR(solver=LaneSteps(absolute_tolerance=1e-9), **shares))
    check_equations(SIR(solver=FixedSteps(4), **shares))
    # A velocity that may be small by chance is no such case.
    check_equations(HarmonicOscillator(solver=AdaptiveSteps()))
