r"""Weighted draws of many posteriors at once: `(mechanism, records) -> points, log weights`.

Adaptive importance sampling. Draws of the prior are far too wide, so each series gets its own
mixture of Student-t kernels around weighted draws (West, 1993), which follows a bent posterior, and
is moved there in a few rounds (Cappe et al., 2008), beside a share of the prior's draws that bounds
the weights (Hesterberg, 1995). Only the last round is handed out, so that the mean weight is an
estimate of the evidence without bias.
Intervals continue beyond their ends (see `_mirror`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed, log_likelihood
from sgjax.priors import free, sample_prior
from sgjax.references._mirror import mirrored, placed, thetas_of
from sgjax.references.fit import check_records
from sgjax.references.likelihood import LogJoint, compiled, log_joint
from sgjax.references.weights import MAX_PARETO_K, pareto_smooth
from sgjax.study import Study

POINTS = 2**16
"""Simulations of one program."""

PRIOR_DRAWS = 4096
"""Draws of the prior, shared by all series, that the first proposal is taken from."""

ROUNDS = 8
"""Rounds of moving a proposal."""

PART = 1024
"""Draws in each of them, and of one part of the last round."""

HELD = 128
"""The effective draws that weights are flattened to before a proposal is fitted to them."""

FROM_PRIOR = 1 / 8
"""The share of draws that come from the prior instead, so that no weight is out of bounds."""

KERNELS = 128
"""Kernels of each proposal."""

POWER = 0.75
"""A proposal is fitted to the posterior to this power: thin parts of a bent one, which few draws
would find, get kernels of their own. It costs 3 % of the effective draws a dimension."""

FREEDOM = 5
"""Degrees of freedom of the kernels, whose tails must be longer than the posterior's."""


class Mixture(NamedTuple):
    """Kernels of one shape around several centres, of equal weight."""

    centres: Float[Array, "*series kernels size"]
    scale: Float[Array, "*series size size"]
    """The Cholesky factor of that shape."""
    spread: Float[Array, "*series size"]
    """Standard deviations of each coordinate of the whole, the others held."""


class Draws(NamedTuple):
    """Weighted draws of one series."""

    series: int
    points: Float[np.ndarray, "draws size"]
    """Where they are, for `thetas_of`."""
    log_weights: Float[np.ndarray, " draws"]
    """Of prior times likelihood over proposal; not normalised."""
    from_prior: int
    """So many, the last ones, are of the prior; the others of the kernels."""
    ess: float
    """Effective draws."""
    pareto_k: float
    """The shape of the weights' tail."""


def prepared(
    study: Study, mechanism: str, observed: Observed, known: Theta | None
) -> tuple[LogJoint, Observed]:
    """The density of the first series, for its mechanism, and the series, which lead.

    Raises `ValueError` where one of them cannot be answered.
    """
    if observed.values.ndim == 2:
        observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observed)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], observed)
    joint = log_joint(study, mechanism, first, known)
    check_records(observed)
    return joint, observed


