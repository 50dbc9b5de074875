"""Chain-binomial epidemics against the exact law of the chain, branching theory and the ODE."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sgjax.simulators import SIR, AbstractChainBinomialSimulator, StochasticSIR
from sgjax.solvers import FixedSteps

SIZE = 4096
KEYS = jax.random.split(jax.random.key(21), SIZE)


@functools.cache
def program(simulator_of, **settings):
    simulator = simulator_of(**settings)
    return jax.jit(lambda k, t: simulator.simulate_batch(k, t).states)


def simulate(theta: dict, keys=KEYS, **settings):
    """The states of many epidemics, as float64: simulations x times."""
    thetas = {name: jnp.full(len(keys), value) for name, value in theta.items()}
    states = program(StochasticSIR, **settings)(keys, thetas)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), states)


THETA = {"beta": 0.8, "gamma": 0.4}
SMALL = dict(population=12.0, initial_infectious=2.0, num_substeps=1)


def exact_chain(beta: float, gamma: float, times: list[int]) -> list[np.ndarray]:
    """P(S = s, I = i) of the small chain after so many steps of a day, by its own recursion."""
    size, infectious = 12, 2
    law = np.zeros((size + 1, size + 1))
    law[size - infectious, infectious] = 1
    found = {}
    for time in range(1, max(times) + 1):
        later = np.zeros_like(law)
        for s, i in zip(*np.nonzero(law), strict=True):
            caught = stats.binom.pmf(np.arange(s + 1), s, -np.expm1(-beta * i / size))
            healed = stats.binom.pmf(np.arange(i + 1), i, -np.expm1(-gamma))
            for a, p in enumerate(caught):
                for b, q in enumerate(healed):
                    later[s - a, i + a - b] += law[s, i] * p * q
        law = later * (later > 1e-14)
        found[time] = law
    return [found[time] for time in times]


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """P-value, cells of fewer than five expected pooled."""
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def test_law_is_that_of_the_chain():
    """After a day, and the final size, against the exact transition matrix."""
    states = simulate(THETA, **SMALL, ts=tuple(range(1, 31)))
    early, late = exact_chain(**THETA, times=[2, 30])
    for law, at in ((early, 1), (late, 29)):
        seen = np.zeros_like(law)
        np.add.at(seen, (states.S[:, at].astype(int), states.I[:, at].astype(int)), 1)
        assert not np.any(seen[law == 0])
        assert chi_square(seen.ravel(), law.ravel() * SIZE) > 1e-3
    wrong = exact_chain(beta=0.72, gamma=0.4, times=[30])[0]
    assert chi_square(seen.ravel(), wrong.ravel() * SIZE) < 1e-3, "the test would tell a wrong rate"


def test_counts_are_whole_and_conserved():
    states = simulate(THETA, population=1000.0, initial_infectious=3.0)
    for count in states:
        assert np.all(count >= 0)
        np.testing.assert_array_equal(count, np.round(count))
    np.testing.assert_array_equal(states.S + states.I + states.R, 1000.0)
    # Without visitors nobody is infected from nobody.
    over = states.I[:, :-1] == 0
    assert over.any() and np.all(states.I[:, 1:][over] == 0)
    visited = simulate(THETA, population=1000.0, initial_infectious=0.0, imported_infectious=2.0)
    assert (visited.I[:, -1] > 0).mean() > 0.5


@pytest.mark.parametrize("infectious", [1.0, 2.0])
def test_extinction_is_that_of_the_branching_process(infectious):
    substeps = 16
    world = dict(population=100_000.0, initial_infectious=infectious, ts=tuple(range(5, 61, 5)))
    # Gaps of five days: steps of 1/16 day.
    states = simulate(THETA, **world, num_substeps=5 * substeps)
    extinct = (states.I[:, -1] == 0) & (states.R[:, -1] < 1000)
    # Whoever stays infectious for G steps, G geometric, infects Poisson(beta tau G) others.
    tau = 1 / substeps
    heal, chance = -np.expm1(-THETA["gamma"] * tau), 0.5
    for _ in range(2000):
        step = np.exp(THETA["beta"] * tau * (chance - 1))
        chance = heal * step / (1 - (1 - heal) * step)
    chance = chance**infectious
    assert abs(extinct.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / SIZE)
    # In continuous time it is 1 / R0 to the power of the number infectious.
    limit = (THETA["gamma"] / THETA["beta"]) ** infectious
    assert chance == pytest.approx(limit, rel=infectious * 2 * THETA["gamma"] * tau)


@pytest.mark.slow
def test_mean_tends_to_the_ode_to_first_order_in_the_step():
    world = dict(population=4e6, initial_infectious=4e4, ts=tuple(range(2, 31, 4)))
    exact = SIR(**world, solver=FixedSteps(64)).simulate(jax.random.key(0), THETA).states
    errors = []
    for substeps in (4, 8):
        states = simulate(THETA, keys=KEYS[:64], **world, num_substeps=4 * substeps)
        errors.append((states.R.mean(axis=0) - np.asarray(exact.R)) / 4e6)
    deviation = states.R.std(axis=0).max() / 4e6 / 8
    ratio = errors[0] / errors[1]
    place = np.argmax(np.abs(errors[1]))
    assert np.abs(errors[1]).max() < 0.02
    assert abs(errors[1][place]) > 20 * deviation
    assert ratio[place] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("size", [1, 9])
def test_any_batch_gives_the_same_bits(size):
    world = dict(population=1000.0, initial_infectious=3.0)
    together = simulate(THETA, **world)
    few = simulate(THETA, keys=KEYS[100 : 100 + size], **world)
    np.testing.assert_array_equal(few.I, together.I[100 : 100 + size])
    assert len(np.unique(together.I, axis=0)) > 0.5 * SIZE  # the others died out alike


def test_impossible_worlds_are_invalid():
    """Nan, which the stream counts as failed simulations; nothing is clipped."""
    assert np.all(np.isnan(simulate({"beta": -0.1, "gamma": 0.4}).I[:, -1]))
    assert np.all(np.isnan(simulate({"beta": np.nan, "gamma": 0.4}).I[:, -1]))
    assert np.all(np.isnan(simulate(THETA, population=5.0, initial_infectious=6.0).S[:, -1]))


def test_no_gradient_flows():
    simulator = StochasticSIR(num_substeps=2, ts=(1.0, 2.0))
    final = lambda theta: simulator.simulate(KEYS[0], theta).values.sum()
    assert all(slope == 0 for slope in jax.jit(jax.grad(final))(THETA).values())


# Competing exits, arrivals, departures ------------------------------------------------------------


class WardState(NamedTuple):
    """Patients of two sexes in a ward, and the sums of those who left it."""

    ward: jax.Array
    home: jax.Array
    dead: jax.Array


class Ward(AbstractChainBinomialSimulator):
    """Patients come at random; each leaves by one of three ways."""

    prior: dict
    ts: np.ndarray
    t0: float = 0.0
    num_substeps: int = 1

    channels = ("ward",)
    transitions = ("ward -> home", "-> ward", "ward -> dead", "ward ->")

    def initial_state(self, theta):
        return WardState(jnp.asarray([40.0, 200.4]), jnp.zeros(2), jnp.zeros(2))

    def rates(self, t, state, theta):
        none = jnp.zeros(2)
        return theta["home"] + none, jnp.asarray([2.0, 30.0]), theta["dead"] + none, 0.3 + none

    def readout(self, trajectory, theta):
        return trajectory.ward.sum(axis=-1)[:, None]


def ward_states(**theta):
    thetas = {name: jnp.full(SIZE, value) for name, value in theta.items()}
    simulator = Ward({}, np.asarray([0.5]))
    return jax.jit(lambda k, t: simulator.simulate_batch(k, t).states)(KEYS, thetas)


def test_competing_exits_are_multinomial():
    states = jax.tree.map(
        lambda leaf: np.asarray(leaf[:, 0], float), ward_states(home=0.8, dead=0.1)
    )
    leaving = -np.expm1(-0.5 * 1.2)
    p, q = leaving * 0.8 / 1.2, leaving * 0.1 / 1.2
    for index, (start, arriving) in enumerate(((40, 1.0), (200, 15.0))):
        home, dead, ward = (leaf[:, index] for leaf in (states.home, states.dead, states.ward))
        for count, share in ((home, p), (dead, q)):
            expected = stats.binom(start, share).pmf(np.arange(start + 1)) * SIZE
            assert chi_square(np.bincount(count.astype(int), minlength=start + 1), expected) > 1e-3
        # Those who share one compartment compete: the multinomial's negative correlation.
        correlation = -np.sqrt(p * q / ((1 - p) * (1 - q)))
        assert abs(np.corrcoef(home, dead)[0, 1] - correlation) < 4 / np.sqrt(SIZE)
        mean, variance = (
            start * (1 - leaving) + arriving,
            start * leaving * (1 - leaving) + arriving,
        )
        assert abs(ward.mean() - mean) < 4 * np.sqrt(variance / SIZE)
        assert abs(ward.var() / variance - 1) < 4 * np.sqrt(2 / SIZE)
    # Exits of rate 0 are never taken, also where all of them are.
    assert np.all(np.asarray(ward_states(home=0.0, dead=0.0).home) == 0)


class Misspelt(Ward):
    """A transition to nowhere."""

    transitions = ("ward -> heaven", "-> ward", "ward -> dead", "ward ->")


def test_wrong_transitions_are_named():
    theta = {"home": 0.1, "dead": 0.1}
    with pytest.raises(ValueError, match=r"'ward -> heaven'.*ward, home, dead"):
        Misspelt({}, np.asarray([0.5])).simulate(KEYS[0], theta)
