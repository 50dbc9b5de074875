r"""Flow matching: `features -> a velocity field that carries normal noise to the posterior`.

In the frame $z = L^\top (y - \mu)$ of a normal law learned beside it, as in `Gaussian`, the field
$v$ is the regression of $z - \epsilon$ on where at time $t$ a straight line from noise to $z$ is:

$$\min_v \; E \left| v(z_t, t) - (z - \epsilon) \right|^2, \quad z_t = (1 - t) \epsilon + t z,
\quad \epsilon \sim \mathcal N(0, I), \; t \sim U(0, 1)$$

The solution of $\dot z_t = v(z_t, t)$ from $z_0 = \epsilon$ then has the law of $z$ at $t = 1$
(Lipman et al., 2023; for posteriors Dax et al., 2023).
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sgjax._types import PRNGKey
from sgjax.losses import whiten
from sgjax.predictors._base import AbstractHead, Shared, Units
from sgjax.predictors._by_draws import AbstractByDraws, in_blocks
from sgjax.predictors._framed import Framed, random_weights
from sgjax.predictors.encoders import time_features
from sgjax.predictors.gaussian import Gaussian
from sgjax.tasks import TargetSpec

HIDDEN = 128
"""Units of each layer of the velocity network."""

NUM_TIMES = 4
"""Times, one in each quarter of (0, 1), at which the score of a target judges the field."""

NUM_STEPS = 8
"""Equal steps of Tsit5 from noise to target."""

OCTAVES_OF = 8
"""Time enters with sines and cosines at as many octaves as a series of this length has."""


class Velocity(eqx.Module):
    """The network: `context, what it sees of a point and a time -> velocity`.

    Equinox layers cannot live in a Flax module, which also rules out the flows of other packages.
    """

    first: Float[Array, "*batch hidden seen"]
    second: Float[Array, "*batch hidden hidden"]
    third: Float[Array, "*batch hidden hidden"]
    last: Float[Array, "*batch size hidden"]

    def __call__(
        self, context: Float[Array, " hidden"], seen: Float[Array, " seen"]
    ) -> Float[Array, " size"]:
        x = jax.nn.gelu(context + self.first @ seen)
        x = x + jax.nn.gelu(self.second @ x)
        x = x + jax.nn.gelu(self.third @ x)
        return self.last @ x


class FlowMatching(AbstractByDraws):
    r"""Draws and densities by solving the flow's differential equation, `NUM_STEPS` steps of Tsit5.

    The score is that of `frame` by itself plus the squared error of the velocity in its frame,
    summed over components. It compares flow-matching heads with each other and nothing else;
    `log_prob` is an exact log density but for the steps. Its noise and times come from a key made
    of the bits of $z$: the same network, inputs and target score the same, and a target seen again
    after an update meets new noise. Where targets may lack components that are present
    (`frame.gaps`), the field of the others is learned for each pattern of gaps. Moments and
    quantiles are those of 10,000 draws.
    """

    frame: Gaussian
    context: Float[Array, "*batch hidden"]
    network: Shared

    def score(self, target):
        exists, factor = self.frame.among(target.mask)
        # The frame follows its own score: the error alone would be least where z vanishes.
        z = jax.lax.stop_gradient(whiten(self.frame.location, factor, target.values, exists)[0])
        noise_key, time_key = jax.random.split(_key_of(z))
        noise = jax.random.normal(noise_key, (NUM_TIMES, z.size), z.dtype)
        times = (jnp.arange(NUM_TIMES) + jax.random.uniform(time_key, (NUM_TIMES,))) / NUM_TIMES

        def error(t: Array, noise: Array) -> Array:
            velocity = self._velocity((1 - t) * noise + t * z, t, exists)
            return jnp.sum(jnp.where(exists, (velocity - (z - noise)) ** 2, 0))

        return self.frame.score(target) + jnp.mean(jax.vmap(error)(times, noise))

    def log_prob(self, values):
        present = self.frame.present
        z, log_determinant = whiten(self.frame.location, self.frame.factor, values, present)

        def field(t: Array, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
            at = lambda z: self._velocity(z, t, present)
            return at(state[0]), jnp.trace(jax.jacfwd(at)(state[0]))

        noise, change = _solve(field, (z, jnp.zeros((), z.dtype)), 1.0, 0.0)
        each = jnp.where(present, -0.5 * noise**2 - 0.5 * np.log(2 * np.pi), 0)
        return jnp.sum(each) + change + log_determinant

    def sample(self, key, num):
        location, present = self.frame.location, self.frame.present

        def field(t: Array, rows: Array, _: Any) -> Array:
            return jax.vmap(lambda z: self._velocity(z, t, present))(rows)

        normal = jax.random.normal(key, (num, location.size), location.dtype)
        z = in_blocks(lambda rows: _solve(field, rows, 0.0, 1.0), jnp.where(present, normal, 0))
        return location[None] + z @ self.frame.inverse_factor()

    def _velocity(
        self, z: Float[Array, " size"], t: Float[Array, ""], exists: Bool[Array, " size"]
    ) -> Float[Array, " size"]:
        time = time_features((2 * t - 1)[None], OCTAVES_OF)[0].astype(z.dtype)
        z = jnp.where(exists, z, 0)
        seen = [z, time, exists.astype(z.dtype)] if self.frame.gaps else [z, time]
        # Exact where the frame is: the network learns only what a normal law lacks.
        normal = z * (2 * t - 1) / (t**2 + (1 - t) ** 2)
        learned = self.network.weights(self.context, jnp.concatenate(seen))
        return jnp.where(exists, normal + learned, 0).astype(z.dtype)


class FlowMatchingHead(AbstractHead):
    """Features to `FlowMatching`; starts at the normal law of the prior's shift and scale."""

    def __init__(
        self,
        width: int,
        spec: TargetSpec,
        units: Units,
        *,
        rngs: nnx.Rngs,
        hidden: int = HIDDEN,
    ):
        size = units.size
        self.framed = Framed(width, spec, units, (hidden,), rngs=rngs)
        seen = size * (2 if self.framed.gaps else 1)
        seen += time_features(jnp.zeros(1), OCTAVES_OF).size
        self.first = random_weights(hidden, seen, rngs=rngs)
        self.second = random_weights(hidden, hidden, rngs=rngs)
        self.third = random_weights(hidden, hidden, rngs=rngs)
        self.last = nnx.Param(jnp.zeros((size, hidden)))

    def __call__(self, features):
        network = Shared(
            Velocity(self.first[...], self.second[...], self.third[...], self.last[...])
        )
        return self.framed(features, lambda frame, context: FlowMatching(frame, context, network))


def _solve(field: Any, start: Any, t0: float, t1: float) -> Any:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0,
        t1,
        None,
        start,
        stepsize_controller=diffrax.StepTo(np.linspace(t0, t1, NUM_STEPS + 1)),
        max_steps=NUM_STEPS,
    )
    return jax.tree.map(lambda leaf: leaf[-1], solution.ys)


def _key_of(z: Float[Array, " size"]) -> PRNGKey:
    """A key that depends on every bit of `z` and of nothing else."""
    words = jax.lax.bitcast_convert_type(z.astype(jnp.float32), jnp.uint32)
    key, _ = jax.lax.scan(
        lambda key, word: (jax.random.fold_in(key, word), None), jax.random.key(0), words
    )
    return key
