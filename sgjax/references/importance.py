r"""Corrected posteriors: `amortised posterior -> exact one, to Monte Carlo error`, or a warning.

Where the likelihood is at hand, draws $\theta_i \sim q(\theta \mid x)$ of a trained predictor get
the weights $w_i = p(x \mid \theta_i) \, p(\theta_i) / q(\theta_i \mid x)$. What the network got
wrong is put right, or the weights tell that it cannot be; their mean is the evidence, and another
prior costs no new training (importance sampling, Kahn and Marshall, 1953; of amortised posteriors,
Dax et al., 2023).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from sgjax._types import Prior, PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.predictors import AbstractPredictive, ByMechanism, Posterior, find_task
from sgjax.priors import log_prior, log_prior_unconstrained, resolve, sample_prior
from sgjax.references.likelihood import LogJoint, condition, in_batches, log_joint, quantities
from sgjax.references.posterior import ReferencePosterior, mechanism_probabilities
from sgjax.references.weights import standard_errors, weigh
from sgjax.tasks import Estimate, parameter_sizes

_PRIOR_DRAWS = 1024


@dataclasses.dataclass(frozen=True)
class Corrected:
    """Corrected posteriors by mechanism, and the mechanisms' probabilities from their evidences."""

    posteriors: dict[str, ReferencePosterior]
    prior: dict[str, float]
    """The prior over mechanisms."""

    @property
    def mechanisms(self) -> dict[str, float]:
        """The posterior probability of each mechanism."""
        evidences = {
            name: each.log_evidence
            for name, each in self.posteriors.items()
            if each.log_evidence is not None
        }
        return mechanism_probabilities(evidences, self.prior)

    @property
    def mechanism_errors(self) -> dict[str, float]:
        r"""Monte Carlo standard errors of `mechanisms`.

        $\mathrm{var}(P_M) = P_M^2 \sum_k (\delta_{Mk} - P_k)^2 s_k^2$, $s_k$ that of log evidence.
        """
        shares = np.array(list(self.mechanisms.values()))
        errors = [each.diagnostics["log_evidence_error"] for each in self.posteriors.values()]
        slopes = np.eye(shares.size) - shares
        found = shares * np.sqrt((slopes * np.array(errors)) ** 2 @ np.ones(shares.size))
        return dict(zip(self.posteriors, map(float, found), strict=True))

    @property
    def verdict(self) -> str:
        """In words, how far to trust it, mechanism by mechanism."""
        lines = (f"{n}: {each.diagnostics['verdict']}" for n, each in self.posteriors.items())
        return "\n".join(lines)


def correct(
    posterior: Posterior,
    key: PRNGKey,
    *,
    prior: Prior | None = None,
    num_samples: int = 20_000,
    prior_share: float = 0.0,
) -> Corrected:
    """`importance_posterior` of every mechanism of the study."""
    return Corrected(
        {
            name: importance_posterior(
                posterior,
                jax.random.fold_in(key, index),
                name,
                prior=prior,
                num_samples=num_samples,
                prior_share=prior_share,
            )
            for index, name in enumerate(posterior.study.mechanisms)
        },
        posterior.study.mechanism_probabilities,
    )


