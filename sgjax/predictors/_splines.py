r"""Monotone rational-quadratic splines: `x -> y, log dy/dx` and back, in closed form.

On $[-B, B]$ a spline of $K$ bins; outside it the identity, so that tails are those of what goes in
(Durkan et al., 2019, "Neural spline flows"). Vectorised over any leading axes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NUM_BINS = 12

BOUND = 5.0
"""$B$: of standard normal draws, all but six in ten million lie inside."""

LEAST_SHARE = 1e-3
"""No bin is narrower or lower than this share of the interval."""

LEAST_SLOPE = 1e-3


class Knots(NamedTuple):
    """A spline: positions of the knots on both axes and the slopes there."""

    x: Float[Array, "*axes knots"]
    y: Float[Array, "*axes knots"]
    slopes: Float[Array, "*axes knots"]


def num_outputs(num_bins: int = NUM_BINS) -> int:
    """How many unconstrained numbers describe a spline."""
    return 3 * num_bins - 1


def make_knots(outputs: Float[Array, "*axes outputs"]) -> Knots:
    """A spline from unconstrained numbers; the identity from zeros."""
    bins = (outputs.shape[-1] + 1) // 3
    x, y = _positions(outputs[..., :bins]), _positions(outputs[..., bins : 2 * bins])
    start = math.log(math.expm1(1 - LEAST_SLOPE))
    inner = LEAST_SLOPE + jax.nn.softplus(outputs[..., 2 * bins :] + start)
    # Slope 1 at both ends, so that the density has no step where the tails begin.
    ends = jnp.ones((*outputs.shape[:-1], 1), outputs.dtype)
    return Knots(x, y, jnp.concatenate([ends, inner, ends], axis=-1))


def forward(
    knots: Knots, x: Float[Array, "*axes"]
) -> tuple[Float[Array, "*axes"], Float[Array, "*axes"]]:
    """The spline at `x` and the logarithm of its slope there."""
    inside = jnp.abs(x) < BOUND
    # What lies outside is computed at 0 instead: no overflow there can reach a gradient.
    where = jnp.where(inside, x, 0)
    x0, width, y0, height, d0, d1 = _bin(knots, knots.x, where)
    steep = height / width
    share = jnp.clip((where - x0) / width, 0, 1)
    both = share * (1 - share)
    below = steep + (d0 + d1 - 2 * steep) * both
    y = y0 + height * (steep * share**2 + d0 * both) / below
    above = d1 * share**2 + 2 * steep * both + d0 * (1 - share) ** 2
    log_slope = 2 * jnp.log(steep) + jnp.log(above) - 2 * jnp.log(below)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)


def inverse(knots: Knots, y: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """The `x` at which the spline is `y`: the root of a quadratic, in its stable form."""
    inside = jnp.abs(y) < BOUND
    where = jnp.where(inside, y, 0)
    x0, width, y0, height, d0, d1 = _bin(knots, knots.y, where)
    steep = height / width
    rise = jnp.clip(where - y0, 0, height)
    bend = rise * (d0 + d1 - 2 * steep)
    a, b, c = height * (steep - d0) + bend, height * d0 - bend, -steep * rise
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))
    share = jnp.clip(-2 * c / jnp.maximum(b + root, jnp.finfo(y.dtype).tiny), 0, 1)
    return jnp.where(inside, x0 + width * share, y)


def _positions(logits: Array) -> Array:
    bins = logits.shape[-1]
    shares = LEAST_SHARE + (1 - bins * LEAST_SHARE) * jax.nn.softmax(logits, axis=-1)
    # For so few bins a matrix product is faster than a cumulative sum; TF32 would be too coarse.
    sums = jnp.matmul(shares, jnp.triu(jnp.ones((bins, bins - 1))), precision="highest")
    inner = (BOUND * (2 * sums - 1)).astype(logits.dtype)
    end = jnp.full((*logits.shape[:-1], 1), BOUND, logits.dtype)
    return jnp.concatenate([-end, inner, end], axis=-1)


def _bin(knots: Knots, edges: Array, value: Array) -> tuple[Array, ...]:
    """`x0, width, y0, height, slope0, slope1` of the bin that holds `value`."""
    bins = edges.shape[-1] - 1
    index = jnp.sum(value[..., None] >= edges[..., 1:-1], axis=-1)
    # A masked sum costs less than a gather and its scattered gradient.
    chosen = jnp.arange(bins) == index[..., None]
    pick = lambda numbers: jnp.sum(jnp.where(chosen, numbers, 0), axis=-1)
    x0, x1 = pick(knots.x[..., :-1]), pick(knots.x[..., 1:])
    y0, y1 = pick(knots.y[..., :-1]), pick(knots.y[..., 1:])
    return x0, x1 - x0, y0, y1 - y0, pick(knots.slopes[..., :-1]), pick(knots.slopes[..., 1:])
