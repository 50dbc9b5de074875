r"""Spline flows: `features -> a normal law, bent component by component`, by the log density.

$$z = L^\top (y - \mu), \quad
u_i = f_i\big(e^{s_i} (z_i - m_i)\big), \quad u \sim \mathcal N(0, I)$$

Location $\mu$ and factor $L$ come from the features, as in `Gaussian`; the splines $f_i$, shifts
$m_i$ and log scales $s_i$ from a small network of the features and of $z_1, \dots, z_{i-1}$. One
such layer can represent any density, since each $f_i$ is a conditional distribution function
(Papamakarios et al., 2021); the frame takes most of scale and correlation off its hands, however
narrow the posterior.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sgjax.losses import whiten
from sgjax.predictors._base import AbstractHead, Shared, Units
from sgjax.predictors._by_draws import AbstractByDraws, in_blocks
from sgjax.predictors._framed import Framed, random_weights
from sgjax.predictors._splines import Knots, forward, inverse, make_knots, num_outputs
from sgjax.predictors.gaussian import Gaussian
from sgjax.tasks import TargetSpec

HIDDEN = 64
"""Units of the network that each component has for itself."""

MOST_LOG_SCALE = 5.0
"""Bound of $|s_i|$."""


class Conditioner(eqx.Module):
    """The networks of all components, `context, what came before -> shift, log scale, spline`.

    Every array has a leading axis of components; the call is that of one of them. Equinox layers
    cannot live in a Flax module, which also rules out the flows of other packages.
    """

    first: Float[Array, "*batch hidden seen"]
    second: Float[Array, "*batch hidden hidden"]
    last: Float[Array, "*batch outputs hidden"]
    bias: Float[Array, "*batch outputs"]

    def __call__(
        self, context: Float[Array, " hidden"], seen: Float[Array, " seen"]
    ) -> Float[Array, " outputs"]:
        x = jax.nn.gelu(context + self.first @ seen)
        x = x + jax.nn.gelu(self.second @ x)
        return self.last @ x + self.bias


class SplineFlow(AbstractByDraws):
    r"""A normal distribution `frame` bent by autoregressive rational-quadratic splines.

    Scored by $-\log p(y)$. Where targets may lack components that are present (`frame.gaps`), the
    score is the density of the others, which the network learns for each pattern of gaps that it
    meets; `log_prob` and `sample` are those of all components present. Moments and quantiles are
    those of 10,000 draws. Sources: Durkan et al. (2019); Papamakarios et al. (2017).
    """

    frame: Gaussian
    context: Float[Array, "*batch size hidden"]
    conditioner: Shared

    def score(self, target):
        return -self._log_density(target.values, *self.frame.among(target.mask))

    def log_prob(self, values):
        return self._log_density(values, self.frame.present, self.frame.factor)

    def sample(self, key, num):
        location = self.frame.location
        normal = jax.random.normal(key, (num, location.size), location.dtype)
        z = in_blocks(jax.vmap(self._unbend), normal)
        return location[None] + z @ self.frame.inverse_factor()

    def _log_density(
        self,
        values: Float[Array, " size"],
        exists: Bool[Array, " size"],
        factor: Float[Array, "size size"],
    ) -> Float[Array, ""]:
        z, log_determinant = whiten(self.frame.location, factor, values, exists)
        before = jnp.tril(jnp.ones((z.size, z.size), bool), -1)
        seen = self._seen(jnp.where(before, z[None], 0), before & exists[None])
        shift, log_scale, knots = _bend(
            jax.vmap(lambda network, *given: network(*given))(
                self.conditioner.weights, self.context, seen
            )
        )
        u, log_slope = forward(knots, jnp.exp(log_scale) * (z - shift))
        each = log_scale + log_slope - 0.5 * u**2 - 0.5 * np.log(2 * np.pi)
        return jnp.sum(jnp.where(exists, each, 0)) + log_determinant

    def _unbend(self, u: Float[Array, " size"]) -> Float[Array, " size"]:
        """From independent normals to the frame, one component after another."""
        index, present = jnp.arange(u.size), self.frame.present

        def component(z: Array, given: tuple) -> tuple[Array, None]:
            own, network, context, own_u = given
            seen = self._seen(z, present & (index < own))
            shift, log_scale, knots = _bend(network(context, seen))
            own_z = shift + jnp.exp(-log_scale) * inverse(knots, own_u)
            return jnp.where((index == own) & present, own_z, z), None

        given = (index, self.conditioner.weights, self.context, u)
        return jax.lax.scan(component, jnp.zeros_like(u), given)[0]

    def _seen(self, z: Float[Array, "*axes size"], known: Bool[Array, "*axes size"]) -> Array:
        if not self.frame.gaps:
            return z
        return jnp.concatenate([z, known.astype(z.dtype)], axis=-1)


class SplineFlowHead(AbstractHead):
    """Features to `SplineFlow`; starts at the normal law of the prior's shift and scale."""

    def __init__(
        self,
        width: int,
        spec: TargetSpec,
        units: Units,
        *,
        rngs: nnx.Rngs,
        hidden: int = HIDDEN,
    ):
        size, outputs = units.size, 2 + num_outputs()
        self.framed = Framed(width, spec, units, (size, hidden), rngs=rngs)
        seen = size * (2 if self.framed.gaps else 1)
        self.first = random_weights(size, hidden, seen, rngs=rngs)
        self.second = random_weights(size, hidden, hidden, rngs=rngs)
        self.last = nnx.Param(jnp.zeros((size, outputs, hidden)))
        self.bias = nnx.Param(jnp.zeros((size, outputs)))

    def __call__(self, features):
        conditioner = Shared(
            Conditioner(self.first[...], self.second[...], self.last[...], self.bias[...])
        )
        return self.framed(features, lambda frame, context: SplineFlow(frame, context, conditioner))


def _bend(outputs: Float[Array, "*axes outputs"]) -> tuple[Array, Array, Knots]:
    log_scale = MOST_LOG_SCALE * jnp.tanh(outputs[..., 1] / MOST_LOG_SCALE)
    return outputs[..., 0], log_scale, make_knots(outputs[..., 2:])
