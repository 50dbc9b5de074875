r"""The exact posterior of ln K under logistic growth, of many series: quadrature over two of three.

Given $r$ and $q = \ln(K / N_0 - 1)$ the record is linear in $\ln K$ with normal errors, so that
$\ln K$ has a normal posterior, cut off at the ends of the priors of $\ln K$ and of
$\ln N_0 = \ln K - \ln(1 + e^q)$. The rest is the midpoint rule over $(r, q)$, whose density is the
Jacobian $1 / (1 + e^{-q})$ times the normal constant.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from benchmarks.claims.worlds import GROWTH_SD, LogGrowth

POINTS = (200, 300)
"""Of growth rate and of q: steps of at most half the posterior sd of the richest records."""

SERIES = 8
"""Integrated at once."""


def posterior_moments(
    values: Float[np.ndarray, "series times"], points: tuple[int, int] = POINTS
) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
    """Posterior mean and sd of ln K of each record of `growth()`."""
    count = len(values)
    places = np.resize(np.arange(count), -(-count // SERIES) * SERIES).reshape(-1, SERIES)
    mean, sd = _program(points)(jnp.asarray(values, jnp.float32)[places])
    return np.asarray(mean, float).ravel()[:count], np.asarray(sd, float).ravel()[:count]


@functools.cache
def _program(points: tuple[int, int]) -> Callable:
    world = LogGrowth()
    rates, capacity, initial = (_interval(world.prior[name]) for name in world.prior)
    # q is least where K / N_0 is.
    ends = tuple(np.log(np.expm1(k - n)) for k, n in zip(capacity, initial[::-1], strict=True))
    rate, q = (
        a.ravel() for a in np.meshgrid(_middles(rates, points[0]), _middles(ends, points[1]))
    )
    shape = -np.logaddexp(0, q[:, None] - rate[:, None] * world.ts)
    level, times = shape.mean(axis=1), world.ts.size
    shape -= level[:, None]
    above = np.logaddexp(0, q)  # ln K - ln N_0
    low = np.maximum(capacity[0], initial[0] + above)
    high = np.minimum(capacity[1], initial[1] + above)
    log_weight = -np.logaddexp(0, -q) - (shape**2).sum(axis=1) / (2 * GROWTH_SD**2)
    log_weight = np.where(low < high, log_weight, -np.inf)
    constants = [jnp.asarray(a, jnp.float32) for a in (shape, level, low, high, log_weight)]
    sd = GROWTH_SD / np.sqrt(times)

    def one(record: Float[Array, " times"]) -> tuple[Array, Array]:
        shape, level, low, high, log_weight = constants
        average = jnp.mean(record)
        likelihood = jnp.matmul(shape, record - average, precision="highest") / GROWTH_SD**2
        weight = log_weight + likelihood
        weight = jnp.exp(weight - jnp.max(weight))
        # About the last value, near which ln K is known best: squares then keep their digits.
        centre = average - level - record[-1]
        mass, first, second = _cut_normal(centre, sd, low - record[-1], high - record[-1])
        total = jnp.sum(weight * mass)
        mean = jnp.sum(weight * first) / total
        variance = jnp.sum(weight * second) / total - mean**2
        return mean + record[-1], jnp.sqrt(jnp.maximum(variance, 0.0))

    return jax.jit(lambda records: jax.lax.map(jax.vmap(one), records))


def _cut_normal(mean: Array, sd: float, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Mass, first and second moment of a normal distribution within an interval."""
    a, b = (low - mean) / sd, (high - mean) / sd
    turn = a > 0  # the smaller tail keeps its digits
    u, v = jnp.where(turn, a, -b), jnp.where(turn, b, -a)
    mass = jnp.maximum(erfc(u / np.sqrt(2)) - erfc(v / np.sqrt(2)), 0.0) / 2
    at_a, at_b = (jnp.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) for x in (a, b))
    slope, bend = at_a - at_b, a * at_a - b * at_b
    first = mean * mass + sd * slope
    return mass, first, (mean**2 + sd**2) * mass + 2 * mean * sd * slope + sd**2 * bend


def _interval(prior: Any) -> tuple[float, float]:
    return float(prior.low), float(prior.high)


def _middles(ends: tuple[float, float], count: int) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * (np.arange(count) + 0.5) / count
