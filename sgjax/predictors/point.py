"""Point predictions: `features -> mean`, trained by the squared error."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sgjax.losses import squared_error
from sgjax.predictors._base import AbstractHead, AbstractPredictive, Units, zero_linear
from sgjax.tasks import TargetSpec


class Point(AbstractPredictive):
    r"""One number per component: the posterior mean where training has converged.

    Scored by $((y - m) / s)^2$, mean over components, so components count alike whatever their
    unit. It says nothing of uncertainty.
    """

    location: Float[Array, "*batch size"]
    scale: Float[Array, "*batch size"]

    def score(self, target):
        values = target.values / self.scale
        return squared_error(self.location / self.scale, values, target.mask)

    def mean(self):
        return self.location


class PointHead(AbstractHead):
    """Features to `Point`."""

    def __init__(self, width: int, spec: TargetSpec, units: Units, *, rngs: nnx.Rngs):
        del spec
        self.units = units
        self.linear = zero_linear(width, units.copies * units.size, rngs=rngs)

    def __call__(self, features):
        return self.units.assemble(_point, self.linear(features))


def _point(outputs: Array, shift: Array, scale: Array, present: Array) -> Point:
    return Point(jnp.where(present, shift + scale * outputs, 0), scale)
