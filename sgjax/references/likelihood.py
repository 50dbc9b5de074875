r"""The log joint density: unconstrained parameters -> $\log p(\text{observed}, \theta)$.

It runs the very simulator and observation model that the stream trains on, so that a reference and
a predictor answer the same question.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from sgjax._types import Prior, PRNGKey, Theta
from sgjax.observations import Observed, log_likelihood
from sgjax.priors import from_unconstrained, log_prior_unconstrained, sample_prior, to_unconstrained
from sgjax.simulators import Latent
from sgjax.stream import Same
from sgjax.study import Study
from sgjax.tasks import AbstractTask, Estimate, Several, component_names

BATCH = 4096
"""Points of a compiled program; fewer are padded, so that it is compiled once."""


class LogJoint(eqx.Module):
    r"""$\log p(\text{observed}, u)$ of the unconstrained parameters $u$, Jacobian included.

    Call it with a dict for one point; `batch` takes vectors in the order of `shapes`, many at a
    time, with the batch inside the solver's state. Made by `log_joint`.
    """

    study: Study
    mechanism: str = eqx.field(static=True)
    known: Theta
    observed: Observed
    shapes: dict[str, tuple[int, ...]]
    """By name, the shape of each unconstrained parameter."""

    @property
    def prior(self) -> Prior:
        """The prior of what is unknown, given what is known."""
        return condition(self.study.priors[self.mechanism], self.known)

    @property
    def size(self) -> int:
        """How many real numbers are unknown."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def __call__(self, unconstrained: Theta) -> Float[Array, ""]:
        single = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], unconstrained)
        return self._batch(single)[0]

    def batch(self, vectors: Float[Array, "batch size"]) -> Float[Array, " batch"]:
        """The log joint density of many points; `-inf` where a simulation fails."""
        return self._batch(self.split(vectors))

    def split(self, vectors: Float[Array, "*batch size"]) -> Theta:
        """Vectors as a dict by name."""
        parts, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            parts[name] = vectors[..., start:stop].reshape(*vectors.shape[:-1], *shape)
            start = stop
        return parts

    def theta(self, unconstrained: Theta) -> Theta:
        """The parameters of one point in their own units, the known ones included."""
        return self.known | from_unconstrained(self.prior, unconstrained)

    def start(self, key: PRNGKey) -> Float[Array, " size"]:
        """A draw of the prior, as an unconstrained vector."""
        unconstrained = to_unconstrained(self.prior, sample_prior(key, self.prior))
        return jnp.concatenate([jnp.ravel(unconstrained[name]) for name in self.shapes])

    def _batch(self, unconstrained: Theta) -> Float[Array, " batch"]:
        thetas = jax.vmap(self.theta)(unconstrained)
        size = next(iter(unconstrained.values())).shape[0]
        simulator, observation = self.study.mechanisms[self.mechanism], self.study.observation
        latents = simulator.simulate_batch(jax.random.split(jax.random.key(0), size), thetas)

        def one(unconstrained: Theta, theta: Theta, latent: Latent) -> Float[Array, ""]:
            prior = log_prior_unconstrained(self.prior, unconstrained)
            return prior + log_likelihood(observation, theta, latent, self.observed)

        density = jax.vmap(one)(unconstrained, thetas, latents)
        return jnp.where(jnp.isnan(density), -jnp.inf, density)


def log_joint(
    study: Study, mechanism: str, observed: Observed, known: Theta | None = None
) -> LogJoint:
    """The log joint density of one mechanism's parameters and a record.

    `known` gives the values of the study's known parameters, on which everything is conditioned.
    Raises `ValueError` where the mechanism does not exist, known values are missing, the record has
    other times than the study, or the mechanism itself draws chance (its likelihood is then an
    integral over paths).
    """
    if mechanism not in study.mechanisms:
        raise ValueError(f"No mechanism {mechanism!r}; the study has {list(study.mechanisms)}.")
    values = known or {}
    if set(values) != set(study.known):
        raise ValueError(f"`known` must name {list(study.known)}; it names {list(values)}.")
    if observed.values.shape != (study.ts.size, len(study.channels)):
        raise ValueError(
            f"The record has shape {observed.values.shape}, the study simulates "
            f"{study.ts.size} times of {len(study.channels)} channels; mask what is missing."
        )
    given = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in values.items()}
    joint = LogJoint(study, mechanism, given, observed, _shapes(Same(study), mechanism))
    _check_deterministic(joint)
    return joint


