r"""Fisher information: which combinations of parameters the law of the data depends on at all.

$$I(\theta) = E_x \big[ s s^\top \big] = \sum_i E_x \big[ s_i s_i^\top \big], \qquad
s_i = \frac{d}{d\theta} \log p(x_i \mid \theta)$$

over the recorded values $x_i$, independent given $\theta$. The derivatives go forward through the
solve and the observation's log density, so that any noise with a closed-form density will do, and
the expectation is taken over simulated records. Along a combination that no value depends on every
score vanishes, whatever the record, so that the rank does not wait for the average to settle; and
eigenvalues come from the scores' own singular values, never squared, to the digits of float32.

Scores are per prior standard deviation of each parameter, of its logarithm where it is positive:
an eigenvalue of 1 is as much as the prior knows, and combinations of logarithms are products.
Sources: Rothenberg (1971); Raue et al. (2009).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._tables import as_text
from sgjax._types import PRNGKey, Theta
from sgjax.identifiability._words import in_words, label_of, turned
from sgjax.observations import Observed, log_densities
from sgjax.priors import event_size, sample_prior
from sgjax.references._climb import Problem, pushed
from sgjax.references.likelihood import log_joint
from sgjax.simulators import Latent
from sgjax.stream import Same
from sgjax.study import Study
from sgjax.tasks import component_names

TOLERANCE = 1e-8
"""Eigenvalues below this share of the largest count as 0. Rounding of a solve leaves some 1e-11."""

PRIOR_DRAWS = 4096
"""Draws that the prior's standard deviations are taken from."""

BLOCK = 32
"""Parameters whose records are simulated at once."""


@dataclasses.dataclass(frozen=True)
class FisherInformation:
    r"""The Fisher information of one mechanism at several parameters, in units of the prior.

    `factors` $R$ give it as $R^\top R$, in units of `prior_sd`, by `names`, on the log scale where
    `logarithmic`.
    """

    mechanism: str
    names: tuple[str, ...]
    logarithmic: Bool[np.ndarray, " size"]
    prior_sd: Float[np.ndarray, " size"]
    factors: Float[np.ndarray, "points size size"]
    tolerance: float

    @property
    def labels(self) -> tuple[str, ...]:
        """The names, with their scale."""
        return tuple(map(label_of, self.names, self.logarithmic.tolist()))

    @property
    def matrices(self) -> Float[np.ndarray, "points size size"]:
        """The information at each point."""
        return self.factors.swapaxes(1, 2) @ self.factors

    @property
    def eigenvalues(self) -> Float[np.ndarray, "points size"]:
        """At each point, largest first."""
        return np.linalg.svd(self.factors, compute_uv=False) ** 2

    @property
    def ranks(self) -> Int[np.ndarray, " points"]:
        """How many eigenvalues at each point are above `tolerance` times the largest."""
        values = self.eigenvalues
        return np.sum(values > self.tolerance * values[:, :1], axis=1)

    @property
    def rank(self) -> int:
        """The rank of the mean over points: combinations it lacks are lacking everywhere."""
        values = self.principal[0]
        return int(np.sum(values > self.tolerance * values[0]))

    @property
    def principal(self) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, "size size"]]:
        """Eigenvalues of the mean over points, largest first, and directions of length 1 by row."""
        stacked = self.factors.reshape(-1, len(self.names)) / np.sqrt(len(self.factors))
        _, singular, directions = np.linalg.svd(stacked, full_matrices=False)
        return singular**2, np.stack([turned(row) for row in directions])

    @property
    def null_directions(self) -> Float[np.ndarray, "null size"]:
        """Moves of the parameters, in prior sds by row, that leave the law of the data as it is."""
        return self.principal[1][self.rank :]

    @property
    def verdict(self) -> str:
        """In plain words."""
        size, everywhere = len(self.names), self.rank
        if everywhere < size:
            moves = "; ".join(self._move(row) for row in self.null_directions)
            return (
                f"Rank {everywhere} of {size}: the data stay as they are with {moves}. No amount "
                "of such data tells these apart."
            )
        lowest = int(self.ranks.min())
        if lowest < size:
            return (
                f"Rank {size} of {size} over all points together, but only {lowest} at some, where "
                "the data tell next to nothing of a combination that changes from point to point."
            )
        weak = int(np.sum(self.principal[0] < 1))
        if weak:
            return (
                f"Rank {size} of {size}, but along {weak} direction(s) the data tell less than the "
                "prior does."
            )
        return f"Rank {size} of {size}: along every direction the data tell more than the prior."

    def table(self) -> list[dict[str, Any]]:
        """One row per principal direction, the best known first."""
        values, directions = self.principal
        words = ["fixed by the data", "less than the prior knows", "nothing depends on it"]
        null = values <= self.tolerance * values[0]
        return [
            {
                "direction, in prior sds": in_words(row, self.labels),
                "information": float(value),
                "verdict": words[2 if nothing else int(value < 1)],
            }
            for value, row, nothing in zip(values, directions, null, strict=True)
        ]

    def __str__(self) -> str:
        title = f"Fisher information of {self.mechanism}, mean over {len(self.factors)} points"
        return f"{as_text(self.table(), title)}\n{self.verdict}"

    def _move(self, direction: np.ndarray) -> str:
        kept = np.flatnonzero(np.abs(direction) >= 0.1 * np.abs(direction).max())
        ways = [f"{self.labels[i]} {'up' if direction[i] > 0 else 'down'}" for i in kept]
        sizes = [f"{abs(direction[i]):.2f}" for i in kept]
        return " and ".join(f"{way} ({size})" for way, size in zip(ways, sizes, strict=True))


