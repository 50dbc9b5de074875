r"""Intervals that continue beyond their ends as in a mirror: `point -> parameters, log density`.

A posterior often leans on the ends of the prior's intervals, in the worst case on a corner, where
most draws of a kernel would be lost. So an interval continues beyond its ends as in a mirror: a
value at distance $d$ within stands for itself with probability $1 - s(d)/2$ and for its image with
$s(d)/2$, $s(d) = e^{-d^2/2\tau^2}$, where $\tau$ is the proposal's standard deviation of that
value, the others held. Together they have the mass of the value, whatever $\tau$ is, and a slope
that ends becomes a peak.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.priors import free, resolve
from sgjax.references.likelihood import LogJoint


def thetas_of(joint: LogJoint, points: Float[Array, "draws size"]) -> Theta:
    """The parameters of points, each in its own units."""
    nothing = jnp.ones(points.shape[1])
    return jax.vmap(lambda point: placed(joint, point, nothing)[0])(points)


def placed(
    joint: LogJoint, vector: Float[Array, " size"], spread: Float[Array, " size"]
) -> tuple[Theta, Float[Array, ""], tuple[Float[Array, " size"], Float[Array, " size"]]]:
    """The parameters of a point, the log density of prior and mirror, and where its walls are."""
    parts, spreads, theta = joint.split(vector), joint.split(spread), dict(joint.known)
    total, lows, highs = jnp.zeros(()), [], []
    for name in joint.prior:
        distribution = resolve(joint.prior, name, theta)
        transform = free(joint.prior, name, theta)
        low, high = (
            jnp.broadcast_to(jnp.ravel(wall), (parts[name].size,))
            for wall in _walls(distribution, transform)
        )
        folded, log_share = _folded(jnp.ravel(parts[name]), low, high, jnp.ravel(spreads[name]))
        point = folded.reshape(parts[name].shape)
        value = transform(point)
        density = jnp.sum(distribution.log_prob(value))
        density += jnp.sum(transform.log_abs_det_jacobian(point, value))
        total += density + jnp.sum(log_share)
        theta[name] = value
        lows.append(low)
        highs.append(high)
    return theta, total, (jnp.concatenate(lows), jnp.concatenate(highs))


def mirrored(
    joint: LogJoint,
    key: PRNGKey,
    vectors: Float[Array, "series draws size"],
    spread: Float[Array, "series size"],
) -> Float[Array, "series draws size"]:
    """Draws of the prior, each for itself or for its image."""
    uniform = jax.random.uniform(key, vectors.shape)
    nothing = jnp.ones(vectors.shape[-1])
    walls = lambda vector: placed(joint, vector, nothing)[2]
    low, high = jax.vmap(jax.vmap(walls))(vectors)
    image = jnp.where(vectors - low < high - vectors, 2 * low - vectors, 2 * high - vectors)
    share = 0.5 * jnp.exp(-0.5 * (_depth(vectors, low, high) / spread[:, None]) ** 2)
    return jnp.where(uniform < share, image, vectors)


def _walls(distribution: Any, transform: Any) -> tuple[Any, Any]:
    """The ends of an interval in coordinates past which `free` goes; none where it does not."""
    support = distribution.support
    lower, upper = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if lower is None or upper is None:
        return -jnp.inf, jnp.inf
    return transform.inv(jnp.asarray(lower)), transform.inv(jnp.asarray(upper))


def _folded(
    point: Float[Array, " size"],
    low: Float[Array, " size"],
    high: Float[Array, " size"],
    spread: Float[Array, " size"],
) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
    """Coordinates folded back between their walls, and the log share of them that lies here."""
    below, above = point < low, point > high
    folded = jnp.where(below, 2 * low - point, jnp.where(above, 2 * high - point, point))
    # Images are of the nearer half: farther ones are nobody's.
    middle = (low + high) / 2
    nobody = (below & (folded > middle)) | (above & (folded < middle))
    log_image = -0.5 * (_depth(folded, low, high) / spread) ** 2 - math.log(2)
    log_share = jnp.where(below | above, log_image, jnp.log1p(-jnp.exp(log_image)))
    return jnp.clip(folded, low, high), jnp.where(nobody, -jnp.inf, log_share)


def _depth(point: Array, low: Array, high: Array) -> Array:
    """How far from the nearer wall."""
    return jnp.abs(jnp.minimum(point - low, high - point))
