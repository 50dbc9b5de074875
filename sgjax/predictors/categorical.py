"""Class probabilities: `features -> probability of each mechanism`, trained by the log score."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sgjax.losses import log_score
from sgjax.predictors._base import AbstractHead, AbstractPredictive, Units, zero_linear
from sgjax.tasks import TargetSpec


class Categorical(AbstractPredictive):
    """Probabilities of classes; the target is one-hot, and so are the samples."""

    logits: Float[Array, "*batch size"]

    def score(self, target):
        return log_score(self.logits, target.values)

    def probabilities(self) -> Float[Array, " size"]:
        """The probability of each class."""
        return jax.nn.softmax(self.logits)

    def entropy(self) -> Float[Array, ""]:
        r"""$-\sum_k p_k \log p_k$ in nats: 0 where certain, log(size) where nothing is known."""
        return -jnp.sum(self.probabilities() * jax.nn.log_softmax(self.logits))

    def mean(self):
        return self.probabilities()

    def sd(self):
        probabilities = self.probabilities()
        return jnp.sqrt(probabilities * (1 - probabilities))

    def sample(self, key, num):
        classes = jax.random.categorical(key, self.logits, shape=(num,))
        return jax.nn.one_hot(classes, self.logits.size, dtype=self.logits.dtype)

    def log_prob(self, values):
        return -log_score(self.logits, values)


class CategoricalHead(AbstractHead):
    """Features to `Categorical`; starts at the shares of the classes among the simulations."""

    def __init__(self, width: int, spec: TargetSpec, units: Units, *, rngs: nnx.Rngs):
        if spec.kind != "mechanism" or spec.by_mechanism:
            raise ValueError(f"Head 'categorical' needs classes, not a block of {spec.kind}.")
        self.units = units
        self.linear = zero_linear(width, units.size, rngs=rngs)

    def __call__(self, features):
        return self.units.assemble(_categorical, self.linear(features))


def _categorical(outputs: Array, shift: Array, scale: Array, present: Array) -> Categorical:
    del scale, present
    # The mean of a one-hot target is its share; a class never seen keeps a small one.
    return Categorical(outputs + jnp.log(jnp.maximum(shift, 1e-4)))
