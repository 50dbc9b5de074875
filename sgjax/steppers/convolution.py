"""Dilated convolutions round a ring: for fields on a periodic line."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sgjax.predictors._base import zero_linear
from sgjax.predictors.convolution import DilatedBlock
from sgjax.steppers._base import AbstractStepper, FrameShape, Situation


class RingBlock(DilatedBlock):
    """A residual convolution round a ring (cf. Stachenfeld et al., 2022)."""

    def __call__(self, x: Float[Array, "points width"]) -> Float[Array, "points width"]:
        before, here, after = jnp.split(self.taps(self.norm(x)), 3, axis=-1)
        summed = here + jnp.roll(before, self.dilation, 0) + jnp.roll(after, -self.dilation, 0)
        return x + self.mix(jax.nn.gelu(summed + self.bias[...][None]))


class Convolution(AbstractStepper):
    """Points on a ring, each treated like any other; known quantities are told to all.

    Dilations go up by powers of two and down again, 1, 2, 4, 4, 2, 1 for a `depth` of 6, which
    reaches 14 points to each side; a step depends on nothing farther away.
    """

    width = 32
    depth = 6

    def __init__(
        self, shape: FrameShape, *, width: int, depth: int, rngs: nnx.Rngs, fields: int = 1
    ):
        if shape.channels % fields:
            raise ValueError(f"{shape.channels} channels are not {fields} fields at equal points.")
        self.fields = fields
        numbers = (2 * shape.history - 1) * fields + shape.known + shape.controls
        self.linear = nnx.Linear(numbers, width, rngs=rngs)
        half = -(-depth // 2)
        dilations = [2**i for i in range(half)] + [2**i for i in reversed(range(depth - half))]
        self.blocks = nnx.List([RingBlock(width, dilation, rngs=rngs) for dilation in dilations])
        self.last = zero_linear(width, fields, rngs=rngs)

    def __call__(self, situation: Situation):
        rows = jnp.concatenate([situation.frames, situation.moves])
        points = rows.reshape(len(rows) * self.fields, -1).T
        told = jnp.concatenate([situation.known, situation.control])
        told = jnp.broadcast_to(told, (len(points), told.size))
        x = self.linear(jnp.concatenate([points, told], axis=1))
        for block in self.blocks:
            x = block(x)
        return x.mean(axis=0), self.last(x).T.ravel()