def fisher_information(
    study: Study,
    mechanism: str,
    key: PRNGKey,
    *,
    theta: Theta | None = None,
    num_points: int = 64,
    num_records: int = 64,
    tolerance: float = TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> FisherInformation:
    """The Fisher information of a mechanism's unknown parameters, at draws of the prior.

    The rank is that of all points together: at a single one a combination may be so faint that
    rounding hides it.

    **Arguments:** `theta`, all parameters of the mechanism, known ones too, of one point or of
    many, in place of `num_points` draws of the prior; `num_records` simulated at each, over which
    the scores are averaged: of some sqrt(2 / values / records) is an eigenvalue's relative error;
    `tolerance`, the share of the largest eigenvalue below which one counts as 0; `progress` hears
    how many points are done, and of how many. Only the times that the predictor sees count.

    Raises `ValueError` where the mechanism is not the study's or draws chance of its own, the
    observation has no closed-form density, a parameter's numbers depend on each other (a simplex),
    `theta` lacks one, or a derivative is not finite.
    """
    if num_points < 1 or num_records < 1 or not 0 < tolerance < 1:
        raise ValueError(
            "`num_points` and `num_records` must be at least 1 and `tolerance` between 0 and 1; "
            f"got {num_points}, {num_records} and {tolerance}."
        )
    keys = jax.random.split(key)
    names, labels = _unknowns(study, mechanism)
    prior = study.priors[mechanism]
    draw = jax.jit(jax.vmap(lambda key: sample_prior(key, prior)))
    drawn = draw(jax.random.split(keys[0], max(PRIOR_DRAWS, num_points)))
    columns = [np.asarray(drawn[name], np.float64).reshape(len(drawn[name]), -1) for name in names]
    rows = np.concatenate(columns, axis=1)
    logarithmic = np.asarray((rows > 0).all(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        prior_sd = np.where(logarithmic, np.log(rows), rows).std(axis=0)
    first = {name: leaf[:num_points] for name, leaf in drawn.items()}
    points = first if theta is None else _many(theta, prior)
    _check(study, mechanism, points)
    count = next(iter(points.values())).shape[0]
    program = Problem(Same(study), mechanism, "prior").program(_factors)
    own, factors = jax.random.split(keys[1], (count, num_records)), []
    for start in range(0, count, BLOCK):
        here = np.resize(np.arange(start, min(start + BLOCK, count)), min(BLOCK, count))
        part = jax.tree.map(lambda leaf, at=here: leaf[at], points)
        found = program(part, own[here], jnp.asarray(logarithmic), jnp.asarray(prior_sd))
        factors.append(np.asarray(found, np.float64)[: min(BLOCK, count - start)])
        if progress is not None:
            progress(min(start + BLOCK, count), count)
    made = np.concatenate(factors)
    _check_finite(made, points)
    return FisherInformation(mechanism, labels, logarithmic, prior_sd, made, tolerance)


def _unknowns(study: Study, mechanism: str) -> tuple[list[str], tuple[str, ...]]:
    if mechanism not in study.mechanisms:
        raise ValueError(f"No mechanism {mechanism!r}; the study has {list(study.mechanisms)}.")
    prior, drawn = study.priors[mechanism], study.world.thetas[mechanism]
    names = [name for name in prior if name not in study.known]
    sizes = {name: int(np.prod(np.shape(drawn[name]))) for name in names}
    example = sample_prior(jax.random.key(0), prior)
    bound = [name for name in names if event_size(prior, name, example) != sizes[name]]
    if bound:
        raise ValueError(
            f"The numbers of {bound} depend on each other, so that none has a sensitivity of its "
            "own; give the free ones priors of their own."
        )
    return names, tuple(label for name in names for label in component_names(name, sizes[name]))


def _many(theta: Theta, prior: Any) -> Theta:
    absent = [name for name in prior if name not in theta]
    if absent:
        raise ValueError(f"`theta` must hold every parameter; it lacks {absent}.")
    example = jax.eval_shape(lambda key: sample_prior(key, prior), jax.random.key(0))
    real = jnp.result_type(float)
    made = {
        name: jnp.asarray(theta[name], real).reshape(-1, *example[name].shape) for name in prior
    }
    count = max(leaf.shape[0] for leaf in made.values())
    return {name: jnp.broadcast_to(x, (count, *x.shape[1:])) for name, x in made.items()}


def _flat(theta: Theta, names: Sequence[str]) -> Float[Array, " size"]:
    return jnp.concatenate([jnp.ravel(theta[name]) for name in names])


def _factors(
    problem: Problem,
    thetas: Theta,
    keys: PRNGKey,
    logarithmic: Bool[Array, " size"],
    prior_sd: Float[Array, " size"],
) -> Float[Array, "points size size"]:
    """The triangular factor of the information at each of many parameters."""
    study = problem.same.study
    names = [name for name in study.priors[problem.mechanism] if name not in study.known]
    like = {name: leaf[0] for name, leaf in thetas.items()}
    size = prior_sd.size

    def unflat(vector: Array) -> Theta:
        made, start = {}, 0
        for name in names:
            stop = start + like[name].size
            made[name] = vector[start:stop].reshape(like[name].shape)
            start = stop
        return made

    def seen(scaled: Array) -> tuple[Theta, Latent]:
        vectors = scaled * prior_sd
        natural = jnp.where(logarithmic, jnp.exp(jnp.where(logarithmic, vectors, 0.0)), vectors)
        made = thetas | jax.vmap(unflat)(natural)
        return made, problem.simulate(made)

    rows = jax.vmap(lambda theta: _flat(theta, names))(thetas)
    rows = jnp.where(logarithmic, jnp.log(jnp.where(logarithmic, rows, 1.0)), rows)
    points, tangents = pushed(seen, rows / prior_sd)
    inside = (np.arange(study.ts.size) < study.context_ts.size)[:, None]

    def one(key: PRNGKey, point: Any, tangents: Any) -> Array:
        record = study.observation.observe(key, point[0], Observed.of(point[1]))
        record = Observed(record.ts, record.values, record.mask & inside)
        density = lambda point: log_densities(study.observation, point[0], point[1], record)
        return jax.vmap(lambda tangent: jax.jvp(density, (point,), (tangent,))[1].ravel())(tangents)

    def factor(keys: PRNGKey, point: Any, tangents: Any) -> Array:
        scores = jax.vmap(lambda key: one(key, point, tangents))(keys) / jnp.sqrt(keys.shape[0])
        scores = jnp.moveaxis(scores, 1, 2).reshape(-1, size)
        # As many rows as columns at least, or the factor would not be square.
        return jnp.linalg.qr(jnp.concatenate([scores, jnp.zeros((size, size))]), mode="r")

    return jax.vmap(factor)(keys, points, tangents)


def _check(study: Study, mechanism: str, points: Theta) -> None:
    """Raises what `log_joint` does for a mechanism or an observation without a likelihood."""
    theta = {name: leaf[0] for name, leaf in points.items()}
    values = jnp.zeros((study.ts.size, len(study.channels)))
    observed = Observed(jnp.asarray(study.ts, values.dtype), values, values == 0)
    log_joint(study, mechanism, observed, {name: theta[name] for name in study.known})
    latent = Latent(observed.ts, values, None)
    jax.eval_shape(lambda: log_densities(study.observation, theta, latent, observed))


def _check_finite(factors: np.ndarray, points: Theta) -> None:
    broken = np.flatnonzero(~np.isfinite(factors).all(axis=(1, 2)))
    if broken.size:
        first = {name: np.asarray(leaf)[broken[0]].tolist() for name, leaf in points.items()}
        raise ValueError(
            f"At {broken.size} of {len(factors)} points a derivative is not finite, first at "
            f"{first}; take finer steps of the solver, or a tighter prior."
        )
