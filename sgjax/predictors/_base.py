"""What every prediction is: `features -> predictive distribution`, which scores itself."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import PRNGKey
from sgjax.tasks import Target, TargetSpec

_DENSITIES = ("gaussian", "gaussian_mixture", "spline_flow", "flow_matching")

GIVEN_BY = {
    "mean": ("point", *_DENSITIES, "categorical"),
    "sd": (*_DENSITIES, "categorical"),
    "quantile": ("quantile", *_DENSITIES),
    "sample": (*_DENSITIES, "categorical"),
    "log_prob": (*_DENSITIES, "categorical"),
}
"""Which heads give what, for the messages of `CannotGive`."""


class CannotGive(ValueError):
    """Asked of a predictive distribution that does not hold it."""

    def __init__(self, predictive: "AbstractPredictive", asked: str, remedy: str | None = None):
        kind = type(predictive).__name__
        heads = " or ".join(f"'{head}'" for head in GIVEN_BY.get(asked, ()))
        super().__init__(f"{kind} cannot give `{asked}`; {remedy or f'train with head {heads}'}.")


class AbstractPredictive(eqx.Module):
    """A predictive distribution over one target vector, in the units of the target.

    Components that never exist (`present` false) are 0 in everything it gives.
    """

    @abc.abstractmethod
    def score(self, target: Target) -> Float[Array, ""]:
        """The proper score that training minimises; lower is better."""

    def mean(self) -> Float[Array, " size"]:
        """The mean of each component."""
        raise CannotGive(self, "mean")

    def sd(self) -> Float[Array, " size"]:
        """The standard deviation of each component."""
        raise CannotGive(self, "sd")

    def quantile(self, levels: Sequence[float] | np.ndarray | Array) -> Float[Array, "levels size"]:
        """The quantiles of each component by itself; `levels` are numbers in (0, 1)."""
        raise CannotGive(self, "quantile")

    def sample(self, key: PRNGKey, num: int) -> Float[Array, "num size"]:
        """Joint draws of all components."""
        raise CannotGive(self, "sample")

    def log_prob(self, values: Float[Array, " size"]) -> Float[Array, ""]:
        """The log density (log probability of a class) of all components together."""
        raise CannotGive(self, "log_prob")


class Shared(eqx.Module):
    """Weights that a predictive carries and that all mechanisms have in common.

    While a batch is scored under `vmap` they stay one copy; predictives that leave a `vmap` have a
    copy for each example, as all their arrays do, so what a head shares is kept small.
    """

    weights: Any


class ByMechanism(AbstractPredictive):
    """One predictive distribution for each mechanism, given that it made the data.

    `inner` is a predictive whose arrays carry a leading axis of mechanisms, save those in `Shared`.
    """

    inner: AbstractPredictive

    def select(self, index: Int[Array, ""] | int) -> AbstractPredictive:
        """The predictive distribution within mechanism `index`."""

        def pick(leaf: Array | Shared) -> Array | Shared:
            if isinstance(leaf, Shared):
                return leaf
            if isinstance(index, int):
                return leaf[index]
            # Mechanisms are few: a masked sum costs less than a gather and its scattered gradient.
            chosen = (jnp.arange(leaf.shape[0]) == index).reshape((-1,) + (1,) * (leaf.ndim - 1))
            kept = jnp.where(chosen, leaf, jnp.zeros_like(leaf))
            return kept.any(0) if leaf.dtype == bool else kept.sum(0)

        return jax.tree.map(pick, self.inner, is_leaf=lambda leaf: isinstance(leaf, Shared))

    def score(self, target: Target) -> Float[Array, ""]:
        return self.select(target.mechanism).score(target)

    def mean(self):
        raise self._undecided("mean")

    def sd(self):
        raise self._undecided("sd")

    def quantile(self, levels):
        raise self._undecided("quantile")

    def sample(self, key, num):
        raise self._undecided("sample")

    def log_prob(self, values):
        raise self._undecided("log_prob")

    def _undecided(self, asked: str) -> CannotGive:
        return CannotGive(self, asked, f"choose a mechanism first: `.select(index).{asked}(...)`")


class AbstractHead(nnx.Module):
    """The last layer: features -> predictive distribution.

    A concrete head is made as `Head(width, spec, units, rngs=rngs)`.
    """

    @abc.abstractmethod
    def __call__(self, features: Float[Array, " width"]) -> AbstractPredictive:
        """The predictive distribution of one example."""


class Units(nnx.Module):
    """The units of a block of targets and which of them exist, constants beside the weights.

    A head predicts $(y - \\text{shift}) / \\text{scale}$. Where the block is predicted within each
    mechanism, every array has a leading axis of mechanisms.
    """

    def __init__(self, spec: TargetSpec, shift: np.ndarray, scale: np.ndarray):
        self.by_mechanism = spec.by_mechanism
        self.size = len(spec.names)
        self.copies = len(spec.present) if spec.by_mechanism else 1
        present = spec.present if spec.by_mechanism else spec.present.any(0)
        self.shift = nnx.Variable(jnp.broadcast_to(jnp.asarray(shift, jnp.float32), present.shape))
        self.scale = nnx.Variable(jnp.broadcast_to(jnp.asarray(scale, jnp.float32), present.shape))
        self.present = nnx.Variable(jnp.asarray(present))

    def assemble(
        self,
        build: Callable[
            [
                Float[Array, " outputs"],
                Float[Array, " size"],
                Float[Array, " size"],
                Bool[Array, " size"],
            ],
            Any,
        ],
        outputs: Float[Array, " all_outputs"],
        finish: Callable[[Any], AbstractPredictive] = lambda made: made,
    ) -> AbstractPredictive:
        """`finish(build(outputs, shift, scale, present))`, `build` once for each mechanism."""
        constants = (self.shift[...], self.scale[...], self.present[...])
        if not self.by_mechanism:
            return finish(build(outputs, *constants))
        return ByMechanism(finish(jax.vmap(build)(outputs.reshape(self.copies, -1), *constants)))


def may_lack(spec: TargetSpec) -> bool:
    """Whether a target of the block may lack components that are `present`."""
    return spec.kind == "series" or not (spec.by_mechanism or bool(spec.present.all()))


def levels_inside(
    predictive: AbstractPredictive, levels: Sequence[float] | np.ndarray | Array
) -> np.ndarray:
    """The levels of quantiles; raises `CannotGive` unless they are inside (0, 1)."""
    asked = np.asarray(levels)
    if asked.min() <= 0 or asked.max() >= 1:
        raise CannotGive(predictive, "quantile", "ask for levels inside (0, 1)")
    return asked


def zero_linear(width: int, num_outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A last layer that starts at 0, so that training starts from the prior's shift and scale."""
    return nnx.Linear(width, num_outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)
