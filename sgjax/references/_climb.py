"""The ascent of many likelihoods at once: `starts -> where each ends`, for fits and profiles.

What is `known` is held: the study's known parameters, and any other that is given a value. Where an
argument says so, each start has values of its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed, log_likelihood
from sgjax.priors import sample_prior
from sgjax.references.bounds import Bounds, from_theta, to_theta
from sgjax.references.likelihood import condition
from sgjax.simulators import Latent
from sgjax.solvers import forward_mode
from sgjax.stream import Same

LANES = 4096
"""Optimisations of one program."""

STEPS = 24
"""Of them in one go; those that have converged by then are not carried on."""

POLISHING, ROUGHNESS = 3, 0.1
"""Newton steps after them, and by how much a loss may seem to rise in one (see `_polished`)."""

DRAWS = 1024
"""Draws of the prior among which starts are chosen."""

_SCORED = 64
"""Series whose starts are chosen at once."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is compiled for: a mechanism of a study, and the bounds."""

    same: Same
    mechanism: str
    frozen: Literal["prior", "wide"] | tuple[tuple[str, tuple[float, float]], ...]

    @property
    def bounds(self) -> Bounds:
        return dict(self.frozen) if isinstance(self.frozen, tuple) else self.frozen

    def program(self, function: Callable) -> Callable:
        """`function(problem, ...)` compiled, once."""
        return _compiled(self, function)

    def draw(self, key: PRNGKey, known: Theta) -> Theta:
        """Coordinates of a draw of the prior."""
        prior = condition(self.same.study.priors[self.mechanism], known)
        return from_theta(prior, self.bounds, sample_prior(key, prior))

    def natural(self, vector: Float[Array, " size"], known: Theta) -> Theta:
        """The unknown parameters of a vector of coordinates."""
        like = jax.eval_shape(lambda key: self.draw(key, known), jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        prior = condition(self.same.study.priors[self.mechanism], known)
        theta = to_theta(prior, self.bounds, ravel_pytree(zeros)[1](vector), known)
        return {name: theta[name] for name in prior}

    def simulate(self, thetas: Theta) -> Latent:
        """The latent courses of many parameters, in one solve that has forward derivatives."""
        count = jax.tree.leaves(thetas)[0].shape[0]
        keys = jax.random.split(jax.random.key(0), count)
        with forward_mode():
            return self.same.study.mechanisms[self.mechanism].simulate_batch(keys, thetas)

    def loss(
        self, vectors: Float[Array, "batch size"], observed: Observed, known: Theta
    ) -> Float[Array, " batch"]:
        """Minus the log likelihood, infinite where it is not a number; `known` leads with batch."""
        thetas = known | natural(self, vectors, known)
        observation = self.same.study.observation
        score = lambda theta, latent, record: -log_likelihood(observation, theta, latent, record)
        values = jax.vmap(score)(thetas, self.simulate(thetas), observed)
        return jnp.where(jnp.isfinite(values), values, jnp.inf)


@functools.lru_cache(maxsize=64)
def _compiled(problem: Problem, function: Callable) -> Callable:
    return jax.jit(functools.partial(function, problem))


def natural(problem: Problem, vectors: Array, known: Theta) -> Theta:
    """The unknown parameters of many vectors of coordinates, each with what is known beside it."""
    return jax.vmap(problem.natural)(vectors, known)


def repeated(known: Theta, count: int) -> Theta:
    """Values that all share, as values of each."""
    return {name: jnp.broadcast_to(x, (count, *jnp.shape(x))) for name, x in known.items()}


def best_draws(
    problem: Problem, observed: Observed, known: Theta, key: PRNGKey, starts: int
) -> Float[np.ndarray, "series starts size"]:
    """For each series the likeliest draws of the prior, and less likely ones, ever further down.

    All series share what is `known`, and so the draws.
    """
    vectors = problem.program(_draws)(jax.random.split(key, DRAWS), known)
    ranks = np.unique(np.geomspace(1, DRAWS / 8, starts).astype(int) - 1)
    ranks = np.concatenate([ranks, np.setdiff1d(np.arange(starts), ranks)])[:starts]
    best, count = [], observed.values.shape[0]
    for start in range(0, count, _SCORED):
        rows = np.minimum(np.arange(start, start + _SCORED), count - 1)
        part = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf)[rows], observed)
        best.append(np.asarray(problem.program(_order)(vectors, part, known)))
    order = np.concatenate(best)[:count]
    return np.asarray(vectors)[order[:, ranks]]


def _draws(problem: Problem, keys: PRNGKey, known: Theta) -> Array:
    return jax.vmap(lambda key: ravel_pytree(problem.draw(key, known))[0])(keys)


