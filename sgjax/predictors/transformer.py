"""Attention over time: `Scaled -> features`, for irregular times and many gaps."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sgjax.predictors.encoders import (
    AbstractEncoder,
    InputShape,
    Patches,
    ResidualBlock,
    Summary,
)

HIDDEN = -1e9
"""Attention logit of an unseen time: finite, so that a series with nothing seen gives no NaN."""


class AttentionBlock(nnx.Module):
    """Multi-head self-attention among the times seen, pre-norm (Vaswani et al., 2017)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.project = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.feed_forward = ResidualBlock(width, 2 * width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "times width"], seen: Bool[Array, " times"]
    ) -> Float[Array, "times width"]:
        times, width = x.shape
        projected = self.project(self.norm(x)).reshape(times, 3 * self.heads, -1)
        # Heads first: each product is then one matrix times another, the fast case on a CPU.
        query, key, value = jnp.split(projected.swapaxes(0, 1), 3)
        logits = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen[None, None], logits, HIDDEN), axis=-1)
        attended = (weights @ value).swapaxes(0, 1).reshape(times, width)
        return self.feed_forward(x + self.mix(attended))


class Transformer(AbstractEncoder):
    """Attention among at most 32 patches of time, those with anything observed, then a summary.

    **Arguments:** `width` of the features, the tokens having a quarter of it; `depth` number of
    blocks.
    """

    def __init__(
        self, shape: InputShape, *, width: int = 256, depth: int | None = None, rngs: nnx.Rngs
    ):
        heads = 4
        inner = heads * max(8, width // (4 * heads))
        self.patches = Patches(shape, 32, inner, rngs=rngs)
        blocks = range(2 if depth is None else depth)
        self.blocks = nnx.List([AttentionBlock(inner, heads, rngs=rngs) for _ in blocks])
        self.summary = Summary(inner, shape.known, width, rngs=rngs)

    def __call__(self, scaled):
        seen = scaled.mask.any(-1)
        x, seen = self.patches(scaled, seen)
        for block in self.blocks:
            x = block(x, seen)
        return self.summary(x, seen, scaled.known)
