"""Normal distributions: `features -> mean and full covariance`, trained by the log density."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from sgjax.losses import gaussian_log_score
from sgjax.predictors._base import (
    AbstractHead,
    AbstractPredictive,
    Units,
    levels_inside,
    may_lack,
    zero_linear,
)
from sgjax.tasks import TargetSpec

MOST_LOG_PRECISION = 10.0
"""Bound of |log L_ii| in scaled units: conditional sds from 4.5e-5 to 2.2e4 prior sds."""


class Gaussian(AbstractPredictive):
    r"""A normal distribution with precision $P = L L^\top$, `factor` $L$ lower triangular.

    Scored by $-\log \mathcal N(y; \text{location}, P^{-1})$, a sum over the components present.
    `gaps`: whether a target may lack components that are present; the score then is that of the
    marginal distribution of the others.
    """

    location: Float[Array, "*batch size"]
    factor: Float[Array, "*batch size size"]
    present: Bool[Array, "*batch size"]
    gaps: bool = eqx.field(static=True, default=False)

    def score(self, target):
        exists, factor = self.among(target.mask)
        return gaussian_log_score(self.location, factor, target.values, exists)

    def mean(self):
        return self.location

    def sd(self):
        return jnp.sqrt(jnp.sum(self.inverse_factor() ** 2, axis=0))

    def covariance(self) -> Float[Array, "size size"]:
        """The covariance matrix, 0 in rows and columns that are not present."""
        inverse = self.inverse_factor()
        return inverse.T @ inverse

    def quantile(self, levels):
        asked = levels_inside(self, levels)
        normal = jax.scipy.special.ndtri(jnp.asarray(asked, self.location.dtype))
        return self.location[None] + normal[:, None] * self.sd()[None]

    def sample(self, key, num):
        normal = jax.random.normal(key, (num, self.location.size), self.location.dtype)
        return self.location[None] + normal @ self.inverse_factor()

    def log_prob(self, values):
        return -gaussian_log_score(self.location, self.factor, values, self.present)

    def among(
        self, mask: Bool[Array, " size"]
    ) -> tuple[Bool[Array, " size"], Float[Array, "size size"]]:
        """Which components a target has, and the factor of their marginal distribution."""
        if not self.gaps:
            return self.present, self.factor
        exists = self.present & mask
        return exists, _marginal_factor(self.inverse_factor(), exists)

    def inverse_factor(self) -> Float[Array, "size size"]:
        """$L^{-1}$ of the components present, 0 elsewhere."""
        both = self.present[:, None] & self.present[None]
        identity = jnp.eye(self.location.size, dtype=self.factor.dtype)
        safe = jnp.where(both, self.factor, identity)
        return jnp.where(both, solve_triangular(safe, identity, lower=True), 0)


class GaussianHead(AbstractHead):
    r"""Features to `Gaussian`.

    $L = U \operatorname{diag}(e^d)$ with $U$ unit lower triangular, so that component $i$ given the
    later ones has regression weights $-U_{ji}$ and standard deviation $e^{-d_i}$: location, weights
    and deviations are learned apart from each other (Pourahmadi, 1999).
    """

    def __init__(self, width: int, spec: TargetSpec, units: Units, *, rngs: nnx.Rngs):
        self.units = units
        self.gaps = may_lack(spec)
        size = units.size
        # The square's upper half goes unused: a wider matmul costs less than a scatter.
        self.linear = zero_linear(width, units.copies * size * (size + 1), rngs=rngs)

    def __call__(self, features):
        return self.units.assemble(
            functools.partial(make_gaussian, self.gaps), self.linear(features)
        )


def make_gaussian(
    gaps: bool, outputs: Array, shift: Array, scale: Array, present: Array
) -> Gaussian:
    size = shift.size
    mean, square = outputs[:size], outputs[size:].reshape(size, size)
    log_diagonal = MOST_LOG_PRECISION * jnp.tanh(jnp.diagonal(square) / MOST_LOG_PRECISION)
    unit = jnp.tril(square, -1) + jnp.eye(size, dtype=outputs.dtype)
    factor = unit * jnp.exp(log_diagonal)[None] / scale[:, None]
    return Gaussian(jnp.where(present, shift + scale * mean, 0), factor, present, gaps)


def _marginal_factor(inverse: Array, exists: Array) -> Array:
    r"""The precision factor of the components in `exists`, integrated over the others.

    With $A = L^{-1}$ the covariance is $A^\top A$. Deleting columns of $A$ gives the marginal
    covariance; its QR decomposition $R^\top R$ without ever squaring $A$, for accuracy in float32.
    Reversed, $R$ becomes lower triangular, as is the inverse of the wanted factor.
    """
    kept = jnp.where(exists[None], inverse, 0)
    stand_in = jnp.diag(jnp.where(exists, 0, 1).astype(inverse.dtype))
    stacked = jnp.concatenate([kept, stand_in])[:, ::-1]
    upper = jnp.linalg.qr(stacked, mode="r")
    lower = upper[::-1, ::-1]
    lower = lower * jnp.sign(jnp.diagonal(lower))[:, None]
    return solve_triangular(lower, jnp.eye(exists.size, dtype=inverse.dtype), lower=True)
