"""Priors: dicts by name of `numpyro.distributions`; `key -> theta`, and to and from the real line.

An entry may be a function of the parameters named before it, `lambda theta: Normal(theta["a"], 1)`,
and may be vector-valued. Each parameter is drawn with the key `fold_in(key, crc32(name))`, so that
adding one leaves the draws of the others as they were.
"""

import math
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform, IdentityTransform, Transform

from sgjax._types import Prior, PRNGKey, Theta


def fold_name(key: PRNGKey, name: str) -> PRNGKey:
    """The key that belongs to a name: `crc32`, since `hash` differs between processes."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def fold_names(key: PRNGKey, names: Iterable[str]) -> PRNGKey:
    """The keys that belong to several names, hashed at once: one loop to compile, not many."""
    hashes = np.asarray([zlib.crc32(name.encode()) for name in names], np.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, hashes)


def merge_priors(*priors: Prior) -> Prior:
    """One prior out of several; raises `ValueError` where two of them use the same name."""
    merged: dict = {}
    for prior in priors:
        clash = sorted(merged.keys() & prior.keys())
        if clash:
            raise ValueError(f"Two priors both name {clash}; rename the parameter in one of them.")
        merged |= dict(prior)
    return merged


def resolve(prior: Prior, name: str, theta: Theta) -> dist.Distribution:
    """The distribution of `name`, given the parameters drawn before it."""
    entry = prior[name]
    if isinstance(entry, dist.Distribution):
        return entry
    try:
        return entry(theta)
    except KeyError as missing:
        raise ValueError(
            f"The prior of {name!r} asks for {missing}, which is not drawn before it; "
            f"the order is {list(prior)}."
        ) from None


def sample_prior(key: PRNGKey, prior: Prior) -> Theta:
    """One draw of every parameter, in float32, inside the open support."""
    theta: Theta = {}
    for name, own in zip(prior, fold_names(key, prior), strict=True):
        distribution = resolve(prior, name, theta)
        draw = distribution.sample(own)
        theta[name] = _inside(distribution, jnp.asarray(draw, jnp.float32))
    return theta


def log_prior(prior: Prior, theta: Theta) -> Float[Array, ""]:
    """The log density of the parameters, summed over names."""
    return sum(
        (jnp.sum(resolve(prior, name, theta).log_prob(theta[name])) for name in prior),
        start=jnp.zeros(()),
    )


def to_unconstrained(prior: Prior, theta: Theta, names: Iterable[str] | None = None) -> Theta:
    """Each parameter mapped to the real line by numpyro's transform of its support."""
    return {
        name: jnp.asarray(_transform(prior, name, theta).inv(theta[name]))
        for name in (prior if names is None else names)
    }


def from_unconstrained(prior: Prior, unconstrained: Theta, given: Theta | None = None) -> Theta:
    """The inverse of `to_unconstrained`, in the order of the prior; `given` are natural already."""
    theta: Theta = dict(given or {})
    for name in prior:
        if name in unconstrained:
            theta[name] = jnp.asarray(_transform(prior, name, theta)(unconstrained[name]))
    return theta


def log_prior_unconstrained(prior: Prior, unconstrained: Theta) -> Float[Array, ""]:
    """The log density on the unconstrained space: log prior plus the log Jacobian of the map."""
    theta = from_unconstrained(prior, unconstrained)
    return log_prior(prior, theta) + log_jacobian(prior, unconstrained, theta)


def log_jacobian(prior: Prior, unconstrained: Theta, theta: Theta) -> Float[Array, ""]:
    r"""$\log |d\theta / du|$ of `from_unconstrained`, summed over the names in `unconstrained`."""
    each = (
        jnp.sum(_transform(prior, name, theta).log_abs_det_jacobian(values, theta[name]))
        for name, values in unconstrained.items()
    )
    return sum(each, start=jnp.zeros(()))


def to_free(prior: Prior, theta: Theta, names: Iterable[str]) -> Theta:
    """Each parameter in coordinates that go on past the ends of intervals; see `free`."""
    return {name: jnp.asarray(free(prior, name, theta).inv(theta[name])) for name in names}


def free(prior: Prior, name: str, theta: Theta) -> Transform:
    """From the real line to a parameter, past the ends of an interval: none of them is a limit.

    A posterior that leans on an end is cut off there; maps that bring the end to infinity bend it.
    Positive intervals go by the logarithm.
    """
    support: Any = resolve(prior, name, theta).support
    lower, upper = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if lower is None or upper is None:
        return biject_to(support)
    positive = isinstance(lower, int | float) and lower > 0
    return ExpTransform() if positive else IdentityTransform()


def event_size(prior: Prior, name: str, theta: Theta) -> int:
    """How many real numbers the unconstrained form of a parameter has."""
    transform = _transform(prior, name, theta)
    shape = transform.inverse_shape(jnp.shape(theta[name]))
    return math.prod(shape)


def _transform(prior: Prior, name: str, theta: Theta) -> Transform:
    return biject_to(resolve(prior, name, theta).support)


def _inside(distribution: dist.Distribution, draw: Array) -> Array:
    """Moves a draw that rounding put on the edge of its support just inside.

    A float32 truncated normal returns its bound once in some millions of draws, and one logarithm
    of that ends a run.
    """
    support: Any = distribution.support
    while hasattr(support, "base_constraint"):  # of `.to_event()`
        support = support.base_constraint
    if support is constraints.simplex:
        draw = jnp.maximum(draw, jnp.finfo(draw.dtype).tiny)
        return draw / jnp.sum(draw, axis=-1, keepdims=True)
    lower = getattr(support, "lower_bound", None)
    upper = getattr(support, "upper_bound", None)
    if getattr(support, "is_discrete", False) or (lower is None and upper is None):
        return draw
    if lower is not None:
        draw = jnp.where(draw <= lower, lower + _resolution(distribution, lower), draw)
    if upper is not None:
        draw = jnp.where(draw >= upper, upper - _resolution(distribution, upper), draw)
    return draw


def _resolution(distribution: dist.Distribution, bound: Array | float) -> Array:
    """The smallest step that float32 resolves at a bound; at a bound of 0, `eps` times the sd."""
    try:
        sd = jnp.sqrt(distribution.variance)
    except NotImplementedError:
        sd = jnp.ones(())
    sd = jnp.where(jnp.isfinite(sd) & (sd > 0), sd, 1.0)
    bound = jnp.abs(jnp.asarray(bound, jnp.float32))
    return jnp.finfo(jnp.float32).eps * jnp.where(bound > 0, bound, sd)
