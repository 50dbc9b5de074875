"""Encoders: `Scaled -> features`, one vector that holds what a series says about the targets.

Missing values and the padding of shorter series are masks; what lies under a mask is never read.
"""

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sgjax.predictors.scaling import Scaled


class InputShape(NamedTuple):
    """How long a series is, and how many numbers each of its times and each example carry."""

    times: int
    channels: int
    known: int


class AbstractEncoder(nnx.Module):
    """Scaled inputs -> features of a fixed width."""

    @abc.abstractmethod
    def __call__(self, scaled: Scaled) -> Float[Array, " width"]:
        """The features of one example."""


EncoderFactory = Callable[..., AbstractEncoder]
"""`(shape: InputShape, *, width: int, depth: int | None, rngs: nnx.Rngs) -> AbstractEncoder`."""


class ResidualBlock(nnx.Module):
    r"""$x + W_2 \operatorname{gelu}(W_1 \operatorname{norm}(x))$ (He et al., 2016; pre-norm)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.first = nnx.Linear(width, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*times width"]) -> Float[Array, "*times width"]:
        return x + self.second(jax.nn.gelu(self.first(self.norm(x))))


class Patches(nnx.Module):
    """Positions, each a linear map of what a few consecutive times carry: views, mask and time.

    As few times each as leave at most `most` positions, which are what an encoder pays for. Times
    not in use count as zeros, like those behind the end.
    """

    def __init__(self, shape: InputShape, most: int, width: int, *, rngs: nnx.Rngs):
        self.num_times = shape.times
        self.length = -(-shape.times // most)
        numbers = 3 * shape.channels + time_features(jnp.zeros(1), shape.times).shape[-1]
        self.linear = nnx.Linear(self.length * numbers, width, rngs=rngs)

    def __call__(
        self, scaled: Scaled, used: Bool[Array, " times"]
    ) -> tuple[Float[Array, "positions width"], Bool[Array, " positions"]]:
        mask = scaled.mask.astype(scaled.views.dtype)
        times = time_features(scaled.times, self.num_times)
        numbers = jnp.concatenate([scaled.views, mask, times], axis=-1)
        missing = -used.size % self.length
        numbers = jnp.pad(jnp.where(used[:, None], numbers, 0), ((0, missing), (0, 0)))
        used = jnp.pad(used, (0, missing)).reshape(-1, self.length).any(-1)
        return self.linear(numbers.reshape(used.size, -1)), used


class Summary(nnx.Module):
    """One vector from a vector per time, and `known`: a residual block on what `pool` keeps."""

    def __init__(self, width_in: int, known: int, width: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3 * width_in + known, width, rngs=rngs)
        self.block = ResidualBlock(width, width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "times width_in"],
        used: Bool[Array, " times"],
        known: Float[Array, " known"],
    ) -> Float[Array, " width"]:
        return self.block(self.linear(jnp.concatenate([pool(x, used), known])))


class MLP(AbstractEncoder):
    """Residual blocks on the whole series as one vector: fast; wants the same times everywhere.

    **Arguments:** `width` of the blocks and of the features; `depth` number of blocks.
    """

    def __init__(
        self, shape: InputShape, *, width: int = 256, depth: int | None = None, rngs: nnx.Rngs
    ):
        numbers = 3 * shape.times * shape.channels + shape.known
        self.linear = nnx.Linear(numbers, width, rngs=rngs)
        blocks = range(3 if depth is None else depth)
        self.blocks = nnx.List([ResidualBlock(width, width, rngs=rngs) for _ in blocks])

    def __call__(self, scaled):
        mask = scaled.mask.ravel().astype(scaled.views.dtype)
        x = self.linear(jnp.concatenate([scaled.views.ravel(), mask, scaled.known]))
        for block in self.blocks:
            x = block(x)
        # No last normalisation: what is linear in the data reaches the head as it is, which brings
        # linear-Gaussian posteriors closer by a fifth to a third of the excess risk.
        return x


def time_features(times: Float[Array, " times"], num_times: int) -> Float[Array, "times features"]:
    r"""Time itself, and $\sin, \cos$ at octaves, from twice the span to the sampling interval.

    `times` are scaled to [-1, 1]; they need not be regular.
    """
    octaves = math.ceil(math.log2(max(num_times, 2)))
    angles = times[:, None] * (math.pi / 2 * 2.0 ** jnp.arange(octaves))[None]
    return jnp.concatenate([times[:, None], jnp.sin(angles), jnp.cos(angles)], axis=-1)


def pool(
    x: Float[Array, "times width"], used: Bool[Array, " times"]
) -> Float[Array, " three_widths"]:
    """Mean, maximum and last over the times in use; zeros where there is none."""
    there = used[:, None]
    mean = jnp.where(there, x, 0).sum(0) / jnp.maximum(used.sum(), 1)
    largest = jnp.where(used.any(), jnp.where(there, x, -jnp.inf).max(0), 0)
    still_to_come = jnp.cumsum(used[::-1])[::-1]
    last = jnp.where((used & (still_to_come == 1))[:, None], x, 0).sum(0)
    return jnp.concatenate([mean, largest, last])
