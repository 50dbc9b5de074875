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
from sgjax.priors import sample_prior
from sgjax.simulators import SEAIR, SEIR, SIR, SIRS, AbstractSimulator, Logistic, Richards
from sgjax.simulators._sde import AbstractSDESimulator
from sgjax.simulators._skeleton import MyMechanism
from sgjax.solvers import AdaptiveSteps, FixedSteps


def _concrete(candidate: object) -> bool:
    return (
        inspect.isclass(candidate)
        and issubclass(candidate, AbstractSimulator)
        and not inspect.isabstract(candidate)
    )


MECHANISMS = {name: cls for name, cls in vars(simulators).items() if _concrete(cls)}
MECHANISMS["MyMechanism"] = MyMechanism
ADAPTIVE = {"Robertson"}
SHIPPED = sorted(MECHANISMS)
FIXED = sorted(MECHANISMS.keys() - ADAPTIVE)
every_mechanism = pytest.mark.parametrize("name", SHIPPED)
every_fixed_mechanism = pytest.mark.parametrize("name", FIXED)


def draws(name: str) -> int:
    return 16 if name in ADAPTIVE else 200


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

    @jax.jit
    def simulate(keys):
        thetas = jax.vmap(lambda key: sample_prior(key, simulator.prior))(keys)
        latent = simulator.simulate_batch(keys, thetas)
        return thetas, latent, jax.vmap(per_lane)(thetas, latent)

    keys = jax.random.split(jax.random.key(1), draws(name))
    thetas, latent, checks = simulate(keys)
    return simulator, keys, thetas, latent, checks


def lane(thetas, index: int):
    return {name: draw[index] for name, draw in thetas.items()}


def simulate(simulator, theta, key=None):
    """The values of one simulation, compiled."""
    theta = {name: jnp.asarray(value, jnp.float32) for name, value in theta.items()}
    key = jax.random.key(0) if key is None else key
    return np.asarray(jax.jit(lambda k, t: simulator.simulate(k, t).values)(key, theta))


def test_all_mechanisms_are_covered():
    files = Path(simulators.__file__).parent.glob("[a-z]*.py")
    assert len(MECHANISMS) - 1 == len(list(files)) >= 18


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
    simulator = MECHANISMS[name]()
    key = jax.random.key(0)
    theta = jax.eval_shape(lambda key: sample_prior(key, simulator.prior), key)
    latent = jax.eval_shape(lambda k, t: simulator.simulate(k, t), key, theta)
    assert latent.values.shape == (simulator.ts.size, len(simulator.channels))
    assert latent.ts.shape == simulator.ts.shape
    assert latent.values.dtype == jnp.float32
    assert all(leaf.shape[0] == simulator.ts.size for leaf in jax.tree.leaves(latent.states))


@every_mechanism
def test_draws_and_simulations_are_finite(name):
    _, _, thetas, latent, _ = world(name)
    assert all(np.all(np.isfinite(draw)) for draw in thetas.values())
    finite = np.isfinite(latent.values).all(axis=(1, 2))
    assert finite.mean() >= 0.99
    spread = np.std(np.asarray(latent.values)[finite, -1], axis=0)
    assert np.all(spread > 0), "every draw gives the same end"


@every_fixed_mechanism
def test_alone_as_among_others(name):
    simulator, keys, thetas, latent, _ = world(name)
    alone = jax.jit(lambda key, theta: simulator.simulate(key, theta).values)
    for index in range(5):
        first = np.asarray(alone(keys[index], lane(thetas, index)))
        np.testing.assert_array_equal(first, np.asarray(latent.values[index]))
    # The last one once more: a simulation remembers nothing.
    np.testing.assert_array_equal(np.asarray(alone(keys[index], lane(thetas, index))), first)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ADAPTIVE)) for n in SHIPPED]
)
def test_gradient_is_finite(name):
    simulator, keys, thetas, _, _ = world(name)
    loss = lambda theta, key: jnp.mean(jnp.square(simulator.simulate(key, theta).values))
    gradient = jax.jit(jax.grad(loss))(lane(thetas, 0), keys[0])
    assert all(np.all(np.isfinite(slope)) for slope in gradient.values())
    assert any(np.any(slope != 0) for slope in gradient.values())


@every_mechanism
def test_conserved(name):
    _, _, _, _, (start, along, _) = world(name)
    if start is None:
        pytest.skip("nothing is conserved")
    start = np.asarray(start)[:, None]
    drift = np.abs(np.asarray(along) - start) / np.abs(start)
    # Rounding, and the share of the solver's error that a non-linear invariant shows.
    assert drift.max() < 1e-4
    assert np.median(drift) < 5e-6