def importance_posterior(
    posterior: Posterior,
    key: PRNGKey,
    mechanism: str | None = None,
    *,
    prior: Prior | None = None,
    num_samples: int = 20_000,
    prior_share: float = 0.0,
) -> ReferencePosterior:
    """The exact posterior of one mechanism as weighted draws of the amortised one.

    **Arguments:** `posterior`, what a predictor said of the record; `mechanism`, where there are
    several; `prior`, other priors by name than those of training ("what if the prior were"),
    nowhere wider than the old support; `num_samples`; `prior_share`, the share of them drawn from
    the study's prior (Hesterberg, 1995): with some, no weight passes the likelihood's peak over
    `prior_share` times the evidence, so that a mode that the network missed is found if the prior
    finds it.

    **Diagnostics:** `ess`, the effective number of draws; `pareto_k`, the shape of the weights'
    tail; `log_evidence_error` and `mcse`, Monte Carlo standard errors, the latter of `summary()`;
    `num_samples`; `verdict` in words, `trusted` whether it is a good one. A bad one is also issued
    as a `UserWarning`.

    Raises `CannotGive` where the head has no density; `ValueError` where the mechanism draws chance
    or the observation leaves no closed-form likelihood, where a prior has no density or is wider
    than the old one, or where the predictor estimates only some of the parameters.
    """
    study = posterior.study
    if not 0 <= prior_share < 1:
        raise ValueError(f"`prior_share` must be in [0, 1); got {prior_share}.")
    if mechanism is None and len(study.mechanisms) > 1:
        raise ValueError(f"Name one of the mechanisms {list(study.mechanisms)}, or use `correct`.")
    mechanism = mechanism or next(iter(study.mechanisms))
    joint = log_joint(study, mechanism, _record(posterior), posterior.known)
    change = _change_of_prior(joint, prior or {})
    from_prior = round(prior_share * num_samples)
    proposal = _Proposal(joint, *_predictive(posterior, joint, mechanism), num_samples, from_prior)
    vectors = proposal.sample(key)
    log_weight = jax.jit(lambda u: joint.batch(u) + change(u) - proposal.log_density(u))
    log_weights = in_batches(log_weight, vectors)
    log_weights[~np.isfinite(log_weights)] = -np.inf
    if np.all(log_weights == -np.inf):
        raise ValueError(
            f"None of {num_samples} draws explains the record at all; train longer, or give the "
            "prior a share of the draws (`prior_share`)."
        )
    diagnostics, weights = weigh(log_weights)
    if not diagnostics["trusted"]:
        warnings.warn(f"{mechanism}: {diagnostics['verdict']}", stacklevel=2)
    kept = np.flatnonzero(weights)
    values, weights = quantities(joint, vectors[kept]), weights[kept]
    diagnostics["mcse"] = {
        name: standard_errors(column, weights) for name, column in values.items()
    }
    evidence = diagnostics.pop("log_evidence")
    return ReferencePosterior(mechanism, "importance", values, weights, evidence, diagnostics)


def amortisation_break_even(
    training_seconds: float, prediction_seconds: float, reference_seconds: float
) -> float:
    r"""How many series it takes until training once beats sampling each, in seconds.

    The least $n$ with $T + n p \le n r$: $\lceil T / (r - p) \rceil$, infinite where $p \ge r$.
    """
    gain = reference_seconds - prediction_seconds
    return float(math.ceil(training_seconds / gain)) if gain > 0 else math.inf


@dataclasses.dataclass(frozen=True)
class _Proposal:
    """The amortised posterior, mixed with the prior, over the vectors of `LogJoint`.

    `columns` says where each number of a vector stands in the predictor's target, `size` how many
    numbers that target has.
    """

    joint: LogJoint
    predictive: AbstractPredictive
    columns: np.ndarray
    size: int
    num_samples: int
    from_prior: int

    def sample(self, key: PRNGKey) -> np.ndarray:
        """Stratified draws: `from_prior` of them are of the prior."""
        own, other = jax.random.split(key)
        number = self.num_samples - self.from_prior
        targets = jax.jit(lambda law, key: law.sample(key, number))(self.predictive, own)
        vectors = np.asarray(targets)[:, self.columns]
        if not self.from_prior:
            return vectors
        keys = jax.random.split(other, self.from_prior)
        return np.concatenate([vectors, np.asarray(jax.jit(jax.vmap(self.joint.start))(keys))])

    def log_density(self, vectors: Float[Array, "batch size"]) -> Float[Array, " batch"]:
        target = jnp.zeros((len(vectors), self.size), vectors.dtype)
        target = target.at[:, self.columns].set(vectors)
        own = jax.vmap(self.predictive.log_prob)(target)
        if not self.from_prior:
            return own
        points = self.joint.split(vectors)
        prior = jax.vmap(lambda point: log_prior_unconstrained(self.joint.prior, point))(points)
        share = self.from_prior / self.num_samples
        return jnp.logaddexp(own + np.log1p(-share), prior + np.log(share))


