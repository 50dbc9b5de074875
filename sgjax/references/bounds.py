r"""Where a fit may look: parameters <-> coordinates on the real line, inside bounds.

Unlike the maps of a sampler, an interval's reaches its ends at finite coordinates,
$\theta = a + (b - a) \sin^2 u$: a maximum often lies there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from sgjax._types import Prior, Theta
from sgjax.priors import resolve

Bounds: TypeAlias = Literal["prior", "wide"] | Mapping[str, tuple[float, float]]
"""`"prior"`: the prior's support; `"wide"`: positive where that is, else all reals (shares stay
shares); or by name a lower and an upper bound, the prior's support for the others."""


class Map(NamedTuple):
    """One parameter from its coordinate and back."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def to_theta(prior: Prior, bounds: Bounds, coordinates: Theta, known: Theta) -> Theta:
    """Parameters, the known ones among them, in the order of the prior."""
    theta = dict(known)
    for name in prior:
        theta[name] = _map(prior, bounds, name, theta).forward(coordinates[name])
    return theta


def from_theta(prior: Prior, bounds: Bounds, theta: Theta) -> Theta:
    """Coordinates of parameters; those beyond the bounds are moved onto them."""
    return {name: _map(prior, bounds, name, theta).inverse(theta[name]) for name in prior}


def check_bounds(prior: Prior, bounds: Bounds) -> None:
    """Raises `ValueError` for bounds of other parameters or in the wrong order."""
    if isinstance(bounds, str):
        if bounds not in ("prior", "wide"):
            raise ValueError(f"`bounds` must be 'prior', 'wide' or a dict; got {bounds!r}.")
        return
    for name, (lower, upper) in bounds.items():
        if name not in prior:
            raise ValueError(f"`bounds` names {name!r}; the parameters are {list(prior)}.")
        if not lower < upper:
            raise ValueError(f"The bounds of {name!r} are ({lower}, {upper}): lower must be less.")


def _map(prior: Prior, bounds: Bounds, name: str, theta: Theta) -> Map:
    if not isinstance(bounds, str) and name in bounds:
        return _interval(*bounds[name])
    support: Any = resolve(prior, name, theta).support
    lower, upper = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if lower is None or upper is None:
        transform = dist.biject_to(support)
        return Map(transform, transform.inv)
    share = support is constraints.unit_interval or (_is(lower, 0.0) and _is(upper, 1.0))
    if bounds != "wide" or share:
        return _interval(lower, upper)
    positive = isinstance(lower, int | float) and lower >= 0
    return Map(jnp.exp, jnp.log) if positive else Map(lambda u: u, lambda theta: theta)


def _is(bound: Any, value: float) -> bool:
    return isinstance(bound, int | float) and bound == value


def _interval(lower: Any, upper: Any) -> Map:
    width = upper - lower
    return Map(
        lambda u: lower + width * jnp.sin(u) ** 2,
        lambda theta: jnp.arcsin(jnp.sqrt(jnp.clip((theta - lower) / width, 0.0, 1.0))),
    )
