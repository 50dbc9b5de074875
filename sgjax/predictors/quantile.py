"""Quantiles: `features -> quantiles that never cross`, trained by the pinball loss."""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sgjax.losses import pinball
from sgjax.predictors._base import AbstractHead, AbstractPredictive, CannotGive, Units, zero_linear
from sgjax.tasks import TargetSpec

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)


class Quantiles(AbstractPredictive):
    """The quantiles of each component by itself, at the fixed `levels`.

    Scored by the pinball loss in units of `scale`, mean over levels and components. Between its
    levels it interpolates linearly; beyond them it knows nothing.
    """

    values: Float[Array, "*batch size levels"]
    scale: Float[Array, "*batch size"]
    levels: tuple[float, ...] = eqx.field(static=True, default=LEVELS)

    def score(self, target):
        scaled = self.values / self.scale[:, None]
        return pinball(scaled, target.values / self.scale, np.array(self.levels), target.mask)

    def quantile(self, levels):
        asked = np.asarray(levels, np.float64)
        rounding = 1e-6  # levels may have passed through float32
        beyond = (asked < self.levels[0] - rounding) | (asked > self.levels[-1] + rounding)
        if beyond.any():
            raise CannotGive(
                self,
                "quantile",
                f"levels {asked.tolist()} reach beyond its {self.levels[0]} to {self.levels[-1]}; "
                "train with more `levels` or with head 'gaussian'",
            )
        hats = np.eye(len(self.levels))
        weights = np.stack([np.interp(asked, self.levels, hat) for hat in hats], axis=-1)
        return jnp.asarray(weights, self.values.dtype) @ self.values.T


class QuantileHead(AbstractHead):
    r"""Features to `Quantiles`.

    The median is free; outwards from it each quantile adds $\operatorname{softplus}(\cdot) > 0$.
    """

    def __init__(
        self,
        width: int,
        spec: TargetSpec,
        units: Units,
        *,
        rngs: nnx.Rngs,
        levels: Sequence[float] = LEVELS,
    ):
        del spec
        self.levels = tuple(float(level) for level in levels)
        if np.any(np.diff(self.levels) <= 0) or not 0 < self.levels[0] <= self.levels[-1] < 1:
            raise ValueError(f"Levels must increase within (0, 1); got {self.levels}.")
        self.units = units
        self.linear = zero_linear(width, units.copies * units.size * len(self.levels), rngs=rngs)

    def __call__(self, features):
        build = functools.partial(_quantiles, self.levels)
        return self.units.assemble(build, self.linear(features))


def _quantiles(
    levels: tuple[float, ...], outputs: Array, shift: Array, scale: Array, present: Array
) -> Quantiles:
    normal = np.array([statistics.NormalDist().inv_cdf(level) for level in levels])
    centre = int(np.argmin(np.abs(np.array(levels) - 0.5)))
    raw = outputs.reshape(shift.size, len(levels))
    # At raw = 0 the quantiles are those of a normal law of the prior's mean and sd.
    steps = jax.nn.softplus(raw + _inverse_softplus(normal, centre)[None])
    columns: dict[int, Any] = {centre: raw[:, centre] + float(normal[centre])}
    # One addition after another: the rounding of a parallel cumulative sum may cross quantiles.
    for index in range(centre + 1, len(levels)):
        columns[index] = columns[index - 1] + steps[:, index]
    for index in range(centre - 1, -1, -1):
        columns[index] = columns[index + 1] - steps[:, index]
    standard = jnp.stack([columns[index] for index in range(len(levels))], axis=-1)
    values = shift[:, None] + scale[:, None] * standard
    return Quantiles(jnp.where(present[:, None], values, 0), scale, levels)


def _inverse_softplus(normal: np.ndarray, centre: int) -> np.ndarray:
    """What softplus takes to the distance from the next normal quantile inwards."""
    gaps = np.diff(normal)
    steps = np.concatenate([gaps[:centre], [1.0], gaps[centre:]])
    return np.log(np.expm1(steps)).astype(np.float32)
