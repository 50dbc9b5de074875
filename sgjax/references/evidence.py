r"""Evidence of many series at once: `(study, mechanism, records) -> log p(x | mechanism)`.

$p(x) = \int p(x \mid \theta) \, p(\theta) \, d\theta$ by importance sampling. Draws of the prior
are far too wide for that, so each series gets its own Student-t, moved to its posterior in a few
rounds (adaptive importance sampling, Cappe et al., 2008), beside a share of the prior's draws that
bounds the weights (Hesterberg, 1995). The last round alone is counted, so that the estimate has no
bias. What it is worth comes with it, series by series.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed, log_likelihood
from sgjax.priors import resolve, sample_prior
from sgjax.references.bounds import free
from sgjax.references.fit import check_records
from sgjax.references.likelihood import LogJoint, compiled, log_joint
from sgjax.references.weights import MAX_PARETO_K, pareto_smooth
from sgjax.study import Study

POINTS = 2**16
"""Simulations of one program."""

PRIOR_DRAWS = 4096
"""Draws of the prior, shared by all series, that the first proposal is taken from."""

ROUNDS, EXPLORING = 5, 512
"""Rounds of moving a proposal, and its draws in each."""

HELD = 64
"""The effective draws that weights are flattened to before a proposal is fitted to them."""

FROM_PRIOR = 1 / 8
"""The share of draws that come from the prior instead, so that no weight is out of bounds."""

FREEDOM = 5
"""Degrees of freedom of the proposals, whose tails must be longer than the posterior's."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence of one mechanism for each of many series."""

    mechanism: str
    log_evidence: Float[np.ndarray, " series"]
    error: Float[np.ndarray, " series"]
    """Monte Carlo standard errors of `log_evidence`."""
    ess: Float[np.ndarray, " series"]
    """Effective draws."""
    pareto_k: Float[np.ndarray, " series"]
    """The shape of the weights' tail: above 0.7 the errors themselves cannot be trusted."""
    num_samples: Int[np.ndarray, " series"]

    @property
    def trusted(self) -> Bool[np.ndarray, " series"]:
        """Whether k is below 0.7 and a hundred draws are effective."""
        return (self.pareto_k < MAX_PARETO_K) & (self.ess >= 100)