def _record(posterior: Posterior) -> Observed:
    """What the predictor saw, as a record of all times of the study; the others are missing."""
    inputs, ts = posterior.inputs, posterior.study.ts
    ahead = ((0, ts.size - inputs.ts.size), (0, 0))
    values, mask = jnp.pad(inputs.values, ahead), jnp.pad(inputs.mask, ahead)
    return Observed(jnp.asarray(ts, values.dtype), values, mask)


def _predictive(
    posterior: Posterior, joint: LogJoint, mechanism: str
) -> tuple[AbstractPredictive, np.ndarray, int]:
    """The predictive within a mechanism, the columns and the size of its target."""
    study = posterior.study
    task = find_task(study.task, Estimate)
    if task is None:
        raise ValueError("The study's task estimates no parameters; add an `Estimate`.")
    sizes, places, start = parameter_sizes(study.world), {}, 0
    for name in task.parameters(study.world):
        places[name] = np.arange(start, start + sizes[name])
        start += sizes[name]
    missing = [name for name in joint.shapes if name not in places]
    if missing:
        raise ValueError(
            f"The predictor does not estimate {missing}, which the likelihood needs; "
            "train it with `Estimate()` of every parameter."
        )
    block = posterior.blocks["parameters"]
    assert isinstance(block, ByMechanism)
    predictive = block.select(list(study.mechanisms).index(mechanism))
    return predictive, np.concatenate([places[name] for name in joint.shapes]), start


def _change_of_prior(joint: LogJoint, changes: Prior) -> Callable[[Array], Array]:
    """The log of new over old prior density, of vectors.

    Raises `ValueError` for a prior without density, or one that leaves the old support.
    """
    old = joint.prior
    strange = [name for name in changes if name not in old]
    if strange:
        raise ValueError(f"`prior` names {strange}; the unknown parameters are {list(old)}.")
    new = condition({name: changes.get(name, entry) for name, entry in old.items()}, joint.known)
    _check_density(joint, new)
    if not changes:
        return lambda vectors: jnp.zeros(len(vectors))
    _check_reach(joint, new)

    def one(vector: Float[Array, " size"]) -> Float[Array, ""]:
        theta = joint.theta(joint.split(vector))
        inside = _inside(new, changes, theta)
        return jnp.where(inside, log_prior(new, theta) - log_prior(old, theta), -jnp.inf)

    return jax.vmap(one)


def _inside(prior: Prior, names: Iterable[str], theta: Theta) -> Array:
    """Whether the parameters named lie in the support; numpyro's densities do not look."""
    there = []
    for name in names:
        support: Any = resolve(prior, name, theta).support
        there.append(jnp.all(support(theta[name])))
    return jnp.all(jnp.stack(there))


def _check_density(joint: LogJoint, prior: Prior) -> None:
    theta = joint.known | sample_prior(jax.random.key(0), joint.prior)
    for name in prior:
        law = resolve(prior, name, theta)
        base = law
        while isinstance(base, dist.Independent | dist.ExpandedDistribution):
            base = base.base_dist
        try:
            law.log_prob(theta[name])
            proper = not isinstance(base, dist.Delta | dist.ImproperUniform)
        except NotImplementedError:
            proper = False
        if not proper:
            raise ValueError(
                f"The prior of {name!r}, {type(base).__name__}, has no density to weigh draws "
                "with; give a proper one, such as a wide Uniform or Normal."
            )


def _check_reach(joint: LogJoint, new: Prior) -> None:
    @jax.jit
    @jax.vmap
    def reached(key: PRNGKey) -> Array:
        return _inside(joint.prior, joint.prior, joint.known | sample_prior(key, new))

    share = float(jnp.mean(reached(jax.random.split(jax.random.key(0), _PRIOR_DRAWS))))
    if share < 1:
        raise ValueError(
            f"The new prior has {1 - share:.1%} of its mass where the study's prior has none, so "
            "that no draw gets there; train with a wider prior."
        )
