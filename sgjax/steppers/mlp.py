"""Residual blocks on a whole state: for systems of a few numbers."""

import jax.numpy as jnp
from flax import nnx

from sgjax.predictors._base import zero_linear
from sgjax.predictors.encoders import ResidualBlock
from sgjax.steppers._base import AbstractStepper, FrameShape, Situation


class MLP(AbstractStepper):
    """Every number of the last frames, known quantities and controls, as one vector."""

    width = 128
    depth = 2

    def __init__(self, shape: FrameShape, *, width: int, depth: int, rngs: nnx.Rngs):
        self.fields = shape.channels
        frames = 2 * shape.history - 1
        numbers = frames * shape.channels + shape.known + shape.controls
        self.linear = nnx.Linear(numbers, width, rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(width, width, rngs=rngs) for _ in range(depth)])
        self.last = zero_linear(width, shape.channels, rngs=rngs)

    def __call__(self, situation: Situation):
        x = self.linear(jnp.concatenate([leaf.ravel() for leaf in situation]))
        for block in self.blocks:
            x = block(x)
        return x, self.last(x)
