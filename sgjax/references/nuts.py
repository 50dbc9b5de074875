"""Posteriors by NUTS, any number of unknowns: `(study, mechanism, record, key) -> posterior`.

It shares only the log joint density with the grid, so that each checks the other.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.references._placement import log_density, prior_draws
from sgjax.references.likelihood import LogJoint, log_joint, quantities
from sgjax.references.posterior import LEVELS, ReferencePosterior
from sgjax.study import Study

MAX_R_HAT = 1.01

MIN_ESS = 400
"""Fewer effective draws make R-hat and the errors themselves unreliable (Vehtari et al., 2021)."""


def nuts_posterior(
    study: Study,
    mechanism: str,
    observed: Observed,
    key: PRNGKey,
    *,
    known: Theta | None = None,
    num_chains: int = 16,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    target_acceptance: float = 0.9,
) -> ReferencePosterior:
    """Draws of the posterior by the No-U-Turn sampler (Hoffman and Gelman, 2014).

    The chains run side by side in one solve, so that many short ones cost little more than a few.
    They start from draws of the prior, of those that explain the record best.

    **Diagnostics:** by quantity `r_hat` (split), `ess` and `mcse`, the Monte Carlo standard errors
    of `summary()`; `divergences`; `num_chains`; `num_samples` per chain; `warning`, a text where an
    R-hat reaches 1.01, an effective size stays below 400 or a trajectory diverged, else `None`. The
    text is also issued as a `UserWarning`.

    Raises `ValueError` for fewer than two chains, without which R-hat says nothing.
    """
    if num_chains < 2:
        raise ValueError(f"R-hat needs at least 2 chains; got num_chains = {num_chains}.")
    joint = log_joint(study, mechanism, observed, known)
    mcmc = MCMC(
        NUTS(
            potential_fn=_potential(joint),
            target_accept_prob=target_acceptance,
            dense_mass=True,
        ),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    start_key, run_key = jax.random.split(key)
    starts = _starts(joint, start_key, num_chains)
    mcmc.run(run_key, init_params=starts, extra_fields=("diverging",))
    draws = mcmc.get_samples()
    values = quantities(joint, draws)
    chains = {name: numbers.reshape(num_chains, num_samples) for name, numbers in values.items()}
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still give NaN
        diagnostics = {
            "r_hat": {name: float(split_gelman_rubin(draws)) for name, draws in chains.items()},
            "ess": {name: float(effective_sample_size(draws)) for name, draws in chains.items()},
            "mcse": {name: _standard_errors(draws) for name, draws in chains.items()},
            "divergences": int(np.sum(mcmc.get_extra_fields()["diverging"])),
            "num_chains": num_chains,
            "num_samples": num_samples,
        }
    diagnostics["warning"] = _warning(diagnostics)
    if diagnostics["warning"]:
        warnings.warn(diagnostics["warning"], stacklevel=2)
    weights = np.full(num_chains * num_samples, 1 / (num_chains * num_samples))
    return ReferencePosterior(mechanism, "nuts", values, weights, None, diagnostics)


def _potential(joint: LogJoint) -> Callable[[Float[Array, " size"]], Float[Array, ""]]:
    """Minus the log joint density of one vector, all chains in one solve.

    numpyro maps over the chains; mapping the solver would cost 5 times more (see `sgjax.solvers`),
    so that the rule for a batch of chains calls `batch` instead.
    """

    @jax.custom_batching.custom_vmap
    def value_and_slope(vector: Array) -> tuple[Array, Array]:
        values, slopes = batch_of_them(vector[None])
        return values[0], slopes[0]

    def batch_of_them(vectors: Array) -> tuple[Array, Array]:
        values, pull_back = jax.vjp(lambda points: -joint.batch(points), vectors)
        return values, pull_back(jnp.ones_like(values))[0]

    @value_and_slope.def_vmap
    def _(size: int, batched: list[bool], vectors: Array):
        del size, batched
        return batch_of_them(vectors), (True, True)

    @jax.custom_vjp
    def potential(vector: Array) -> Array:
        return value_and_slope(vector)[0]

    potential.defvjp(value_and_slope, lambda slope, cotangent: (cotangent * slope,))
    return potential


def _starts(joint: LogJoint, key: PRNGKey, num_chains: int) -> Float[Array, "chains size"]:
    vectors, likelihood = prior_draws(joint, log_density(joint))
    # From the best tenth: spread out, yet none so far off that the density is flat.
    best = np.argsort(-likelihood)[: max(num_chains, len(vectors) // 10)]
    chosen = jax.random.choice(key, best, (num_chains,), replace=False)
    return jnp.asarray(vectors[np.asarray(chosen)])


def _warning(diagnostics: dict) -> str | None:
    high = {n: round(r, 3) for n, r in diagnostics["r_hat"].items() if not r < MAX_R_HAT}
    if high:
        return f"R-hat of {high} is not below {MAX_R_HAT}; raise `num_warmup` and `num_samples`."
    few = {n: round(ess) for n, ess in diagnostics["ess"].items() if not ess >= MIN_ESS}
    if few:
        return f"Effective draws of {few} are below {MIN_ESS}; raise `num_samples`."
    if diagnostics["divergences"]:
        return (
            f"{diagnostics['divergences']} trajectories diverged; raise `target_acceptance`, and "
            "compare with a grid where there are few unknowns."
        )
    return None


def _standard_errors(draws: Float[np.ndarray, "chains samples"]) -> dict[str, float]:
    """Monte Carlo standard errors of mean, sd and quantiles (Vehtari et al., 2021).

    NaN where the chains stand still.
    """
    squares = (draws - draws.mean()) ** 2
    errors = {
        "mean": draws.std() / np.sqrt(effective_sample_size(draws)),
        "sd": squares.std() / np.sqrt(effective_sample_size(squares)) / (2 * draws.std()),
    }
    for label, level in LEVELS.items():
        below = (draws < np.quantile(draws, level)).astype(float)
        spread = np.sqrt(level * (1 - level) / effective_sample_size(below))
        ends = np.clip([level - spread, level + spread], 0, 1)
        ordered = np.quantile(draws, np.nan_to_num(ends))
        errors[label] = (ordered[1] - ordered[0]) / 2 if np.isfinite(spread) else np.nan
    return {label: float(error) for label, error in errors.items()}
