"""What both flows start from: a normal law as frame, and what their network is told of the data."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sgjax.predictors._base import AbstractPredictive, Units, may_lack, zero_linear
from sgjax.predictors.gaussian import Gaussian, make_gaussian
from sgjax.tasks import TargetSpec


class Framed(nnx.Module):
    """Features to a `Gaussian` and a context, within each mechanism where the block asks for it.

    The frame starts at the prior's shift and scale.
    """

    def __init__(
        self,
        width: int,
        spec: TargetSpec,
        units: Units,
        context: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
    ):
        self.units = units
        self.gaps = may_lack(spec)
        self.context_shape = context
        self.frame_outputs = units.size * (units.size + 1)
        self.frame = zero_linear(width, units.copies * self.frame_outputs, rngs=rngs)
        self.context = nnx.Linear(width, units.copies * math.prod(context), rngs=rngs)

    def __call__(
        self,
        features: Float[Array, " width"],
        finish: Callable[[Gaussian, Array], AbstractPredictive],
    ) -> AbstractPredictive:
        """`finish(frame, context)`; by mechanism, arrays of both have a leading axis."""
        rows = [
            linear(features).reshape(self.units.copies, -1) for linear in (self.frame, self.context)
        ]
        outputs = jnp.concatenate(rows, axis=1).ravel()
        return self.units.assemble(self._build, outputs, lambda made: finish(*made))

    def _build(
        self, outputs: Array, shift: Array, scale: Array, present: Array
    ) -> tuple[Gaussian, Array]:
        frame, context = jnp.split(outputs, [self.frame_outputs])
        made = make_gaussian(self.gaps, frame, shift, scale, present)
        return made, context.reshape(self.context_shape)


def random_weights(*shape: int, rngs: nnx.Rngs) -> nnx.Param:
    """Weights `(..., outputs, inputs)` that keep the variance of what they are given."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) / math.sqrt(shape[-1]))
