r"""Weighted draws of many posteriors at once: `(mechanism, records) -> points, log weights`.

Adaptive importance sampling. Draws of the prior are far too wide, so each series gets its own
mixture of Student-t kernels around weighted draws (West, 1993), which follows a bent posterior, and
is moved there in a few rounds (Cappe et al., 2008), beside a share of the prior's draws that bounds
the weights (Hesterberg, 1995). Only the last round is handed out, so that the mean weight is an
estimate of the evidence without bias.

A posterior often leans on the ends of the prior's intervals, in the worst case on a corner, where
most draws of a kernel would be lost. So an interval continues beyond its ends as in a mirror: a
value at distance $d$ within stands for itself with probability $1 - s(d)/2$ and for its image with
$s(d)/2$, $s(d) = e^{-d^2/2\tau^2}$, where $\tau$ is the proposal's standard deviation of that
value, the others held. Together they have the mass of the value, whatever $\tau$ is, and a slope
that ends becomes a peak.
"""

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

ROUNDS, EXPLORING = 8, 1024
"""Rounds of moving a proposal, and its draws in each."""

HELD = 128
"""The effective draws that weights are flattened to before a proposal is fitted to them."""

FROM_PRIOR = 1 / 8
"""The share of draws that come from the prior instead, so that no weight is out of bounds."""

KERNELS = 128
"""Kernels of each proposal."""

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
    """Draws of each series, and again, four times as many, of those where they are worth little.

    `limits`: draws of a series at first, effective ones that are wanted, draws at most.
    """
    num_samples, min_ess, max_samples = limits
    keys = jax.random.split(key)
    vectors = compiled(joint, _draws)(jax.random.split(keys[0], PRIOR_DRAWS))
    count = observed.values.shape[0]
    left, samples, step = list(range(count)), num_samples, 0
    while left and samples <= max_samples:
        width, again = max(1, min(POINTS // samples, len(left))), []
        for start in range(0, len(left), width):
            here = left[start : start + width]
            places = np.resize(here, width)
            records = jax.tree.map(lambda leaf, at=places: leaf[at], observed)
            own = jax.random.fold_in(keys[1], step)
            points, log_weights = _sampled(joint, vectors, records, samples, own)
            step += 1
            for row, series in enumerate(here):
                found = _judged(series, points[row], log_weights[row])
                if found.ess < min_ess or found.pareto_k > MAX_PARETO_K:
                    again.append(series)
                yield found
            if progress is not None:
                progress(count - len(left) + start + len(here), count)
        left, samples = again, samples * 4


def thetas_of(joint: LogJoint, points: Float[Array, "draws size"]) -> Theta:
    """The parameters of points, each in its own units."""
    nothing = jnp.ones(points.shape[1])
    return jax.vmap(lambda point: _placed(joint, point, nothing)[0])(points)


def _judged(
    series: int, points: Float[np.ndarray, "draws size"], log_weights: Float[np.ndarray, " draws"]
) -> Draws:
    """What the draws of one series are worth: nothing where no weight is positive."""
    largest = log_weights.max()
    if not np.isfinite(largest):
        return Draws(series, points, log_weights, 0.0, np.inf)
    weights = np.exp(log_weights - largest)
    ess = float(weights.sum() ** 2 / np.sum(weights**2))
    return Draws(series, points, log_weights, ess, pareto_smooth(log_weights)[1])


def _sampled(
    joint: LogJoint,
    vectors: Float[Array, "prior size"],
    records: Observed,
    samples: int,
    key: PRNGKey,
) -> tuple[Float[np.ndarray, "series draws size"], Float[np.ndarray, "series draws"]]:
    """Draws from proposals that were moved to each series' posterior, and their log weights."""
    keys = jax.random.split(key, ROUNDS + 2)
    proposal = compiled(joint, _from_prior)((keys[-2], vectors, records))
    for own in keys[:ROUNDS]:
        proposal = compiled(joint, _moved)((own, proposal, records))
    points, log_weights = compiled(joint, _weighted(samples))((keys[-1], proposal, records))
    return np.asarray(points), np.asarray(log_weights, np.float64)


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
    """The proposals fitted to draws from these ones."""
    key, proposal, records = given
    keys = jax.random.split(key)
    points, log_weights = _weighted(EXPLORING)(joint, (keys[0], proposal, records))
    return jax.vmap(_fitted)(jax.random.split(keys[1], len(points)), points, log_weights)


@functools.cache
def _weighted(draws: int) -> Callable[[LogJoint, Any], tuple[Array, Array]]:
    """Draws from each series' proposal, and their log weights."""

    def run(joint: LogJoint, given: Any) -> tuple[Array, Array]:
        key, proposal, records = given
        count, kernels, size = proposal.centres.shape
        keys, others = jax.random.split(key, 4), int(FROM_PRIOR * draws)
        normal = jax.random.normal(keys[0], (count, draws - others, size))
        gamma = jax.random.gamma(keys[1], FREEDOM / 2, (count, draws - others, 1)) * (2 / FREEDOM)
        steps = jnp.einsum("sij,sdj->sdi", proposal.scale, normal / jnp.sqrt(gamma))
        # As many draws of each kernel as of any other.
        own = proposal.centres[:, jnp.arange(draws - others) % kernels] + steps
        prior = _draws(joint, jax.random.split(keys[2], others))  # for all series alike
        mirrored = _mirrored(joint, keys[3], prior, proposal.spread)
        points = jnp.concatenate([own, mirrored], axis=1)
        priors, likelihoods = _log_densities(joint, points, proposal.spread, records)
        share = others / draws
        kernel = jax.lax.map(lambda pair: _log_density(*pair), (proposal, points))
        proposed = jnp.logaddexp(math.log(1 - share) + kernel, math.log(share) + priors)
        log_weights = priors + likelihoods - proposed
        return points, jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)

    return run


def _log_density(proposal: Mixture, points: Float[Array, "draws size"]) -> Float[Array, " draws"]:
    """Of a mixture at points."""
    inverse = jnp.linalg.inv(proposal.scale)
    t = (points[:, None] - proposal.centres) @ inverse.T
    logs = jax.nn.logsumexp(_student(t), axis=1) - math.log(len(proposal.centres))
    return logs - jnp.sum(jnp.log(jnp.diag(proposal.scale)))


def _student(t: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """The log density of the standard multivariate Student-t."""
    size = t.shape[-1]
    constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2)
    constant -= size / 2 * math.log(FREEDOM * math.pi)
    return constant - (FREEDOM + size) / 2 * jnp.log1p(jnp.sum(t**2, axis=-1) / FREEDOM)


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
    thetas, priors, _ = jax.vmap(functools.partial(_placed, joint))(flat(points), spreads)
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


def _placed(
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


def _mirrored(
    joint: LogJoint,
    key: PRNGKey,
    vectors: Float[Array, "draws size"],
    spread: Float[Array, "series size"],
) -> Float[Array, "series draws size"]:
    """Draws of the prior, each for itself or for its image."""
    uniform = jax.random.uniform(key, vectors.shape)
    nothing = jnp.ones(vectors.shape[1])
    low, high = jax.vmap(lambda vector: _placed(joint, vector, nothing)[2])(vectors)
    image = jnp.where(vectors - low < high - vectors, 2 * low - vectors, 2 * high - vectors)

    def one(spread: Array) -> Array:
        share = 0.5 * jnp.exp(-0.5 * (_depth(vectors, low, high) / spread) ** 2)
        return jnp.where(uniform < share, image, vectors)

    return jax.vmap(one)(spread)


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
