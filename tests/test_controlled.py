"""Mechanisms that a held control drives: each hold a solve of its own, and the cart-pole."""

import functools
import itertools
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax._types import as_times
from sgjax.simulators import AbstractControlledSimulator, CartPole, _forms
from sgjax.simulators.cart_pole import CartPoleState
from sgjax.solvers import AdaptiveSteps, FixedSteps, LaneSteps

UNEVEN = (0.02, 0.04, 0.1, 0.11, 0.2)
KEY = jax.random.key(0)
HEUN = FixedSteps(1, "heun")
"""Of few stages, which compile fast, where any method will do."""


def forces(holds: int) -> dist.Distribution:
    return dist.Uniform(-10.0, 10.0).expand([holds]).to_event(1)


def cart_pole(ts, **changes) -> CartPole:
    prior = dict(CartPole().prior) | {"control": forces(len(ts))}
    return CartPole(prior=prior, ts=ts, **changes)


def poles(simulator: CartPole, *size: int):
    """Parameters in the ranges of the prior, by NumPy, which compiles nothing."""
    rng = np.random.default_rng(5)
    theta = {name: rng.uniform(-0.05, 0.05, size) for name in simulator.prior}
    theta["cart_mass"], theta["pole_mass"], theta["half_length"] = (
        nominal * rng.uniform(0.5, 1.5, size) for nominal in (1.0, 0.1, 0.5)
    )
    return theta | {"control": rng.uniform(-10.0, 10.0, (*size, simulator.num_holds))}


@functools.cache
def courses(num_substeps: int):
    """The program of a batch of the cart-pole as it ships: values, states, energies along them."""
    simulator = CartPole(solver=FixedSteps(num_substeps))

    def run(keys, thetas):
        latent = simulator.simulate_batch(keys, thetas)
        energies = jax.vmap(jax.vmap(simulator.energy, (0, None)))(latent.states, thetas)
        return latent.values, latent.states, energies

    return simulator, jax.jit(run)


# Holds --------------------------------------------------------------------------------------------


class Walk(NamedTuple):
    place: jax.Array


class Walker(AbstractControlledSimulator):
    """A place in the plane whose velocity is two controls, the first of them in a rhythm."""

    ts: np.ndarray
    solver: FixedSteps | AdaptiveSteps | LaneSteps
    prior: dict
    t0: float = 1.0

    channels = ("x", "y")

    def initial_state(self, theta):
        return Walk(jnp.zeros(2))

    def vector_field(self, t, state, theta):
        return Walk(theta["control"] * jnp.stack([jnp.cos(t), jnp.ones_like(t)]))

    def readout(self, trajectory, theta):
        return trajectory.place


def walker(ts, solver) -> Walker:
    times = as_times(ts)
    shape = [times.size - int(times[0] == 1.0), 2]
    return Walker(times, solver, {"control": dist.Normal(0.0, 1.0).expand(shape).to_event(2)})


@pytest.mark.parametrize(
    ("solver", "ts"),
    [
        (FixedSteps(2, form="scanned"), (1.0, 1.5, 1.6, 4.0)),
        (AdaptiveSteps(1e-6, 1e-8), (1.0, 1.5, 1.6, 4.0)),
        (LaneSteps(1e-6, 1e-8), (1.5, 1.6, 4.0)),
    ],
    ids=("fixed", "adaptive", "lanes"),
)
def test_a_course_is_the_sum_of_its_holds(solver, ts):
    """By any solver, over uneven times, in the rhythm of the simulation's own clock."""
    simulator = walker(ts, solver)
    controls = np.random.default_rng(0).normal(size=(3, 3, 2))
    values = jax.jit(lambda k, c: simulator.simulate_batch(k, {"control": c}).values)(
        jax.random.split(KEY, 3), controls
    )
    stops = np.array((1.5, 1.6, 4.0))
    before = np.array((1.0, 1.5, 1.6))
    pieces = np.stack([np.sin(stops) - np.sin(before), stops - before], axis=1)
    exact = np.cumsum(controls * pieces, axis=1)
    if ts[0] == 1.0:
        assert not np.any(values[:, 0])
    # Two steps of order 5 over a hold of 2.4 leave 4e-4; the others are as exact as asked.
    np.testing.assert_allclose(values[:, -3:], exact, atol=1e-3)
    np.testing.assert_allclose(values[:, -3:-1], exact[:, :2], atol=1e-5)


def test_each_hold_is_its_own_solve():
    """A control looked up by time is wrong at the end of a step, where the last stages lie."""
    simulator = cart_pole(UNEVEN, solver=FixedSteps(8))
    theta = poles(simulator)

    @jax.jit
    def solved(start, t0, t1, control):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(simulator.vector_field),
            diffrax.Dopri8(),
            t0=t0,
            t1=t1,
            dt0=None,
            y0=start,
            args=theta | {"control": control},
            stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-13),
        ).ys

    with jax.enable_x64(True):
        found = jax.jit(lambda theta: simulator.simulate(KEY, theta).states)(theta)
        state = CartPoleState(*(np.float64(theta[f"initial_{name}"]) for name in found._fields))
        for j, (start, end) in enumerate(itertools.pairwise((0.0, *UNEVEN))):
            ends = solved(state, start, end, theta["control"][j])
            state = CartPoleState(*(np.asarray(leaf)[0] for leaf in ends))
            np.testing.assert_allclose([np.asarray(leaf)[j] for leaf in found], state, atol=1e-9)


