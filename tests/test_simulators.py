"""What every mechanism promises, held against every mechanism that is exported."""

import functools
import inspect
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sgjax import simulators
from sgjax._types import as_times
from sgjax.devices import compiler_options, jit
from sgjax.priors import sample_prior
from sgjax.simulators import (
    SEIR,
    SIR,
    SIRS,
    AbstractChainBinomialSimulator,
    AbstractSimulator,
    _base,
)
from sgjax.simulators._sde import AbstractSDESimulator
from sgjax.simulators._skeleton import MyMechanism
from sgjax.solvers import AdaptiveSteps, FixedSteps, LaneSteps, SymplecticSteps


def _concrete(candidate: object) -> bool:
    return (
        inspect.isclass(candidate)
        and issubclass(candidate, AbstractSimulator)
        and not inspect.isabstract(candidate)
    )


MECHANISMS = {name: cls for name, cls in vars(simulators).items() if _concrete(cls)}
MECHANISMS["MyMechanism"] = MyMechanism
JUMPS = frozenset(
    name for name, cls in MECHANISMS.items() if issubclass(cls, AbstractChainBinomialSimulator)
)
SHIPPED = sorted(MECHANISMS)
CONSERVING = [name for name in SHIPPED if "conserved" in vars(MECHANISMS[name])]
SOLVED = [name for name in SHIPPED if "analytic" in vars(MECHANISMS[name])]
DRAWS = 200
every_mechanism = pytest.mark.parametrize("name", SHIPPED)


def quickly(names: set[str], without: frozenset[str] = frozenset()):
    """Every mechanism in the slow suite, a few of them in the fast one."""
    marks = {name: [] if name in names else [pytest.mark.slow] for name in SHIPPED}
    return [pytest.param(name, marks=marks[name]) for name in SHIPPED if name not in without]


@functools.cache
def compiled(name: str):
    """The batch program of a mechanism as it ships, shared by all tests."""
    simulator = MECHANISMS[name]()
    return jax.jit(lambda keys, thetas: simulator.simulate_batch(keys, thetas))


@functools.cache
def world(name: str):
    """Prior draws of a mechanism, their simulations, and what it says must hold of them."""
    simulator = MECHANISMS[name]()

    def per_lane(theta, latent):
        conserved = getattr(simulator, "conserved", lambda state, theta: None)
        analytic = getattr(simulator, "analytic", lambda theta: None)
        start = simulator.initial_state(theta)
        along = jax.vmap(conserved, in_axes=(0, None))(latent.states, theta)
        return conserved(start, theta), along, analytic(theta)

    # Draws and checks go without `jit`: their small programs are shared by all mechanisms.
    keys = jax.random.split(jax.random.key(1), DRAWS)
    thetas = jax.vmap(lambda key: sample_prior(key, simulator.prior))(keys)
    latent = compiled(name)(keys, thetas)
    return simulator, keys, thetas, latent, jax.vmap(per_lane)(thetas, latent)


def lane(thetas, index: int):
    return {name: draw[index] for name, draw in thetas.items()}


def simulate(simulator, theta):
    """The values of one simulation of a mechanism with settings of its own."""
    theta = {name: jnp.asarray(value, jnp.float32) for name, value in theta.items()}
    key = jax.random.key(0)
    return np.asarray(jax.jit(lambda k, t: simulator.simulate(k, t).values)(key, theta))


def shipped(name: str, theta):
    """The values of one simulation of a mechanism as it ships, by the program of its world."""
    _, keys, thetas, _, _ = world(name)
    assert theta.keys() == thetas.keys()
    thetas = {name: jnp.full(keys.shape, value, jnp.float32) for name, value in theta.items()}
    return np.asarray(compiled(name)(keys, thetas).values[0])


def test_all_mechanisms_are_covered():
    files = Path(simulators.__file__).parent.glob("[a-z]*.py")
    assert len(MECHANISMS) - 1 == len(list(files)) >= 19


@every_mechanism
def test_documented(name):
    text = inspect.getdoc(MECHANISMS[name])
    for part in ("$$", "**Expected behaviour:**", "**Good values:**", "Source:"):
        assert part in text, f"the docstring of {name} lacks {part}"


@every_mechanism
def test_file_is_short(name):
    lines = Path(inspect.getfile(MECHANISMS[name])).read_text().splitlines()
    assert len(lines) <= (60 if name == "MyMechanism" else 100)