@functools.lru_cache(maxsize=64)
def _shapes(same: Same, mechanism: str) -> dict[str, tuple[int, ...]]:
    prior = same.study.priors[mechanism]
    draw = jax.eval_shape(
        lambda key: to_unconstrained(prior, sample_prior(key, prior)), jax.random.key(0)
    )
    return {name: draw[name].shape for name in prior if name not in same.study.known}


def compiled(joint: LogJoint, function: Callable[[LogJoint, Any], Any]) -> Callable[[Any], Any]:
    """`function` of a joint density and something else, of this density, as a program.

    It is compiled once for all records of a study, so `function` must be the same object each time.
    """
    run = _compiled(Same(joint.study), joint.mechanism, function)
    return functools.partial(run, joint.known, joint.observed)


@functools.lru_cache(maxsize=64)
def _compiled(same: Same, mechanism: str, function: Callable) -> Callable:
    shapes = _shapes(same, mechanism)

    @jax.jit
    def run(known: Theta, observed: Observed, given: Any) -> Any:
        return function(LogJoint(same.study, mechanism, known, observed, shapes), given)

    return run


def in_batches(
    program: Callable[[Array], Any], vectors: Float[ArrayLike, "points size"]
) -> PyTree[Float[np.ndarray, " points"]]:
    """A program over vectors, in batches of one size, so that it is compiled once; in float64."""
    vectors, parts = np.asarray(vectors), []
    for start in range(0, len(vectors), BATCH):
        part = vectors[start : start + BATCH]
        parts.append(program(jnp.asarray(np.resize(part, (BATCH, vectors.shape[1])))))
    join = lambda *leaves: np.concatenate(leaves, dtype=np.float64)[: len(vectors)]
    return jax.tree.map(join, *parts)


def condition(prior: Prior, known: Theta) -> Prior:
    """The prior of the parameters that are not known, given those that are."""

    def given(entry):
        if isinstance(entry, dist.Distribution):
            return entry
        return lambda theta: entry(known | theta)

    return {name: given(entry) for name, entry in prior.items() if name not in known}


def derived_functions(task: AbstractTask) -> dict[str, Callable[[Theta], Array]]:
    """The functions of theta that a task asks for."""
    if isinstance(task, Several):
        return {k: f for part in task.tasks for k, f in derived_functions(part).items()}
    return dict(task.derived) if isinstance(task, Estimate) else {}


def quantities(joint: LogJoint, vectors: Float[ArrayLike, "batch size"]) -> dict[str, np.ndarray]:
    """Every unknown number and every derived function in its own units, by name, in float64.

    A derived function of a parameter that this mechanism lacks is left out.
    """

    thetas, derived = in_batches(compiled(joint, _natural), vectors)
    numbers: dict[str, np.ndarray] = {}
    for name in joint.prior:
        columns = thetas[name].reshape(thetas[name].shape[0], -1)
        labels = component_names(name, columns.shape[1])
        numbers |= dict(zip(labels, columns.T, strict=True))
    return numbers | derived


def _natural(joint: LogJoint, vectors: Float[Array, "batch size"]) -> tuple[Theta, Theta]:
    thetas = jax.vmap(joint.theta)(joint.split(vectors))
    derived: Theta = {}
    for name, function in derived_functions(joint.study.task).items():
        try:
            derived[name] = jax.vmap(function)(thetas)
        except KeyError:
            continue
    return thetas, derived


def _check_deterministic(joint: LogJoint) -> None:
    values = np.asarray(compiled(joint, _twice)(jax.random.split(jax.random.key(0))))
    if not np.array_equal(values[0], values[1], equal_nan=True):
        raise ValueError(
            f"{joint.mechanism} draws chance of its own, so that its likelihood is "
            "an integral over paths; exact references need a deterministic mechanism."
        )


def _twice(joint: LogJoint, keys: PRNGKey) -> Float[Array, "2 times channels"]:
    theta = joint.theta(joint.split(jnp.zeros(joint.size)))
    same = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), theta)
    return joint.study.mechanisms[joint.mechanism].simulate_batch(keys, same).values
