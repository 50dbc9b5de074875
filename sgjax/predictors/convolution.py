"""Convolutions over time: `Scaled -> features`, for long series of any length."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sgjax.predictors.encoders import (
    AbstractEncoder,
    InputShape,
    Patches,
    Summary,
)


class DilatedBlock(nnx.Module):
    """The layers of a residual convolution of three taps, `dilation` apart.

    One matmul and shifts: `lax.conv` inside `lax.scan` is some forty times slower on a CPU. What
    lies beyond the ends is for the concrete block to say.
    """

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilation = dilation
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        initial = nnx.initializers.variance_scaling(1 / 3, "fan_in", "truncated_normal")
        self.taps = nnx.Linear(width, 3 * width, use_bias=False, kernel_init=initial, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(width))
        self.mix = nnx.Linear(width, width, rngs=rngs)


class ConvolutionBlock(DilatedBlock):
    """A residual convolution of a series (van den Oord et al., 2016)."""

    def __call__(
        self, x: Float[Array, "times width"], used: Bool[Array, " times"]
    ) -> Float[Array, "times width"]:
        # Zeros outside the series, whether it ends with the array or before it.
        taps = self.taps(jnp.where(used[:, None], self.norm(x), 0))
        # Shifting what the matmul gives, not what it takes, lets the shifts fuse into their sum.
        before, here, after = jnp.split(taps, 3, axis=-1)
        ahead = ((self.dilation, 0), (0, 0))
        behind = ((0, self.dilation), (0, 0))
        summed = here + jnp.pad(before, ahead)[: len(x)] + jnp.pad(after, behind)[self.dilation :]
        return x + self.mix(jax.nn.gelu(summed + self.bias[...][None]))


class Convolution(AbstractEncoder):
    """Dilated convolutions over at most 16 patches of time, then a summary.

    Gaps are passed through; times after the last observation are not there.

    **Arguments:** `width` of the features, the convolutions having a quarter of it; `depth` number
    of blocks, with dilations 1, 2, 4, ...; the default of 3 reaches 7 patches to each side.
    """

    def __init__(
        self, shape: InputShape, *, width: int = 256, depth: int | None = None, rngs: nnx.Rngs
    ):
        inner = max(16, width // 4)
        self.patches = Patches(shape, 16, inner, rngs=rngs)
        blocks = range(3 if depth is None else depth)
        self.blocks = nnx.List([ConvolutionBlock(inner, 2**block, rngs=rngs) for block in blocks])
        self.summary = Summary(inner, shape.known, width, rngs=rngs)

    def __call__(self, scaled):
        seen = scaled.mask.any(-1)
        # A gap is passed through, the padding behind the last observation is not.
        used = jnp.cumsum(seen[::-1])[::-1] > 0
        x, used = self.patches(scaled, used)
        for block in self.blocks:
            x = block(x, used)
        return self.summary(x, used, scaled.known)
