"""Mechanisms that give their linear part apart, by a partial differential equation."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sgjax as sg

KEY = jax.random.key(0)


class Modes(NamedTuple):
    """Fourier coefficients of a real field on a ring."""

    spectrum: jax.Array


class Flame(sg.simulators.AbstractSemilinearSimulator):
    r"""Kuramoto-Sivashinsky, $u_t = -u u_x - u_{xx} - u_{xxxx}$, 32 points, period 22."""

    prior: dict = eqx.field(default_factory=lambda: {"amplitude": dist.LogNormal(-9.0, 0.3)})
    ts: np.ndarray = eqx.field(converter=np.asarray, default_factory=lambda: np.arange(1.0, 5.0))
    t0: float = 0.0
    solver: sg.solvers.Steps = sg.solvers.ExponentialSteps(num_substeps=4)
    channels = tuple(f"u{i}" for i in range(32))

    @property
    def wavenumber(self):
        return 2 * np.pi / 22 * np.arange(17)

    def initial_state(self, theta):
        x = np.arange(32) * 22 / 32
        shape = np.cos(2 * np.pi * x / 22) + np.sin(4 * np.pi * x / 22)
        return Modes(jnp.fft.rfft(theta["amplitude"] * jnp.asarray(shape)))

    def linear(self, theta):
        return Modes(jnp.asarray(self.wavenumber**2 - self.wavenumber**4, jnp.result_type(float)))

    def nonlinear(self, t, state, theta):
        squares = jnp.fft.rfft(jnp.fft.irfft(state.spectrum) ** 2)
        return Modes(-0.5j * jnp.asarray(self.wavenumber, squares.real.dtype) * squares)

    def readout(self, trajectory, theta):
        return jnp.fft.irfft(trajectory.spectrum)


def simulated(flame, amplitude, count=1):
    thetas = {"amplitude": jnp.full(count, amplitude)}
    run = jax.jit(lambda thetas: flame.simulate_batch(jax.random.split(KEY, count), thetas).values)
    return np.asarray(run(thetas))


def test_small_waves_of_a_semilinear_world_grow_at_their_rates():
    flame = Flame()
    growth = flame.wavenumber**2 - flame.wavenumber**4
    spectrum = np.fft.rfft(simulated(flame, 1e-4)[0])
    for mode in (1, 2):
        size = np.abs(spectrum[:, mode]) / (16 * 1e-4)
        np.testing.assert_allclose(size, np.exp(growth[mode] * flame.ts), rtol=1e-3)


def test_a_semilinear_world_is_the_same_under_other_steps():
    flame, many = Flame(), sg.solvers.FixedSteps(num_substeps=512)
    values = simulated(flame, 1.0, count=3)
    other = simulated(dataclasses.replace(flame, solver=many), 1.0)
    np.testing.assert_allclose(values[0], other[0], atol=2e-4 * np.abs(values).max())
    np.testing.assert_allclose(values.mean(axis=2), 0, atol=1e-5)  # the mean of u is kept
    np.testing.assert_array_equal(values[0], simulated(flame, 1.0)[0])