@every_mechanism
def test_analytic(name):
    _, _, _, latent, (_, _, exact) = world(name)
    if exact is None:
        pytest.skip("no closed form")
    scale = np.abs(exact).max(axis=1, keepdims=True)
    error = np.abs(np.asarray(latent.values) - np.asarray(exact)) / scale
    assert error.max() < 1e-3
    assert np.median(error) < 1e-5


def test_robertson_reference_values():
    """Hairer and Wanner (1996) give the solution at 40 seconds."""
    simulator = simulators.Robertson(ts=[0.4, 4.0, 40.0])
    values = simulate(simulator, {"k1": 0.04, "k2": 3e7, "k3": 1e4})
    np.testing.assert_allclose(values[-1], [0.7158271, 9.1855e-6, 0.2841637], rtol=2e-3)


# Equivalences -------------------------------------------------------------------------------------

EPIDEMIC = {"beta": 1.7, "gamma": 0.5}


def test_fast_onset_turns_seir_into_sir():
    solver = FixedSteps(num_substeps=128)
    sir = simulate(SIR(solver=solver), EPIDEMIC)
    seir = jax.jit(lambda theta: SEIR(solver=solver).simulate(jax.random.key(0), theta).values)
    errors = [
        np.abs(np.asarray(seir(EPIDEMIC | {"sigma": sigma})) - sir).max() for sigma in (100.0, 200)
    ]
    assert errors[1] < 0.02 * sir.max()
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # of first order in 1 / sigma


def test_seair_without_silent_cases_is_seir():
    silent = {"asymptomatic_share": 0.0, "relative_infectiousness": 0.5, "gamma_asymptomatic": 0.3}
    theta = EPIDEMIC | {"sigma": 1.0}
    np.testing.assert_allclose(
        simulate(SEAIR(), theta | silent), simulate(SEIR(), theta), rtol=1e-5
    )


def test_sirs_without_waning_is_sir():
    ts = range(1, 15)
    np.testing.assert_allclose(
        simulate(SIRS(ts=ts), EPIDEMIC | {"omega": 0.0}), simulate(SIR(ts=ts), EPIDEMIC), rtol=1e-5
    )


def test_richards_with_exponent_one_is_logistic():
    theta = {"growth_rate": 0.8, "carrying_capacity": 90.0}
    solver = FixedSteps(num_substeps=4)
    np.testing.assert_allclose(
        simulate(Richards(solver=solver), theta | {"exponent": 1.0}),
        simulate(Logistic(solver=solver), theta),
        rtol=1e-5,
    )


def test_final_size_of_an_epidemic():
    simulator = SIR(population=1000, initial_infectious=1, ts=range(1, 121))
    latent = jax.jit(lambda t: simulator.simulate(jax.random.key(0), t))(EPIDEMIC)
    size = 1 - float(latent.states.S[-1]) / 1000
    ratio = EPIDEMIC["beta"] / EPIDEMIC["gamma"]
    assert size == pytest.approx(1 - 0.999 * np.exp(-ratio * size), rel=1e-5)
    assert 0.9 < size < 1


# Times, initial states, channels ------------------------------------------------------------------


def test_uneven_times_read_the_same_course():
    even = simulate(SIR(ts=range(1, 15)), EPIDEMIC)
    uneven = simulate(SIR(ts=[1, 2, 4, 5, 14]), EPIDEMIC)
    np.testing.assert_allclose(uneven, even[[0, 1, 3, 4, 13]], rtol=1e-3)


def test_first_time_may_be_the_start():
    values = simulate(SIR(ts=range(0, 5), initial_infectious=7.0), EPIDEMIC)
    assert values[0, 0] == 7.0
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
    assert np.any(drawn != simulate(SIR(), EPIDEMIC))


def test_whole_numbers_make_a_real_state():
    np.testing.assert_array_equal(
        simulate(simulators.ExponentialDecay(initial_quantity=10), {"rate": 0.5}),
        simulate(simulators.ExponentialDecay(initial_quantity=10.0), {"rate": 0.5}),
    )


def test_adaptive_steps_agree_with_fixed_ones():
    adaptive = SIR(solver=AdaptiveSteps(relative_tolerance=1e-5))
    np.testing.assert_allclose(simulate(adaptive, EPIDEMIC), simulate(SIR(), EPIDEMIC), rtol=1e-3)


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
