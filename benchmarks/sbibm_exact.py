"""What a task's own likelihood gives, without a network: the floor of every score on it.

A floor above one half would say that task, solver or file differ from the published ones.
"""

import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sbibm_tasks import Draws, Task
from sgjax._types import PRNGKey
from sgjax.predictors import AbstractPredictive, ByMechanism, Gaussian, GaussianMixture, Posterior
from sgjax.references import importance_posterior, log_joint, nuts_posterior
from sgjax.references._placement import locate, log_density, prior_draws
from sgjax.study import Study

SCALES, WEIGHTS = np.array([1.0, 1.6, 3.0]), np.array([0.6, 0.3, 0.1])
"""Of the normal components of a proposal with a posterior's mean and shape, and longer tails."""

PROPOSALS = 20
"""Weighted draws for each draw that is kept."""


def exact_draws(
    task: Task, data: np.ndarray, num: int, key: PRNGKey
) -> tuple[Draws, dict[str, Any]]:
    """Draws in closed form where there is one, else by adaptive importance sampling; and how."""
    if task.exact is not None:
        seed = np.asarray(jax.random.bits(key, (4,), np.uint32))
        return task.exact(np.random.default_rng(seed), data, num), {"method": "closed form"}
    study = task.one_mode or task.study
    found = importance_posterior(
        _placed(study, task, data), jax.random.fold_in(key, 0), num_samples=PROPOSALS * num
    )
    draws = task.columns(found.resample(jax.random.fold_in(key, 1), num, replace=False))
    facts = {name: found.diagnostics[name] for name in ("ess", "pareto_k")}
    return _all_modes(task, draws, key), {"method": "importance sampling", **facts}


def nuts_draws(
    task: Task, data: np.ndarray, num: int, key: PRNGKey, *, num_chains: int = 16
) -> tuple[Draws, dict[str, Any]]:
    """Every fourth draw of many chains, with the seconds they took, compilation included."""
    study, thin = task.one_mode or task.study, 4
    start = time.perf_counter()
    with warnings.catch_warnings(record=True):  # the diagnostics hold what it says
        found = nuts_posterior(
            study,
            next(iter(study.mechanisms)),
            task.observed(data),
            key,
            num_chains=num_chains,
            num_samples=-(-thin * num // num_chains),
        )
    facts = {
        "method": "NUTS",
        "seconds": time.perf_counter() - start,
        "r_hat": max(found.diagnostics["r_hat"].values()),
        "ess": min(found.diagnostics["ess"].values()),
        "warning": found.diagnostics["warning"],
    }
    return _all_modes(task, task.columns(found.values)[::thin][:num], key), facts


def _placed(study: Study, task: Task, data: np.ndarray) -> Posterior:
    """A mixture of normals where the posterior lies, as if a predictor had said so."""
    observed = task.observed(data)
    joint = log_joint(study, next(iter(study.mechanisms)), observed)
    density = log_density(joint)
    mean, covariance = locate(density, *prior_draws(joint, density))
    factor = np.linalg.cholesky(np.linalg.inv(covariance)) / SCALES[:, None, None]
    shape = (1, SCALES.size, mean.size)  # the axis of mechanisms leads
    law: AbstractPredictive = GaussianMixture(
        jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None],
        Gaussian(
            jnp.broadcast_to(jnp.asarray(mean, jnp.float32), shape),
            jnp.asarray(factor, jnp.float32)[None],
            jnp.ones(shape, bool),
        ),
    )
    inputs = study.inputs(observed)
    return Posterior(study, inputs, {}, jnp.zeros(1), {"parameters": ByMechanism(law)})


def _all_modes(task: Task, draws: Draws, key: PRNGKey) -> Draws:
    """Draws of one mode spread over its mirror images, which are equally likely."""
    signs = np.ones(draws.shape)
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))
    signs[:, list(task.mirrored)] = random.choice([-1.0, 1.0], (len(draws), len(task.mirrored)))
    return draws * signs