def _order(problem: Problem, vectors: Array, observed: Observed, known: Theta) -> Array:
    """The draws, likeliest first, of each series: they share one set of simulations."""
    shared = repeated(known, vectors.shape[0])
    thetas = shared | natural(problem, vectors, shared)
    latents, observation = problem.simulate(thetas), problem.same.study.observation

    def score(record: Observed) -> Array:
        each = lambda theta, latent: -log_likelihood(observation, theta, latent, record)
        values = jax.vmap(each)(thetas, latents)
        return jnp.argsort(jnp.where(jnp.isfinite(values), values, jnp.inf))

    return jax.lax.map(score, observed)


def lanes_for(starts: int) -> int:
    """How many go through one program: few sizes, since each is compiled."""
    return min(LANES, 2 ** (starts - 1).bit_length())


def climb(
    problem: Problem,
    observed: Observed,
    known: Theta,
    begin: tuple[np.ndarray, np.ndarray],
    limits: tuple[float, int],
    progress: Callable[[int, int], None] | None,
    lanes: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where all starts end: vectors, losses, whether they converged; each has `known` of its own.

    In rounds of `STEPS`, so that the few that take long do not hold up the others.
    """
    (vectors, series), (tolerance, max_steps) = begin, limits
    vectors = vectors.copy()
    values, converged = np.full(len(vectors), np.inf), np.zeros(len(vectors), bool)
    left = np.arange(len(vectors))
    lanes = lanes_for(len(vectors)) if lanes is None else lanes
    for _ in range(0, max_steps, STEPS):
        for start in range(0, left.size, lanes):
            here = left[start : start + lanes]
            padded = np.resize(here, lanes)
            part = jax.tree.map(lambda leaf, at=series[padded]: jnp.asarray(leaf)[at], observed)
            held = jax.tree.map(lambda leaf, at=padded: jnp.asarray(leaf)[at], known)
            found = problem.program(_minimise)(jnp.asarray(vectors[padded]), part, held)
            ended, losses, gains = (np.asarray(each)[: here.size] for each in found)
            vectors[here], values[here], converged[here] = ended, losses, gains <= tolerance
            if progress is not None:
                progress(int(converged.sum()), len(vectors))
        left = np.flatnonzero(~converged)
    return vectors, values, converged


def _minimise(
    problem: Problem, vectors: Array, observed: Observed, known: Theta
) -> tuple[Array, Array, Array]:
    """`STEPS` steps from each vector: where to, the loss there, the gain of a further step.

    BFGS knows nothing of the scales; in coordinates with unit curvature at the start its first step
    is Newton's.
    """
    # A solve is traced once, not at each place where it is needed: tracing takes longest of all.
    given = vectors, observed, known
    slopes_at = eqx.filter_closure_convert(functools.partial(_slopes, problem), *given)
    axes_at = problem.program(_axes)
    solver, loss = optimistix.BFGS(rtol=0.0, atol=1e-3), _with_slopes(slopes_at, len(vectors))

    def one(vector: Array, axes: Array, record: Observed, known: Theta) -> Array:
        place = lambda z: vector + axes @ z
        found = optimistix.minimise(
            lambda z, given: loss(place(z), *given),
            solver,
            jnp.zeros_like(vector),
            args=(record, known),
            max_steps=STEPS,
            throw=False,
        )
        return place(found.value)

    ends = jax.vmap(one)(vectors, axes_at(*given), observed, known)
    look = lambda x: (*slopes_at(x, observed, known), axes_at(x, observed, known))
    return _polished(ends, look)


def _polished(
    vectors: Array, look: Callable[[Array], tuple[Array, Array, Array]]
) -> tuple[Array, Array, Array]:
    """A few Newton steps from each vector, of those that lower the gain of a further step.

    In single precision a likelihood is rough by some hundredths, where small counts are differences
    of large numbers, so that a search that compares values stops early; its slopes are not.
    """

    def judged(vectors: Array) -> tuple[Array, Array, Array, Array]:
        losses, slopes, axes = look(vectors)
        pull = jnp.einsum("bij,bi->bj", axes, slopes)
        gains = jnp.sum(pull**2, axis=1) / 2
        step = jnp.einsum("bij,bj->bi", axes, pull)
        return vectors, losses, jnp.where(jnp.isfinite(losses + gains), gains, jnp.inf), step

    def polish(now: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        moved = judged(now[0] - jnp.where(jnp.isfinite(now[3]), now[3], 0.0))
        better = (moved[2] < now[2]) & (moved[1] < now[1] + ROUGHNESS)
        keep = lambda new, old: jnp.where(jnp.expand_dims(better, range(1, new.ndim)), new, old)
        return jax.tree.map(keep, moved, now), None

    # The first vectors are judged within the loop too: so a solve is compiled once, not twice.
    nowhere = jnp.full(len(vectors), jnp.inf)
    start = vectors, nowhere, nowhere, jnp.zeros_like(vectors)
    (ends, losses, gains, _), _ = jax.lax.scan(polish, start, length=1 + POLISHING)
    return ends, losses, gains


def _slopes(
    problem: Problem, vectors: Array, observed: Observed, known: Theta
) -> tuple[Array, Array]:
    """The losses of many vectors, and their derivatives."""
    return pushed(lambda x: problem.loss(x, observed, known), vectors)


def _axes(
    problem: Problem, vectors: Array, observed: Observed, known: Theta
) -> Float[Array, "batch size size"]:
    r"""For each vector $A$ with $A^T H A = 1$, $H$ the curvature of the loss there.

    Of parameters Gauss-Newton's, $J^T (\partial^2 \ell / \partial z^2) J$ with
    $z = (\theta, \text{latent})$ what the likelihood sees, which leaves out the mechanism's own
    second derivatives; that of the coordinates is added whole, as it is all there is at a bound.
    Axes of negative curvature are turned, and none is longer than 1.
    """
    thetas = natural(problem, vectors, known)
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], thetas))[1]
    flat = lambda tree: ravel_pytree(tree)[0]

    def seen(rows: Array) -> tuple[Theta, Latent]:
        made = known | jax.vmap(unravel)(rows)
        return made, problem.simulate(made)

    points, tangents = pushed(seen, jax.vmap(flat)(thetas))
    observation = problem.same.study.observation

    def curvature(
        vector: Array, point: Any, tangents: Any, record: Observed, known: Theta
    ) -> Array:
        slope = jax.grad(lambda z: -log_likelihood(observation, z[0], z[1], record))
        bent = jax.vmap(lambda tangent: jax.jvp(slope, (point,), (tangent,))[1])(tangents)
        ways = jax.vmap(flat)(tangents)
        coordinates = lambda vector: flat(problem.natural(vector, known))
        turn = jax.jacfwd(coordinates)(vector)
        pull = ways @ flat(slope(point))
        own = jax.hessian(lambda vector: pull @ coordinates(vector))(vector)
        return turn.T @ (ways @ jax.vmap(flat)(bent).T) @ turn + own

    matrices = jax.vmap(curvature)(vectors, points, tangents, observed, known)
    matrices = jnp.where(jnp.isfinite(matrices), matrices, 0.0)
    values, axes = jnp.linalg.eigh((matrices + matrices.mT) / 2)
    return axes / jnp.sqrt(jnp.maximum(jnp.abs(values), 1.0))[:, None, :]


def _with_slopes(
    slopes_at: Callable[[Array, Observed, Theta], tuple[Array, Array]], count: int
) -> Callable[[Array, Observed, Theta], Array]:
    """The loss of one vector, its record and what is known; mapped over `count`, it is one solve.

    Mapping the solver itself costs several times more (see `sgjax.solvers`), so that the rule for a
    batch calls `slopes_at`, which has the batch inside the solver's state. It knows that one size.
    """

    @jax.custom_batching.custom_vmap
    def value_and_slope(vector: Array, observed: Observed, known: Theta) -> tuple[Array, Array]:
        spread = lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape))
        values, slopes = slopes_at(*jax.tree.map(spread, (vector, observed, known)))
        return values[0], slopes[0]

    @value_and_slope.def_vmap
    def _(size: int, batched: Any, *given: Any):
        spread = lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (size, *leaf.shape))
        return slopes_at(*jax.tree.map(spread, given, tuple(batched))), (True, True)

    @jax.custom_jvp
    def loss(vector: Array, observed: Observed, known: Theta) -> Array:
        return value_and_slope(vector, observed, known)[0]

    @loss.defjvp
    def _(primals: tuple[Array, Observed, Theta], tangents: tuple[Array, Observed, Theta]):
        value, slope = value_and_slope(*primals)
        return value, jnp.vdot(slope, tangents[0])

    return loss


def pushed(function: Callable[[Array], Any], vectors: Float[Array, "batch size"]) -> Any:
    """A function of a batch, and its derivative by each coordinate (along the second axis)."""

    def push(direction: Array) -> tuple[Any, Any]:
        return jax.jvp(function, (vectors,), (jnp.broadcast_to(direction, vectors.shape),))

    return jax.vmap(push, out_axes=(None, 1))(jnp.eye(vectors.shape[1], dtype=vectors.dtype))