@every_mechanism
def test_shapes(name):
    simulator, _, _, latent, _ = world(name)
    lead = (DRAWS, simulator.ts.size)
    assert latent.values.shape == (*lead, len(simulator.channels))
    assert latent.values.dtype == jnp.float32
    assert all(leaf.shape[:2] == lead for leaf in jax.tree.leaves(latent.states))
    np.testing.assert_allclose(latent.ts, np.tile(simulator.ts, (lead[0], 1)), rtol=1e-6)


@every_mechanism
def test_draws_and_simulations_are_finite(name):
    _, _, thetas, latent, _ = world(name)
    assert all(np.all(np.isfinite(draw)) for draw in thetas.values())
    finite = np.isfinite(latent.values).all(axis=(1, 2))
    assert finite.mean() >= 0.99
    spread = np.std(np.asarray(latent.values)[finite, -1], axis=0)
    assert np.all(spread > 0), "every draw gives the same end"


AS_ALONE = {"FitzHughNagumo", "Gravity", "Lorenz96", "OrnsteinUhlenbeck", "SIR"}


@pytest.mark.parametrize("name", quickly(AS_ALONE))
def test_alone_as_among_others(name):
    """To the bit."""
    simulator, keys, thetas, latent, _ = world(name)
    alone = jax.jit(lambda key, theta: simulator.simulate(key, theta).values)
    for index in range(5):
        first = np.asarray(alone(keys[index], lane(thetas, index)))
        np.testing.assert_array_equal(first, np.asarray(latent.values[index]))
    # The last one once more: a simulation remembers nothing.
    np.testing.assert_array_equal(np.asarray(alone(keys[index], lane(thetas, index))), first)


def test_wide_vectors_are_the_same_numbers():
    simulator, keys, thetas, latent, _ = world("SIR")
    assert compiler_options(), "the option that ensembles are compiled with has gone"
    values = jit(lambda k, t: simulator.simulate_batch(k, t).values)(keys, thetas)
    np.testing.assert_array_equal(values, latent.values)


@pytest.mark.parametrize("size", [2, 9])
def test_batches_of_any_size_agree(size):
    """Fused multiply-adds differ in the odd lanes of a vector, so batches are filled up."""
    simulator, keys, thetas, latent, _ = world("FitzHughNagumo")
    few = {name: draw[:size] for name, draw in thetas.items()}
    values = jax.jit(lambda k, t: simulator.simulate_batch(k, t).values)(keys[:size], few)
    np.testing.assert_array_equal(values, latent.values[:size])


@pytest.mark.parametrize("name", ["SIR", "Gravity", "Lorenz96"])
def test_blocks_are_the_same_numbers(name, monkeypatch):
    simulator, keys, thetas, latent, _ = world(name)
    # 200 simulations in four blocks of 64, the last filled up.
    monkeypatch.setattr(_base, "block_size", lambda state: 64)
    values = jit(lambda k, t: simulator.simulate_batch(k, t).values)(keys, thetas)
    np.testing.assert_array_equal(values, latent.values)


def test_blocks_fit_the_cache():
    state = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    assert _base.block_size([state()] * 3) == 2720
    assert _base.block_size(state(40)) == 192
    assert _base.block_size(state(10**6)) == 16


@pytest.mark.parametrize("name", quickly({"SIR"}, JUMPS))
def test_gradient_is_finite(name):
    simulator, keys, thetas, _, _ = world(name)
    loss = lambda theta, key: jnp.mean(jnp.square(simulator.simulate(key, theta).values))
    lanes = isinstance(getattr(simulator, "solver", None), LaneSteps)
    gradient = jax.jit((jax.jacfwd if lanes else jax.grad)(loss))(lane(thetas, 0), keys[0])
    assert all(np.all(np.isfinite(slope)) for slope in gradient.values())
    assert any(np.any(slope != 0) for slope in gradient.values())


@pytest.mark.parametrize("name", CONSERVING)
def test_conserved(name):
    _, _, _, _, (start, along, _) = world(name)
    start = np.asarray(start)[:, None]
    drift = np.abs(np.asarray(along) - start) / np.abs(start)
    # Rounding, and the share of the solver's error that a non-linear invariant shows.
    assert drift.max() < 1e-4
    assert np.median(drift) < 5e-6


@pytest.mark.parametrize("name", SOLVED)
def test_analytic(name):
    _, _, _, latent, (_, _, exact) = world(name)
    scale = np.abs(exact).max(axis=1, keepdims=True)
    error = np.abs(np.asarray(latent.values) - np.asarray(exact)) / scale
    assert error.max() < 1e-3
    assert np.median(error) < 1e-5


