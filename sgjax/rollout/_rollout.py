"""A learned simulator stepped many times: `first frames -> course`, batched and compiled."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from sgjax.predictors import Predictor
from sgjax.priors import to_free
from sgjax.steppers import StepperNetwork, stepper_of
from sgjax.steppers.objectives import unrolled
from sgjax.study import Study
from sgjax.tasks import flatten


def rollout(
    predictor: Predictor,
    frames: Float[ArrayLike, "*batch history channels"],
    num_steps: int,
    known: Mapping[str, ArrayLike] | None = None,
    controls: Float[ArrayLike, "*batch steps controls"] | None = None,
) -> Float[Array, "*batch steps channels"]:
    """Steps a learned simulator `num_steps` times from its first frames.

    **Arguments:** `frames`, the `history` frames a step looks back at, or many of them, the batch
    leading; `known`, the study's known parameters, the same for all or with the batch leading;
    `controls`, one for each step, where the task has any.

    The first frame of the result is the one after `frames`. A rollout that diverges ends in numbers
    that are not finite and is handed out as it is.

    Raises `ValueError` where a shape is wrong, a number is not finite, a known parameter or the
    controls are missing, or a known parameter cannot be what its prior says (a negative rate).
    """
    network = stepper_of(predictor)
    first = jnp.asarray(frames, jnp.float32)
    alone = first.ndim == 2
    first = first[None] if alone else first
    shape = network.shape
    if first.ndim != 3 or first.shape[1:] != (shape.history, shape.channels):
        raise ValueError(
            f"`frames` have shape {np.shape(frames)}; a step looks back at {shape.history} "
            f"frame(s) of {shape.channels} channels {predictor.study.channels}, many with the "
            "batch leading."
        )
    if not _finite(first):
        raise ValueError("`frames` are not all finite; fill or leave out what is missing.")
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"`num_steps` must be a whole number of at least 1; got {num_steps}.")
    given = known_rows(predictor.study, known or {}, len(first))
    held = _controls(controls, (len(first), num_steps, shape.controls), alone)
    graph, state = nnx.split(network)
    made = _steps(graph, state, first, given, held)
    return made[0] if alone else made


def known_rows(
    study: Study, known: Mapping[str, ArrayLike], count: int
) -> Float[Array, "count known"]:
    """The study's known parameters in the form a network is given, a row a simulation."""
    missing = [name for name in study.known if name not in known]
    if missing or set(known) - set(study.known):
        raise ValueError(
            f"The study is told {list(study.known)}; got {list(known)}. Give each of them once."
        )
    mechanism = next(iter(study.mechanisms))
    prior, shapes = study.priors[mechanism], study.world.thetas[mechanism]
    rows = {}
    for name in study.known:
        values, shape = jnp.asarray(known[name], jnp.float32), shapes[name].shape
        if values.shape not in (shape, (count, *shape)):
            raise ValueError(
                f"`known` {name!r} has shape {values.shape}; expected {shape} or {(count, *shape)}."
            )
        rows[name] = jnp.broadcast_to(values, (count, *shape))

    def one(theta: dict[str, Array]) -> Array:
        return flatten(to_free(prior, theta, study.known), study.known)

    given = jax.vmap(one)(rows) if rows else jnp.zeros((count, 0))
    if not _finite(given):
        raise ValueError(
            f"`known` holds numbers that the priors of {list(study.known)} rule out, such as "
            "negative ones of what is positive, or some that are not finite."
        )
    return given


def _finite(values: Array) -> bool:
    """Whether all numbers are; where they are traced, nobody knows yet."""
    return isinstance(values, Tracer) or bool(jnp.isfinite(values).all())


def _controls(controls: ArrayLike | None, shape: tuple[int, int, int], alone: bool) -> Array:
    if controls is None:
        if shape[-1]:
            raise ValueError(f"This simulator is driven: give `controls` of shape {shape}.")
        return jnp.zeros(shape)
    held = jnp.asarray(controls, jnp.float32)
    held = held[None] if alone else held
    held = held[..., None] if held.ndim == 2 else held
    if held.shape != shape:
        raise ValueError(f"`controls` have shape {np.shape(controls)}; expected {shape}.")
    if not _finite(held):
        raise ValueError("`controls` are not all finite.")
    return held


@functools.partial(jax.jit, static_argnums=0)
def _steps(graph: Any, state: Any, first: Array, known: Array, held: Array) -> Array:
    network: StepperNetwork = nnx.merge(graph, state)

    def one(frames: Array, known: Array, held: Array) -> Array:
        step = lambda frames, control: network.step(frames, known, control)[1]
        return unrolled(step, frames, held)

    return jax.vmap(one)(first, known, held)
