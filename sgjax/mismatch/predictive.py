"""What prior and posterior predict of the data, and whether the data are like it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgjax._types import PRNGKey, Theta
from sgjax.devices import jit
from sgjax.observations import Observed, log_likelihood
from sgjax.predictors import Posterior
from sgjax.simulators import Latent
from sgjax.stream import SimulationStream
from sgjax.study import Study


def posterior_predictive_p(
    posterior: Posterior, mechanism: str, key: PRNGKey, num_samples: int = 2000
) -> float:
    r"""The posterior predictive p-value of the data within one mechanism.

    $$p = P(T(y', \theta) \ge T(y, \theta) \mid y), \quad T(y, \theta) = -\log p(y \mid \theta)$$

    with $\theta$ from the posterior and $y'$ simulated with it; near 0 where the data are less
    likely than what the mechanism, fitted to them, would produce. Source: Gelman, Meng and Stern
    (1996). Raises `ValueError` where the observation has no closed-form likelihood.
    """
    study, observed = posterior.study, observed_of(posterior)
    keys = jax.random.split(key, 3)
    theta = posterior.sample(keys[0], num_samples, mechanism) | {
        name: jnp.full(num_samples, value) for name, value in posterior.known.items()
    }

    def score(theta: Theta, latent: Latent, record: Observed) -> Array:
        masked = Observed(record.ts, record.values, observed.mask & record.mask)
        return -log_likelihood(study.observation, theta, latent, masked)

    @jit
    def compare(theta: Theta, keys: Array) -> Array:
        solve_keys = jax.random.split(keys[1], num_samples)
        latent = study.mechanisms[mechanism].simulate_batch(solve_keys, theta)
        latent = _until(latent, observed.ts.size)
        replicated = study.observe(jax.random.split(keys[2], num_samples), theta, latent)
        simulated = jax.vmap(score)(theta, latent, replicated)
        actual = jax.vmap(score, in_axes=(0, 0, None))(theta, latent, observed)
        usable = jnp.isfinite(simulated) & jnp.isfinite(actual)
        return jnp.sum(usable & (simulated >= actual)) / jnp.maximum(jnp.sum(usable), 1)

    return float(compare(theta, keys))


def _until(latent: Latent, count: int) -> Latent:
    return Latent(latent.ts[:, :count], latent.values[:, :count], None)


def prior_predictive(
    study: Study, key: PRNGKey, observed: Observed, num_simulations: int = 2048
) -> dict[str, np.ndarray | float]:
    """Prior predictive bands at each time, and the share of the data outside the 99 % band.

    Gives `levels`, `quantiles` (levels, times, channels) and `outside`, to be seen before training.
    """
    stream = SimulationStream(study, key, study.simulator.mechanism_table.size)
    drawn = stream.take(num_simulations)
    values = np.where(drawn.observed.mask, drawn.observed.values, np.nan)[np.asarray(drawn.valid)]
    values = values[:, : observed.ts.size]
    levels = np.array([0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995])
    quantiles = np.nanquantile(values, levels, axis=0)
    record, mask = np.asarray(observed.values), np.asarray(observed.mask)
    outside = ((record < quantiles[0]) | (record > quantiles[-1])) & mask
    return {
        "levels": levels,
        "quantiles": quantiles,
        "examples": values[:50],
        "outside": float(outside.sum() / max(mask.sum(), 1)),
    }


def observed_of(posterior: Posterior) -> Observed:
    """The record that a posterior was computed from."""
    return Observed(posterior.inputs.ts, posterior.inputs.values, posterior.inputs.mask)