def test_robertson_reference_values():
    """Hairer and Wanner (1996) give the solution at 40 seconds."""
    values = shipped("Robertson", {"k1": 0.04, "k2": 3e7, "k3": 1e4})
    at_40 = np.flatnonzero(np.isclose(simulators.Robertson().ts, 40.0))
    np.testing.assert_allclose(values[at_40[0]], [0.7158271, 9.1855e-6, 0.2841637], rtol=2e-3)


# Equivalences -------------------------------------------------------------------------------------

EPIDEMIC = {"beta": 1.7, "gamma": 0.5}


def test_fast_onset_turns_seir_into_sir():
    sir = shipped("SIR", EPIDEMIC)
    stepped = SEIR(solver=FixedSteps(num_substeps=128))
    seir = jax.jit(lambda theta: stepped.simulate(jax.random.key(0), theta).values)
    errors = [
        np.abs(np.asarray(seir(EPIDEMIC | {"sigma": sigma})) - sir).max()
        for sigma in (100.0, 200.0)
    ]
    assert errors[1] < 0.02 * sir.max()
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # of first order in 1 / sigma


def test_seair_without_silent_cases_is_seir():
    silent = {"asymptomatic_share": 0.0, "relative_infectiousness": 0.5, "gamma_asymptomatic": 0.3}
    theta = EPIDEMIC | {"sigma": 1.0}
    np.testing.assert_allclose(shipped("SEAIR", theta | silent), shipped("SEIR", theta), rtol=1e-5)


def test_sirs_without_waning_is_sir():
    sir = simulate(SIR(ts=SIRS().ts), EPIDEMIC)
    sirs = shipped("SIRS", EPIDEMIC | {"omega": 0.0})
    np.testing.assert_allclose(sirs, sir, rtol=1e-4, atol=1e-6)


def test_richards_with_exponent_one_is_logistic():
    theta = {"growth_rate": 0.8, "carrying_capacity": 90.0}
    np.testing.assert_allclose(
        shipped("Richards", theta | {"exponent": 1.0}), shipped("Logistic", theta), rtol=1e-4
    )


def test_final_size_of_an_epidemic():
    simulator = SIR(population=1000, initial_infectious=1, ts=range(1, 121))
    latent = jax.jit(lambda t: simulator.simulate(jax.random.key(0), t))(EPIDEMIC)
    size = 1 - float(latent.states.S[-1]) / 1000
    ratio = EPIDEMIC["beta"] / EPIDEMIC["gamma"]
    assert size == pytest.approx(1 - 0.999 * np.exp(-ratio * size), rel=1e-5)
    assert 0.9 < size < 1


def test_the_ring_carries_without_loss():
    simulator, _, thetas, _, _ = world("Lorenz96")
    theta = lane(thetas, 0)
    slope = simulator.vector_field(0.0, simulator.initial_state(theta), theta).x
    x = np.asarray(theta["initial"], np.float64)
    # What is left of the change of the sum of squares is damping and forcing.
    rest = np.sum(x * (float(theta["forcing"]) - x))
    assert float(np.sum(x * np.asarray(slope))) == pytest.approx(rest, rel=1e-4)
    with pytest.raises(ValueError, match="one entry a site"):
        simulators.Lorenz96(prior={"forcing": dist.Uniform(6.0, 10.0)})


def test_two_bodies_go_round_each_other():
    prior = {
        "position": dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2),
        "velocity": dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2),
    }
    # Masses 1 at distance 1, softened by 0.1: a circle whose rate follows from the pull.
    rate = np.sqrt(2 / (1 + 0.1**2) ** 1.5)
    period = 2 * np.pi / rate
    simulator = simulators.Gravity(
        softening=0.1,
        prior=prior,
        ts=[period * share / 8 for share in range(1, 9)],
        solver=SymplecticSteps(("position",), 16, "yoshida4"),
    )
    theta = {
        "position": [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0]],
        "velocity": [[0.0, 0.0], [rate / 2, -rate / 2], [0.0, 0.0]],
    }
    angle = np.arange(1, 9) * np.pi / 4
    x, y = np.cos(angle) / 2, np.sin(angle) / 2
    exact = np.stack([x, -x, y, -y, 0 * x, 0 * x], axis=1)
    np.testing.assert_allclose(simulate(simulator, theta), exact, atol=1e-4)
    with pytest.raises(ValueError, match="at least two"):
        simulators.Gravity(prior={})