@pytest.fixture(scope="module")
def push():
    """A cart-pole, its parameters, and a program: control to the end and its slope."""
    simulator = cart_pole(np.arange(1, 6) * 0.04, solver=HEUN)
    theta = poles(simulator)

    def end(control):
        states = simulator.simulate(KEY, theta | {"control": control}).states
        return states.rate[-1] + states.position[2], states

    return simulator, theta, jax.jit(jax.value_and_grad(end, has_aux=True))


def test_an_unchanging_control_is_an_ordinary_equation(push):
    simulator, theta, program = push
    with jax.enable_x64(True):
        (_, held), _ = program(np.full(5, 7.0))
        start = jax.tree.map(jnp.asarray, simulator.initial_state(theta))
        field = simulator.vector_field
        solve = lambda start, theta: HEUN.solve(field, start, 0.0, simulator.ts, theta)
        free = jax.jit(solve)(start, theta | {"control": 7.0})
    np.testing.assert_allclose(held, free, rtol=1e-10, atol=1e-12)


def test_derivatives_by_the_control(push):
    _, theta, program = push
    with jax.enable_x64(True):
        slope = np.asarray(program(theta["control"])[1])
        for j in (0, 4):
            step = 1e-4 * np.eye(5)[j]
            above, below = (program(theta["control"] + sign * step)[0][0] for sign in (1, -1))
            measured = float(above - below) / 2e-4
            assert abs(measured) > 1e-3
            assert slope[j] == pytest.approx(measured, rel=1e-6)


def test_equations_are_checked_with_the_control_of_one_hold():
    simulator = cart_pole(UNEVEN)
    assert _forms.possible_forms(simulator) == ("unrolled",)
    study = sg.Study(simulator, sg.observations.Gaussian(), sg.Estimate("half_length"))
    assert study.channels == simulator.channels
    columns = dict(simulator.prior) | {"control": dist.Normal(0, 1).expand([5, 1]).to_event(2)}
    with pytest.raises(
        ValueError, match=r"CartPole.vector_field gives .*velocity the shape \(1,\)"
    ):
        sg.simulators.check_equations(CartPole(prior=columns, ts=UNEVEN))


def test_a_wrong_number_of_controls_is_refused():
    few = r"CartPole holds 5 controls.*\(4,\): .*such as Uniform.*\.expand\(\[5\]\)"
    prior = dict(CartPole().prior) | {"control": forces(4)}
    with pytest.raises(ValueError, match=few):
        CartPole(prior=prior, ts=UNEVEN)
    with pytest.raises(ValueError, match=r"the shape of `control` is \(\)"):
        CartPole(prior=prior | {"control": dist.Normal(0.0, 1.0).expand([5])}, ts=UNEVEN)
    with pytest.raises(ValueError, match=r"has no prior of `control`.*expand\(\[5\]\)"):
        CartPole(prior={}, ts=UNEVEN)
    # What a prior is a function of is known only once it is drawn.
    late = CartPole(prior=prior | {"control": lambda theta: forces(4)}, ts=UNEVEN)
    with pytest.raises(ValueError, match=few):
        sg.simulators.check_equations(late)
    with pytest.raises(ValueError, match=few):
        late.simulate(KEY, poles(late) | {"control": np.ones(4)})


# The cart-pole ------------------------------------------------------------------------------------


def test_the_force_does_work_and_gives_momentum():
    """Which two laws the two equations of motion follow from."""
    simulator = CartPole()

    def momentum(state, theta):
        swing = theta["half_length"] * state.rate * jnp.cos(state.angle)
        whole = theta["cart_mass"] + theta["pole_mass"]
        return whole * state.velocity + theta["pole_mass"] * swing

    def grow(state, theta):
        slope = simulator.vector_field(0.0, state, theta)
        laws = (simulator.energy, momentum)
        return [jax.jvp(lambda y, law=law: law(y, theta), (state,), (slope,))[1] for law in laws]

    # One hold is enough: any force, any state.
    rng = np.random.default_rng(1)
    thetas = poles(simulator, 20) | {"control": rng.uniform(-10.0, 10.0, 20)}
    states = CartPoleState(*rng.normal(scale=2.0, size=(4, 20)))
    with jax.enable_x64(True):
        power, force = jax.jit(jax.vmap(grow))(states, thetas)
    np.testing.assert_allclose(power, thetas["control"] * states.velocity, rtol=1e-9)
    np.testing.assert_allclose(force, thetas["control"], rtol=1e-9)


@pytest.mark.parametrize(("precise", "num_substeps"), [(False, 1), (True, 1), (True, 2)])
def test_energy_stays_without_a_force(precise, num_substeps):
    """Through two seconds, in which every pole falls through."""
    simulator, program = courses(num_substeps)
    thetas = poles(simulator, 16) | {"control": np.zeros((16, 100))}
    with jax.enable_x64(precise):
        _, states, energies = map(jax.device_get, program(jax.random.split(KEY, 16), thetas))
    assert states.angle.std() > 1
    drift = np.abs(energies / energies[:, :1] - 1).max()
    # A method of order 5: halved steps leave a thirty-second. In float32 it is rounding.
    assert drift < (2e-8 / 2 ** (5 * (num_substeps - 1)) if precise else 5e-6)


def test_alone_as_among_others():
    """To the bit."""
    simulator, program = courses(1)
    keys, thetas = jax.random.split(KEY, 16), poles(simulator, 16)
    values = np.asarray(program(keys, thetas)[0])
    alone = jax.jit(lambda k, t: simulator.simulate(k, t).values)
    for index in (0, 15):
        theta = {name: draw[index] for name, draw in thetas.items()}
        np.testing.assert_array_equal(alone(keys[index], theta), values[index])
