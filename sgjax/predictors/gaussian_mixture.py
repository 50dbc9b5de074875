"""Mixtures of normal distributions: `features -> weights, means, covariances`."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import logsumexp, ndtr
from jaxtyping import Array, Float

from sgjax.predictors._base import (
    AbstractHead,
    AbstractPredictive,
    Units,
    levels_inside,
    may_lack,
)
from sgjax.predictors.gaussian import Gaussian, make_gaussian
from sgjax.tasks import TargetSpec

NUM_COMPONENTS = 6

BISECTIONS = 40
"""Halvings of the bracket of a quantile: past float32's resolution."""


class GaussianMixture(AbstractPredictive):
    r"""$p(y) = \sum_c w_c \, \mathcal N(y; \mu_c, P_c^{-1})$, each component with full covariance.

    Follows skewed, heavy-tailed and bent posteriors that one normal cannot. Scored by
    $-\log p(y)$, over the components of the target that are present. Source: Bishop (1994).
    """

    log_weights: Float[Array, "*batch components"]
    components: Gaussian
    """Its arrays carry a leading axis of mixture components."""

    def score(self, target):
        scores = jax.vmap(lambda one: one.score(target))(self.components)
        return -logsumexp(self.log_weights - scores)

    def log_prob(self, values):
        each = jax.vmap(lambda one: one.log_prob(values))(self.components)
        return logsumexp(self.log_weights + each)

    def mean(self):
        return jnp.exp(self.log_weights) @ self.components.location

    def sd(self):
        sds = jax.vmap(lambda one: one.sd())(self.components)
        spread = sds**2 + (self.components.location - self.mean()) ** 2
        return jnp.sqrt(jnp.exp(self.log_weights) @ spread)

    def quantile(self, levels):
        asked = levels_inside(self, levels)
        sds = jnp.maximum(jax.vmap(lambda one: one.sd())(self.components), 1e-30)
        locations, weights = self.components.location, jnp.exp(self.log_weights)
        level = jnp.asarray(asked, locations.dtype)[:, None]

        def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) / 2
            below = jnp.einsum("c,lcs->ls", weights, ndtr((middle[:, None] - locations) / sds))
            return jnp.where(below < level, middle, low), jnp.where(below < level, high, middle)

        shape = (asked.size, locations.shape[1])
        low = jnp.broadcast_to(jnp.min(locations - 9 * sds, axis=0), shape)
        high = jnp.broadcast_to(jnp.max(locations + 9 * sds, axis=0), shape)
        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
        return jnp.where(self.components.present.any(0), (low + high) / 2, 0)

    def sample(self, key, num):
        which, normal = jax.random.split(key)
        chosen = jax.random.categorical(which, self.log_weights, shape=(num,))
        location = self.components.location
        draws = jax.random.normal(normal, (num, location.shape[1]), location.dtype)
        inverse = jax.vmap(lambda one: one.inverse_factor())(self.components)
        return location[chosen] + jnp.einsum("ni,nij->nj", draws, inverse[chosen])


class GaussianMixtureHead(AbstractHead):
    """Features to `GaussianMixture`."""

    def __init__(self, width: int, spec: TargetSpec, units: Units, *, rngs: nnx.Rngs):
        self.units = units
        self.gaps = may_lack(spec)
        size = units.size
        # Kernels start at 0, so training starts at the prior; the biases differ, since components
        # that start alike would stay alike.
        self.linear = nnx.Linear(
            width,
            units.copies * NUM_COMPONENTS * (1 + size * (size + 1)),
            kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.normal(0.3),
            rngs=rngs,
        )

    def __call__(self, features):
        return self.units.assemble(functools.partial(_mixture, self.gaps), self.linear(features))


def _mixture(
    gaps: bool, outputs: Array, shift: Array, scale: Array, present: Array
) -> GaussianMixture:
    log_weights = jax.nn.log_softmax(outputs[:NUM_COMPONENTS])
    rows = outputs[NUM_COMPONENTS:].reshape(NUM_COMPONENTS, -1)
    components = jax.vmap(lambda row: make_gaussian(gaps, row, shift, scale, present))(rows)
    return GaussianMixture(log_weights, components)
