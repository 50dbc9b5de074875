"""Partial differential equations on a ring, held against what is known of them exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sgjax.simulators import Advection, Burgers, KuramotoSivashinsky
from sgjax.simulators._ring import RingState

EPS = np.finfo(np.float32).eps
FAINT = 1e-15
"""An amplitude whose square is nothing, so that the equations are linear."""
LANES = 16
"""As many simulations as fill a vector; fewer would cost the same."""


@functools.cache
def simulated(mechanism):
    """A mechanism as it ships, every second simulation faint. One program a mechanism."""
    own = {
        Advection: {"speed": np.linspace(0.5, 2.0, LANES)},
        Burgers: {"viscosity": np.geomspace(0.002, 0.02, LANES)},
        # On shorter rings the fifth wave is gone in no time.
        KuramotoSivashinsky: {"length": np.linspace(30.0, 40.0, LANES)},
    }[mechanism]
    thetas = own | {
        "waves": np.random.default_rng(4).normal(size=(LANES, 2, 5)),
        "amplitude": np.where(np.arange(LANES) % 2, FAINT, 1.0),
    }
    thetas = {name: value.astype(np.float32) for name, value in thetas.items()}
    prior = dict(mechanism().prior) | {"amplitude": dist.LogUniform(FAINT, 1.0)}
    simulator = mechanism(prior=prior)
    keys = jax.random.split(jax.random.key(0), LANES)
    latent = jax.jit(lambda k, t: simulator.simulate_batch(k, t))(keys, thetas)
    wide = {name: value.astype(np.float64) for name, value in thetas.items()}
    return simulator, wide, jax.device_get(latent)


def start_of(theta, places):
    """The start in float64 at places from 0 to 1, by its definition."""
    cosines, sines = theta["waves"]
    number = 2 * np.pi * np.arange(1, cosines.size + 1)

    def waves(x):
        return np.cos(x[..., None] * number) @ cosines + np.sin(x[..., None] * number) @ sines

    largest = np.abs(waves(np.linspace(0, 1, 64 * cosines.size, endpoint=False))).max()
    return theta["amplitude"] * waves(np.asarray(places)) / largest


def lane(thetas, index):
    return {name: value[index] for name, value in thetas.items()}


def places(simulator):
    return np.arange(simulator.points) / simulator.points


def rounding(simulator):
    """Of one sub-step after another, each with a few roundings by half a digit at most."""
    return 2 * simulator.ts.size * simulator.solver.num_substeps * EPS


def test_advection_is_a_shift():
    simulator, thetas, latent = simulated(Advection)
    for index in range(LANES):
        theta = lane(thetas, index)
        at = places(simulator) - theta["speed"] * simulator.ts[:, None]
        # The fifth wave turns 10 pi c times a unit of time, an angle that float32 rounds.
        bound = theta["amplitude"] * (rounding(simulator) + 10 * np.pi * 2 * 2 * EPS)
        np.testing.assert_allclose(latent.values[index], start_of(theta, at), rtol=0, atol=bound)


def cole_hopf(theta, ts, x):
    r"""Burgers' equation in closed form, $u = \langle (x - y)/t \rangle$, in float64.

    The mean is over places $y$ with weights $\exp(-(x - y)^2/(4 \nu t) - U(y)/(2 \nu))$, $U$ the
    integral of the start. The trapezoidal rule converges exponentially on such bells.
    """
    nu, number = theta["viscosity"], 2 * np.pi * np.arange(1, 6)
    cosines, sines = theta["waves"]
    scale = start_of(theta, np.zeros(1))[0] / cosines.sum()

    def integral(y):
        angle = y[..., None] * number
        return scale * (np.sin(angle) @ (cosines / number) - np.cos(angle) @ (sines / number))

    reach = np.ptp(integral(np.linspace(0, 1, 640))) / (2 * nu) + 40  # e^-40 is nothing
    found = []
    for t in ts:
        r = np.sqrt(4 * nu * t * reach) * np.linspace(-1, 1, 3001)
        exponent = -(r**2) / (4 * nu * t) - integral(x[:, None] - r) / (2 * nu)
        weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        found.append((weight @ r) / weight.sum(axis=1) / t)
    return np.array(found)


def test_burgers_is_the_solution_of_cole_and_hopf():
    simulator, thetas, latent = simulated(Burgers)
    some = [0, 1, 2, 12, 24]
    for index in range(0, LANES, 2):
        exact = cole_hopf(lane(thetas, index), simulator.ts[some], places(simulator))
        # Where shocks are wide, rounding is all that is left; elsewhere what the package promises.
        wide = thetas["viscosity"][index] > 0.005
        bound = rounding(simulator) if wide else 1e-3
        np.testing.assert_allclose(latent.values[index][some], exact, rtol=0, atol=bound)


def held_against_rates(mechanism, rate_of):
    """Faint waves against their exact sizes, `rate_of(theta, waves per length)`."""
    simulator, thetas, latent = simulated(mechanism)
    number = 2 * np.pi * np.arange(1, 6)
    for index in range(1, LANES, 2):
        theta = lane(thetas, index)
        start = np.abs(np.fft.rfft(start_of(theta, places(simulator)), norm="forward"))[1:6]
        exact = start * np.exp(rate_of(theta, number) * simulator.ts[:, None])
        size = np.abs(latent.states.modes[index][:, 1:6])
        np.testing.assert_allclose(size, exact, rtol=rounding(simulator))


def test_faint_burgers_waves_die_of_friction():
    held_against_rates(Burgers, lambda theta, number: -theta["viscosity"] * number**2)


def test_faint_waves_of_a_flame_grow_at_their_rates():
    def rate(theta, number):
        square = (number / theta["length"]) ** 2
        return square - square**2

    held_against_rates(KuramotoSivashinsky, rate)


def test_the_mean_is_kept():
    for mechanism in (Advection, Burgers, KuramotoSivashinsky):
        simulator, _, latent = simulated(mechanism)
        np.testing.assert_array_equal(latent.states.modes[:, :, 0], 0)
        if simulator.refinement == 1:  # else the places seen are too few for a mean
            values = latent.values.astype(float)
            largest = np.abs(values).max(axis=(1, 2))
            assert np.all(np.abs(values.mean(axis=2)).max(axis=1) <= EPS * largest)


@pytest.mark.parametrize("mechanism", [Burgers, KuramotoSivashinsky])
def test_steepening_is_that_of_a_finer_grid(mechanism):
    """Of a state with energy in every mode and a mean, on which folding would tell."""
    simulator = mechanism()
    highest, grid = simulator.highest, simulator.points * simulator.refinement
    assert 3 * highest < grid <= 3 * highest + 3
    real, imaginary = np.random.default_rng(0).normal(size=(2, highest + 1))
    modes = (real + 1j * imaginary).astype(np.complex64)
    modes[0] = 1.0
    theta = {"length": np.float32(25.0), "viscosity": np.float32(0.01)}
    rest = jax.jit(lambda modes: simulator.nonlinear(jnp.zeros(()), RingState(modes), theta).modes)
    found = np.asarray(rest(modes))
    u = np.fft.irfft(modes.astype(complex), 8 * grid, norm="forward")
    length = 25.0 if mechanism is KuramotoSivashinsky else 1.0
    number = 2 * np.pi * np.arange(highest + 1) / length
    exact = -0.5j * number * np.fft.rfft(u**2, norm="forward")[: highest + 1]
    # A fast Fourier transform rounds as often as its length halves.
    bound = EPS * np.log2(grid) * np.abs(exact).max()
    np.testing.assert_allclose(found, exact, rtol=0, atol=bound)
    assert found[0] == 0


def test_a_ring_needs_waves_that_it_can_hold():
    with pytest.raises(ValueError, match="The prior needs `waves`"):
        Advection(prior={"speed": dist.Uniform(0.5, 2.0)})
    with pytest.raises(ValueError, match="15 `points`, 1 times refined, cannot hold the 5 waves"):
        Advection(points=15)
    assert Advection(points=16).channels[-1] == "u15"
    with pytest.raises(ValueError, match="0 times refined"):
        Burgers(refinement=0)