def evidence(
    study: Study,
    mechanism: str,
    observed: Observed,
    key: PRNGKey,
    *,
    known: Theta | None = None,
    num_samples: int = 2048,
    min_ess: float = 1000.0,
    max_samples: int = 2**15,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """The log evidence of one mechanism for many series.

    **Arguments:** `observed`, with the series leading, or one series alone; `known`, the values of
    the study's known parameters, the same for all; `num_samples` draws for each series, and four
    times as many, again and again up to `max_samples`, where fewer than `min_ess` are effective or
    Pareto's k is above 0.7; `progress` hears how many series are done, and of how many.

    Raises `ValueError` where the mechanism is not the study's, a record has other times or
    channels, the likelihood is no closed form, or a series has no value at all.
    """
    if observed.values.ndim == 2:
        observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observed)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], observed)
    joint = log_joint(study, mechanism, first, known)
    check_records(observed)
    keys = jax.random.split(key)
    vectors = compiled(joint, _draws)(jax.random.split(keys[0], PRIOR_DRAWS))
    count = observed.values.shape[0]
    found = {name: np.zeros(count) for name in ("log_evidence", "error", "ess", "pareto_k")}
    taken = np.zeros(count, np.int64)
    left, samples, step = np.arange(count), num_samples, 0
    while left.size and samples <= max_samples:
        width = max(1, min(POINTS // samples, left.size))
        for start in range(0, left.size, width):
            here = left[start : start + width]
            places = np.resize(here, width)
            records = jax.tree.map(lambda leaf, at=places: leaf[at], observed)
            log_weights = _sampled(
                joint, vectors, records, samples, jax.random.fold_in(keys[1], step)
            )
            step += 1
            for row, series in zip(log_weights[: here.size], here, strict=True):
                for name, value in _worth(row).items():
                    found[name][series] = value
                taken[series] = samples
            if progress is not None:
                progress(count - left.size + start + here.size, count)
        left = left[(found["ess"][left] < min_ess) | (found["pareto_k"][left] > MAX_PARETO_K)]
        samples *= 4
    return Evidence(mechanism, num_samples=taken, **found)


def mechanism_posterior(
    evidences: Mapping[str, Evidence], prior: Mapping[str, float] | None = None
) -> dict[str, Float[np.ndarray, " series"]]:
    r"""$P(M \mid x) \propto P(M) \, p(x \mid M)$ of each series; `prior` is equal by default."""
    shares = dict.fromkeys(evidences, 1.0) if prior is None else prior
    logs = np.stack([each.log_evidence + np.log(shares[n]) for n, each in evidences.items()])
    weights = np.exp(logs - logs.max(axis=0))
    return dict(zip(evidences, weights / weights.sum(axis=0), strict=True))


def _worth(log_weights: Float[np.ndarray, " draws"]) -> dict[str, float]:
    """What one series' weights say; no evidence at all where none is positive."""
    largest = log_weights.max()
    if not np.isfinite(largest):
        return {"log_evidence": -np.inf, "error": np.inf, "ess": 0.0, "pareto_k": np.inf}
    weights = np.exp(log_weights - largest)
    mean, others = weights.mean(), int(FROM_PRIOR * weights.size)
    parts = np.split(weights, [weights.size - others])  # so many of each, so each by itself
    variance = sum(part.size * part.var() for part in parts if part.size) / weights.size
    return {
        "log_evidence": float(largest + np.log(mean)),
        "error": float(np.sqrt(variance / weights.size) / mean),
        "ess": float(weights.sum() ** 2 / np.sum(weights**2)),
        "pareto_k": pareto_smooth(log_weights)[1],
    }


def _sampled(
    joint: LogJoint,
    vectors: Float[Array, "prior size"],
    records: Observed,
    samples: int,
    key: PRNGKey,
) -> Float[np.ndarray, "series draws"]:
    """Log weights of draws from proposals that were moved to each series' posterior."""
    keys = jax.random.split(key, ROUNDS + 1)
    proposal = compiled(joint, _from_prior)((vectors, records))
    for own in keys[:ROUNDS]:
        proposal = compiled(joint, _round(EXPLORING))((own, proposal, records))[1]
    log_weights, _ = compiled(joint, _round(samples))((keys[-1], proposal, records))
    return np.asarray(log_weights, np.float64)


def _from_prior(joint: LogJoint, given: Any) -> tuple[Array, Array]:
    """The first proposals: the prior's draws, weighed by the likelihood of each series."""
    vectors, records = given
    thetas, latents = _simulate(joint, vectors)
    observation = joint.study.observation

    def moved(record: Observed) -> tuple[Array, Array]:
        score = lambda theta, latent: log_likelihood(observation, theta, latent, record)
        return _fitted(vectors, jax.vmap(score)(thetas, latents))

    return jax.lax.map(moved, records)


@functools.cache
def _round(draws: int) -> Callable[[LogJoint, Any], Any]:
    """Draws from each series' proposal: their log weights, and the proposal fitted to them."""

    def run(joint: LogJoint, given: Any) -> tuple[Array, tuple[Array, Array]]:
        key, (means, scales), records = given
        count, size = means.shape
        keys, others = jax.random.split(key, 3), int(FROM_PRIOR * draws)
        normal = jax.random.normal(keys[0], (count, draws - others, size))
        gamma = jax.random.gamma(keys[1], FREEDOM / 2, (count, draws - others, 1)) * (2 / FREEDOM)
        own = means[:, None] + jnp.einsum("sij,sdj->sdi", scales, normal / jnp.sqrt(gamma))
        prior = _draws(joint, jax.random.split(keys[2], others))  # for all series alike
        prior = jnp.broadcast_to(prior, (count, others, size))
        points = jnp.concatenate([own, prior], axis=1)
        priors, likelihoods = _log_densities(joint, points, records)
        back = jnp.linalg.solve(scales[:, None], (points - means[:, None])[..., None])[..., 0]
        student = _student(back) - jnp.linalg.slogdet(scales)[1][:, None]
        share = others / draws
        proposal = jnp.logaddexp(math.log(1 - share) + student, math.log(share) + priors)
        log_weights = priors + likelihoods - proposal
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
        return log_weights, jax.vmap(_fitted)(points, log_weights)

    return run


def _student(t: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """The log density of the standard multivariate Student-t."""
    size = t.shape[-1]
    constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2)
    constant -= size / 2 * math.log(FREEDOM * math.pi)
    return constant - (FREEDOM + size) / 2 * jnp.log1p(jnp.sum(t**2, axis=-1) / FREEDOM)


def _log_densities(
    joint: LogJoint, points: Float[Array, "series draws size"], records: Observed
) -> tuple[Float[Array, "series draws"], Float[Array, "series draws"]]:
    """Log prior and log likelihood of each series at its own points, in one solve."""
    count, draws, size = points.shape
    flat = points.reshape(count * draws, size)
    rows = lambda leaf: leaf.reshape(count, draws, *leaf.shape[1:])
    thetas, latents = jax.tree.map(rows, _simulate(joint, flat))
    observation = joint.study.observation

    def series(thetas: Theta, latents: Any, record: Observed) -> Array:
        score = lambda theta, latent: log_likelihood(observation, theta, latent, record)
        return jax.vmap(score)(thetas, latents)

    return rows(jax.vmap(lambda vector: _theta(joint, vector)[1])(flat)), jax.vmap(series)(
        thetas, latents, records
    )


def _simulate(joint: LogJoint, vectors: Float[Array, "batch size"]) -> tuple[Theta, Any]:
    thetas = jax.vmap(lambda vector: _theta(joint, vector)[0])(vectors)
    keys = jax.random.split(jax.random.key(0), len(vectors))
    return thetas, joint.study.mechanisms[joint.mechanism].simulate_batch(keys, thetas)


def _theta(joint: LogJoint, vector: Float[Array, " size"]) -> tuple[Theta, Array]:
    """The parameters of a point, and the prior's log density there, -inf beyond its support."""
    parts, theta, total = joint.split(vector), dict(joint.known), jnp.zeros(())
    for name in joint.prior:
        distribution = resolve(joint.prior, name, theta)
        transform = free(joint.prior, name, theta)
        value = transform(parts[name])
        support: Any = distribution.support
        inside = jnp.all(support(value))
        density = jnp.sum(distribution.log_prob(value))
        density += jnp.sum(transform.log_abs_det_jacobian(parts[name], value))
        total += jnp.where(inside, density, -jnp.inf)
        theta[name] = value
    return theta, total


def _draws(joint: LogJoint, keys: PRNGKey) -> Float[Array, "draws size"]:
    """Points of draws of the prior."""

    def draw(key: PRNGKey) -> Array:
        theta = joint.known | sample_prior(key, joint.prior)
        points = [jnp.ravel(free(joint.prior, n, theta).inv(theta[n])) for n in joint.prior]
        return jnp.concatenate(points)

    return jax.vmap(draw)(keys)


def _fitted(
    points: Float[Array, "draws size"], log_weights: Float[Array, " draws"]
) -> tuple[Float[Array, " size"], Float[Array, "size size"]]:
    """Mean and Cholesky factor of weighted points.

    Where few draws carry the weight, it is flattened, $w^a$ with the largest $a \\le 1$ that leaves
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
    share = weights(jnp.minimum(power, 1.0))
    mean = share @ points
    centred = points - mean
    covariance = (share * centred.T) @ centred
    # Draws of one place would make a proposal without width.
    floor = 1e-6 + 1e-4 * jnp.diag(covariance)
    return mean, jnp.linalg.cholesky(covariance + jnp.diag(floor))
