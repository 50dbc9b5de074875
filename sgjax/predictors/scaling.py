r"""Scaling, measured from simulations: `Inputs -> Scaled`, numbers of order one for a network.

Counts span decades with heavy tails, other signals have a sign. Each value $x$ gives two views,
$\operatorname{arsinh}(x / s)$ with $s$ the 5 % and the 95 % quantile of $|x| > 0$ of its channel:
the first is logarithmic over the whole range, the second linear up to the large values. Both are
standardised by their mean and standard deviation over simulations.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float

from sgjax.tasks import Inputs

LARGEST = 10.0
"""Views and known quantities are clipped here, so that an outlier cannot drown the others."""

SMALLEST = 1e-30
"""No divisor is smaller: its inverse is still a float32."""


class Scaled(eqx.Module):
    """What an encoder is given; views are 0 where `mask` is false."""

    views: Float[Array, "times views"]
    times: Float[Array, " times"]
    mask: Bool[Array, "times channels"]
    known: Float[Array, " known"]


class InputConstants(NamedTuple):
    """The constants of `InputScaling`, as NumPy arrays; the views' first axis is 1 or times."""

    low: np.ndarray
    high: np.ndarray
    view_mean: np.ndarray
    view_sd: np.ndarray
    known_mean: np.ndarray
    known_sd: np.ndarray
    first: np.ndarray
    last: np.ndarray


class InputScaling(nnx.Module):
    """The scaling as a layer; its constants travel with the weights and are not trained."""

    def __init__(self, constants: InputConstants):
        self.low = _constant(constants.low)
        self.high = _constant(constants.high)
        self.view_mean = _constant(constants.view_mean)
        self.view_sd = _constant(constants.view_sd)
        self.known_mean = _constant(constants.known_mean)
        self.known_sd = _constant(constants.known_sd)
        self.first = _constant(constants.first)
        self.last = _constant(constants.last)

    def __call__(self, inputs: Inputs) -> Scaled:
        values = jnp.where(inputs.mask, inputs.values, 0).astype(jnp.float32)
        views = _views(jnp, values, self.low[...][None], self.high[...][None])
        views = (views - self.view_mean[...]) / self.view_sd[...]
        views = jnp.where(jnp.tile(inputs.mask, (1, 2)), views, 0)
        known = (inputs.known.astype(jnp.float32) - self.known_mean[...]) / self.known_sd[...]
        half = (self.last[...] - self.first[...]) / 2
        times = (inputs.ts.astype(jnp.float32) - self.first[...]) / half - 1
        return Scaled(
            jnp.clip(views, -LARGEST, LARGEST),
            times,
            inputs.mask,
            jnp.clip(known, -LARGEST, LARGEST),
        )


def measure_inputs(
    inputs: Inputs, valid: Bool[ArrayLike, " batch"] | None = None, *, per_time: bool = False
) -> InputConstants:
    """The constants of `InputScaling` from a batch of simulated inputs, of which `valid` count.

    `per_time` standardises each time by itself, for encoders that see a fixed number of times.
    """
    values, ts = np.asarray(inputs.values, np.float64), np.asarray(inputs.ts, np.float64)
    known = np.asarray(inputs.known, np.float64)
    kept = np.ones(len(values), bool) if valid is None else np.asarray(valid, bool)
    if not kept.any():
        raise ValueError("No valid simulation to measure the scaling from; check the priors.")
    values, ts, known = values[kept], ts[kept], known[kept]
    mask = np.asarray(inputs.mask, bool)[kept] & np.isfinite(values)
    values = np.where(mask, values, 0)

    bounds = [_magnitudes(values[..., c][mask[..., c]]) for c in range(values.shape[-1])]
    low, high = np.array(bounds).reshape(-1, 2).T
    # Unbounded, one value in a hundred could set both moments by itself.
    views = _views(np, np.clip(values, -4 * high, 4 * high), low, high)
    seen = np.tile(mask, (1, 1, 2))
    mean, sd = _moments(views, seen, axis=(0, 1))
    if per_time:
        # A time at which all simulations agree must not blow up what is left of the differences.
        each_mean, each_sd = _moments(views, seen, axis=0)
        unseen = ~seen.any(0)
        mean, sd = np.where(unseen, mean, each_mean), np.where(unseen, sd, each_sd)
        sd = np.maximum(sd, 0.1 * _moments(views, seen, axis=(0, 1))[1])
    known_mean, known_sd = _moments(known, np.isfinite(known), axis=0)
    first, last = ts.min(initial=np.inf), ts.max(initial=-np.inf)
    return InputConstants(
        low,
        high,
        np.atleast_2d(mean),
        _varying(np.atleast_2d(mean), np.atleast_2d(sd)),
        known_mean,
        _varying(known_mean, known_sd),
        first,
        last if last > first else first + 1,
    )


def measure_targets(
    values: Float[ArrayLike, "batch size"], mask: Bool[ArrayLike, "batch size"]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each target where it exists: `shift, scale`; 0, 1 if nowhere.

    The outermost 0.1 % at both ends count as no farther out. A target that never varies keeps
    scale 1.
    """
    values = np.array(values, np.float64)
    seen = np.asarray(mask, bool) & np.isfinite(values)
    for column, there in zip(range(values.shape[1]), seen.T, strict=True):
        if there.any():
            bounds = np.quantile(values[there, column], [0.001, 0.999])
            values[:, column] = np.clip(values[:, column], *bounds)
    mean, sd = _moments(values, seen, axis=0)
    return mean, _varying(mean, sd)


def _views(xp, values, low, high):
    """Both views of each channel: `(..., channels) -> (..., 2 channels)`."""
    return xp.concatenate([xp.arcsinh(values / low), xp.arcsinh(values / high)], axis=-1)


def _magnitudes(values: np.ndarray) -> tuple[float, float]:
    """A small and a large value: quantiles, since a mean of heavy tails is an outlier itself."""
    sizes = np.abs(values[values != 0])
    if sizes.size == 0:
        return 1.0, 1.0
    low, high = np.quantile(sizes, [0.05, 0.95])
    return max(float(low), 1e-12 * float(high), SMALLEST), max(float(high), SMALLEST)


def _moments(values: np.ndarray, seen: np.ndarray, axis) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over `axis` where `seen`; 0 and 0 where nothing is."""
    count = np.maximum(seen.sum(axis), 1)
    mean = np.where(seen, values, 0).sum(axis) / count
    variance = np.where(seen, (values - mean) ** 2, 0).sum(axis) / count
    return mean, np.sqrt(variance)


def _varying(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """`sd`, or 1 for what varies by no more than rounding in float32."""
    return np.where(sd > np.maximum(1e-6 * np.abs(mean), SMALLEST), sd, 1.0)


def _constant(value: np.ndarray | float) -> nnx.Variable[Array]:
    return nnx.Variable(jnp.asarray(value, jnp.float32))