def weighted_draws(
    joint: LogJoint,
    observed: Observed,
    key: PRNGKey,
    limits: tuple[int, float, int],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Draws]:
    """Draws of each series, and once more, as many as they seem to need, where they are too few.

    `limits`: draws of a series at first, effective ones that are wanted, draws at most. All are
    drawn in parts of `PART`, so that there is one program to compile.
    """
    num_samples, min_ess, max_samples = limits
    keys = jax.random.split(key)
    vectors = compiled(joint, _draws)(jax.random.split(keys[0], PRIOR_DRAWS))
    count, first, most = observed.values.shape[0], -(-num_samples // PART), max_samples // PART
    width = max(1, min(POINTS // PART, count * first))
    rounds = _Rounds(joint, observed, vectors, width, keys[1], {})
    wanted, done = dict.fromkeys(range(count), first), 0
    while wanted:
        more: dict[int, int] = {}
        for series, parts in rounds.draws(wanted):
            found = _judged(series, parts)
            factor = 1.3 * min_ess / max(found.ess, min_ess / 4)
            if found.pareto_k > MAX_PARETO_K:
                factor = 4.0
            if factor > 1.3 and 2 * len(parts) <= most:
                again = len(parts) * 2 ** max(1, math.ceil(math.log2(factor)))
                more[series] = min(again, most)
            else:
                rounds.proposals.pop(series)
                done += 1
            yield found
            if progress is not None:
                progress(done, count)
        wanted = more


@dataclasses.dataclass
class _Rounds:
    """The draws of so many series at once, always by the same programs."""

    joint: LogJoint
    observed: Observed
    vectors: Array
    """Draws of the prior, from which proposals begin."""
    width: int
    """Parts of one program."""
    key: PRNGKey
    proposals: dict[int, Any]
    step: int = 0

    def draws(
        self, wanted: dict[int, int]
    ) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        """Of each series as many parts as are wanted; proposals that are missing are made."""
        order = list(wanted)
        for start in range(0, len(order), self.width):
            here = order[start : start + self.width]
            self._propose([series for series in here if series not in self.proposals])
            yield from self._drawn({series: wanted[series] for series in here})

    def _propose(self, series: list[int]) -> None:
        """Makes proposals, of `width` series at most."""
        if not series:
            return
        keys, records, _ = self._begun(series)
        made = compiled(self.joint, _from_prior)((keys[-1], self.vectors, records))
        for own in keys[:-1]:
            drawing, fitting = jax.random.split(own)
            drawn = compiled(self.joint, _weighted)((drawing, made, records))
            made = compiled(self.joint, _moved)((fitting, *drawn))
        kept = jax.tree.map(np.asarray, made)
        for row, each in enumerate(series):
            self.proposals[each] = jax.tree.map(lambda leaf, row=row: leaf[row], kept)

    def _drawn(
        self, wanted: dict[int, int]
    ) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        lanes = [series for series, parts in wanted.items() for _ in range(parts)]
        gathered: dict[int, list] = {}
        for start in range(0, len(lanes), self.width):
            here = lanes[start : start + self.width]
            keys, records, places = self._begun(here)
            made = jax.tree.map(
                lambda *leaves: np.stack(leaves), *(self.proposals[at] for at in places)
            )
            drawn = compiled(self.joint, _weighted)((keys[0], made, records))
            points, log_weights = map(np.asarray, drawn[:2])
            for row, series in enumerate(here):
                parts = gathered.setdefault(series, [])
                parts.append((points[row], log_weights[row].astype(np.float64)))
                if len(parts) == wanted[series]:
                    yield series, gathered.pop(series)

    def _begun(self, series: list[int]) -> tuple[PRNGKey, Observed, list[int]]:
        """Keys, and the records of `width` series, some more than once where there are fewer."""
        places = np.resize(series, self.width).tolist()
        records = jax.tree.map(lambda leaf: jnp.asarray(leaf)[np.array(places)], self.observed)
        self.step += 1
        return (
            jax.random.split(jax.random.fold_in(self.key, self.step), ROUNDS + 1),
            records,
            places,
        )


def _judged(series: int, parts: list[tuple[np.ndarray, np.ndarray]]) -> Draws:
    """What the draws of one series are worth: nothing where no weight is positive."""
    others = int(FROM_PRIOR * len(parts[0][0]))
    joined = []
    for each in zip(*parts, strict=True):
        own, prior = zip(*(np.split(part, [len(part) - others]) for part in each), strict=True)
        joined.append(np.concatenate([*own, *prior]))
    points, log_weights = joined
    from_prior, largest = others * len(parts), log_weights.max()
    if not np.isfinite(largest):
        return Draws(series, points, log_weights, from_prior, 0.0, np.inf)
    weights = np.exp(log_weights - largest)
    ess = float(weights.sum() ** 2 / np.sum(weights**2))
    return Draws(series, points, log_weights, from_prior, ess, pareto_smooth(log_weights)[1])


def _from_prior(joint: LogJoint, given: Any) -> Mixture:
    """The first proposals: the prior's draws, weighed by the likelihood of each series."""
    key, vectors, records = given
    thetas = thetas_of(joint, vectors)
    latents, observation = _simulated(joint, thetas), joint.study.observation

    def moved(given: tuple[PRNGKey, Observed]) -> Mixture:
        score = lambda theta, latent: log_likelihood(observation, theta, latent, given[1])
        return _fitted(given[0], vectors, jax.vmap(score)(thetas, latents))

    return jax.lax.map(moved, (jax.random.split(key, records.values.shape[0]), records))


def _moved(joint: LogJoint, given: Any) -> Mixture:
    """The proposals fitted to weighted draws, of the posterior to a power."""
    key, points, log_weights, log_targets = given
    wider = log_weights - (1 - POWER) * log_targets
    return jax.vmap(_fitted)(jax.random.split(key, len(points)), points, wider)


def _weighted(joint: LogJoint, given: Any) -> tuple[Array, Array, Array]:
    """Draws from each series' proposal, their log weights, and log posteriors up to a constant."""
    key, proposal, records = given
    count, kernels, size = proposal.centres.shape
    keys, others = jax.random.split(key, 4), int(FROM_PRIOR * PART)
    normal = jax.random.normal(keys[0], (count, PART - others, size))
    # A sum of squares: far sooner compiled than a gamma variate's rejections.
    shared = jax.random.normal(keys[1], (count, PART - others, FREEDOM))
    shrunk = normal / jnp.sqrt(jnp.mean(shared**2, axis=-1, keepdims=True))
    steps = jnp.einsum("sij,sdj->sdi", proposal.scale, shrunk)
    # As many draws of each kernel as of any other.
    own = proposal.centres[:, jnp.arange(PART - others) % kernels] + steps
    # Each lane has its own: two may be parts of one series.
    prior = _draws(joint, jax.random.split(keys[2], count * others)).reshape(count, others, size)
    others_too = mirrored(joint, keys[3], prior, proposal.spread)
    points = jnp.concatenate([own, others_too], axis=1)
    priors, likelihoods = _log_densities(joint, points, proposal.spread, records)
    share = others / PART
    kernel = jax.lax.map(lambda pair: _log_density(*pair), (proposal, points))
    proposed = jnp.logaddexp(math.log(1 - share) + kernel, math.log(share) + priors)
    targets = priors + likelihoods
    log_weights = targets - proposed
    return points, jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights), targets


def _log_density(proposal: Mixture, points: Float[Array, "draws size"]) -> Float[Array, " draws"]:
    """Of a mixture at points."""
    middle, inverse = proposal.centres.mean(axis=0), jnp.linalg.inv(proposal.scale)
    centres, points = ((at - middle) @ inverse.T for at in (proposal.centres, points))
    # |a - b|^2 as a matrix product; about the middle, so that little is lost to rounding.
    squares = jnp.sum(points**2, axis=1)[:, None] + jnp.sum(centres**2, axis=1)
    squares = jnp.maximum(squares - 2 * points @ centres.T, 0.0)
    logs = jax.nn.logsumexp(_student(squares, points.shape[1]), axis=1)
    return logs - math.log(len(centres)) - jnp.sum(jnp.log(jnp.diag(proposal.scale)))


def _student(squares: Float[Array, "*batch"], size: int) -> Float[Array, "*batch"]:
    """The log density of the standard multivariate Student-t at squared distances."""
    constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2)
    constant -= size / 2 * math.log(FREEDOM * math.pi)
    return constant - (FREEDOM + size) / 2 * jnp.log1p(squares / FREEDOM)


def _log_densities(
    joint: LogJoint,
    points: Float[Array, "series draws size"],
    spread: Float[Array, "series size"],
    records: Observed,
) -> tuple[Float[Array, "series draws"], Float[Array, "series draws"]]:
    """Log prior and log likelihood of each series at its own points, in one solve."""
    count, draws, _ = points.shape
    flat = lambda leaf: leaf.reshape(count * draws, *leaf.shape[2:])
    rows = lambda leaf: leaf.reshape(count, draws, *leaf.shape[1:])
    spreads = flat(jnp.broadcast_to(spread[:, None], points.shape))
    thetas, priors, _ = jax.vmap(functools.partial(placed, joint))(flat(points), spreads)
    thetas, latents = jax.tree.map(rows, (thetas, _simulated(joint, thetas)))
    observation = joint.study.observation

    def series(thetas: Theta, latents: Any, record: Observed) -> Array:
        score = lambda theta, latent: log_likelihood(observation, theta, latent, record)
        return jax.vmap(score)(thetas, latents)

    return rows(priors), jax.vmap(series)(thetas, latents, records)


def _simulated(joint: LogJoint, thetas: Theta) -> Any:
    count = len(jax.tree.leaves(thetas)[0])
    keys = jax.random.split(jax.random.key(0), count)
    return joint.study.mechanisms[joint.mechanism].simulate_batch(keys, thetas)


def _draws(joint: LogJoint, keys: PRNGKey) -> Float[Array, "draws size"]:
    """Points of draws of the prior."""

    def draw(key: PRNGKey) -> Array:
        theta = joint.known | sample_prior(key, joint.prior)
        points = [jnp.ravel(free(joint.prior, n, theta).inv(theta[n])) for n in joint.prior]
        return jnp.concatenate(points)

    return jax.vmap(draw)(keys)


def _fitted(
    key: PRNGKey, points: Float[Array, "draws size"], log_weights: Float[Array, " draws"]
) -> Mixture:
    """Kernels around weighted points, which have their mean and covariance together.

    Centres are drawn by weight and shrunk towards the mean by as much as kernels widen them. Where
    few draws carry the weight, it is flattened, `w^a` with the largest `a` up to 1 that leaves
    `HELD` of them effective.
    """
    finite = jnp.isfinite(log_weights)
    logs = jnp.where(
        finite, log_weights - jnp.max(jnp.where(finite, log_weights, -jnp.inf)), -jnp.inf
    )

    def weights(power: Array) -> Array:
        return jax.nn.softmax(jnp.where(finite, power * logs, -jnp.inf))

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = (low + high) / 2
        enough = 1 / jnp.sum(weights(middle) ** 2) >= HELD
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    (power, _), _ = jax.lax.scan(halve, (jnp.zeros(()), jnp.full((), 2.0)), length=24)
    share, size = weights(jnp.minimum(power, 1.0)), points.shape[1]
    mean = share @ points
    centred = points - mean
    covariance = (share * centred.T) @ centred
    # Draws of one place would make a proposal without width.
    covariance += jnp.diag(1e-6 + 1e-4 * jnp.diag(covariance))
    places = (jnp.arange(KERNELS) + jax.random.uniform(key)) / KERNELS
    chosen = jnp.searchsorted(jnp.cumsum(share), places).clip(0, len(points) - 1)
    # The width of Silverman (1986), for as many draws as are effective among the centres.
    effective = jnp.minimum(KERNELS, 1 / jnp.sum(share**2))
    width = (4 / ((size + 2) * effective)) ** (1 / (size + 4))
    width = jnp.minimum(width, 1.0)
    centres = mean + jnp.sqrt(1 - width**2) * centred[chosen]
    scale = width * jnp.linalg.cholesky(covariance)
    return Mixture(centres, scale, 1 / jnp.sqrt(jnp.diag(jnp.linalg.inv(covariance))))