def test_bodies_keep_their_momentum():
    _, _, thetas, latent, _ = world("Gravity")
    mass = np.asarray(thetas["mass"])[:, None, :]
    moments = lambda velocity: np.sum(mass * np.asarray(velocity), axis=-1)
    drift = moments(latent.states.velocity[:, -1]) - moments(thetas["velocity"])
    assert np.abs(drift).max() < 1e-4


# Times, initial states, channels ------------------------------------------------------------------


def test_uneven_times_read_the_same_course():
    uneven = simulate(SIR(ts=[1, 2, 4, 5, 14]), EPIDEMIC)
    np.testing.assert_allclose(uneven, shipped("SIR", EPIDEMIC)[[0, 1, 3, 4, 13]], rtol=1e-3)


def test_first_time_may_be_the_start():
    values = simulate(SIR(ts=[0.0], initial_infectious=7), EPIDEMIC)
    assert values == 7.0
    assert values.dtype == np.float32  # although the field is a whole number
    with pytest.raises(ValueError, match="move `t0`"):
        SIR(ts=[-1.0, 1.0])
    with pytest.raises(ValueError, match="strictly increasing"):
        SIR(ts=[2.0, 1.0])


def test_initial_state_as_a_parameter():
    prior = dict(SIR().prior) | {"initial_infectious": dist.LogNormal(2.0, 1.0)}
    simulator = SIR(prior=prior)
    assert "initial_infectious" in sample_prior(jax.random.key(0), simulator.prior)
    drawn = simulate(simulator, EPIDEMIC | {"initial_infectious": 9.0})
    np.testing.assert_array_equal(drawn, simulate(SIR(initial_infectious=9.0), EPIDEMIC))
    assert np.all(drawn != shipped("SIR", EPIDEMIC))


def test_adaptive_steps_agree_with_fixed_ones():
    adaptive = SIR(solver=AdaptiveSteps(relative_tolerance=1e-5))
    np.testing.assert_allclose(simulate(adaptive, EPIDEMIC), shipped("SIR", EPIDEMIC), rtol=1e-3)


# Stochastic differential equations ----------------------------------------------------------------


def many(simulator, theta, size: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(7), size)
    thetas = {name: jnp.full(size, value) for name, value in theta.items()}
    values = jax.jit(lambda k, t: simulator.simulate_batch(k, t).values)(keys, thetas)
    return np.asarray(values, np.float64)[..., 0]


def test_ornstein_uhlenbeck_mean_and_variance():
    simulator = simulators.OrnsteinUhlenbeck(initial_value=2.0, ts=[0.5, 1.0, 2.0, 4.0, 8.0])
    size = 4096
    values = many(simulator, {"reversion": 0.5, "mean": 1.0, "noise": 0.8}, size)
    mean = 1 + np.exp(-0.5 * simulator.ts)
    variance = 0.8**2 * (1 - np.exp(-simulator.ts))
    assert np.all(np.abs(values.mean(axis=0) - mean) < 4 * np.sqrt(variance / size))
    assert np.all(np.abs(values.var(axis=0) / variance - 1) < 4 * np.sqrt(2 / size))
    # From 4 to 8 the correlation is exp(-2) times the ratio of the standard deviations.
    correlation = np.corrcoef(values[:, 3], values[:, 4])[0, 1]
    expected = np.exp(-2) * np.sqrt(variance[3] / variance[4])
    assert abs(correlation - expected) < 4 / np.sqrt(size)


class PriceState(NamedTuple):
    price: jax.Array


class Price(AbstractSDESimulator):
    """Geometric Brownian motion: in Itô's sense its mean stays where it is."""

    prior: dict
    ts: np.ndarray
    t0: float = 0.0
    num_substeps: int = 16

    channels = ("price",)

    def initial_state(self, theta):
        return PriceState(1.0)

    def drift(self, t, state, theta):
        return PriceState(0.0 * state.price)

    def diffusion(self, t, state, theta):
        return PriceState(theta["volatility"] * state.price)

    def readout(self, trajectory, theta):
        return trajectory.price[:, None]


def test_noise_is_meant_in_itos_sense():
    price = Price({"volatility": dist.LogNormal(0.0, 1.0)}, as_times([1.0]))
    values = many(price, {"volatility": 0.5}, 4096)[:, -1]
    assert abs(values.mean() - 1) < 4 * values.std() / 64
    assert abs(np.log(values).mean() + 0.125) < 4 * 0.5 / 64
    with pytest.raises(ValueError, match="num_substeps"):
        Price({}, as_times([1.0]), num_substeps=0)
