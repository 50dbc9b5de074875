r"""R0 from the first days of an epidemic, by every way there is: `predictor, series -> estimates`.

SIR or SEIR, each case reported with a probability that no one knows. The network's mean over
mechanisms and parameters, the exact one, maximum likelihood of the mechanism that AIC prefers, and
the textbook's way: the growth rate r of the counts, and $(1 + r / \sigma)(1 + r / \gamma)$ with the
true times of each epidemic (which no one has), or with times that are 30 % off.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import sgjax as sg
from sgjax._types import Theta
from sgjax.identifiability.moments import Reader
from sgjax.references import (
    Fit,
    evidence,
    fit_mechanisms,
    mechanism_posterior,
    posterior_summaries,
)
from sgjax.study import Simulation

OVERDISPERSION = 0.05

BOUNDS = {"prior": "prior's box", "wide": "wide bounds"}


def reproduction_number(theta: Theta) -> Any:
    """Of SIR and of SEIR alike."""
    return theta["beta"] / theta["gamma"]


def estimates(
    predictor: sg.Predictor, test: Simulation, key: Any, starts: int
) -> tuple[dict[str, Float[np.ndarray, " series"]], Float[np.ndarray, " series"], dict[str, Any]]:
    """R0 of each series by each method, its exact posterior sd, what the references are worth."""
    study, keys = predictor.study, jax.random.split(key, 4)
    names = list(study.mechanisms)
    exact, sd, worth = _exact(study, test, keys[:2])
    found = {
        "prior mean": np.full(len(exact), _prior_mean(study)),
        "network": _network(predictor, test, keys[2]),
        "exact posterior mean": exact,
    }
    for bounds, label in BOUNDS.items():
        fits: dict[str, Fit] = fit_mechanisms(
            study, test.observed, keys[3], bounds=bounds, starts=starts
        )
        best = np.argmin([fits[name].aic for name in names], axis=0)
        each = np.stack([np.asarray(reproduction_number(fits[name].theta)) for name in names])
        found[f"maximum likelihood, {label}"] = each[best, np.arange(best.size)]
        worth[f"converged, {label}"] = {n: float(fits[n].converged.mean()) for n in names}
    rate = growth_rates(np.asarray(study.ts, float), np.asarray(test.observed.values)[..., 0])
    latent = np.asarray(test.mechanism) == names.index("SEIR")
    for label, factor in (("true times", 1.0), ("times 30 % short", 0.7), ("30 % long", 1.3)):
        sigma = np.where(latent, np.asarray(test.theta["sigma"], float), np.inf)
        gamma = np.asarray(test.theta["gamma"], float)
        found[f"growth rate, {label}"] = (1 + rate * factor / sigma) * (1 + rate * factor / gamma)
    return found, sd, worth


def growth_rates(
    ts: Float[np.ndarray, " times"], counts: Float[np.ndarray, "series times"]
) -> Float[np.ndarray, " series"]:
    r"""The rates r of $\ln \mu_t = a + r t$ for negative-binomial counts: maximum likelihood."""
    time = ts - ts.mean()
    level, rate = np.log(counts.mean(axis=1) + 0.5), np.zeros(len(counts))
    for _ in range(50):
        logs = np.clip(level[:, None] + rate[:, None] * time, -20.0, 20.0)
        mean = np.exp(logs)
        weight = mean / (1 + OVERDISPERSION * mean)
        # Half a step: whole ones may swing for ever where counts fall after their peak.
        aim = logs + 0.5 * (counts - mean) / mean
        total, centre = weight.sum(axis=1), (weight * time).sum(axis=1)
        spread = (weight * time**2).sum(axis=1) - centre**2 / total
        cross = (weight * time * aim).sum(axis=1) - centre * (weight * aim).sum(axis=1) / total
        rate = cross / spread
        level = ((weight * aim).sum(axis=1) - rate * centre) / total
    return rate


def _exact(
    study: sg.Study, test: Simulation, keys: Any
) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"], dict[str, Any]]:
    """The posterior mean and sd of R0 over both mechanisms."""
    evidences = {m: evidence(study, m, test.observed, keys[0]) for m in study.mechanisms}
    summaries = {
        m: posterior_summaries(study, m, test.observed, keys[1], {"R0": reproduction_number})
        for m in study.mechanisms
    }
    shares = mechanism_posterior(evidences)
    trusted = np.all([each.trusted for each in (*evidences.values(), *summaries.values())], axis=0)
    over = lambda values: np.sum([shares[m] * values(summaries[m]) for m in shares], axis=0)
    mean = over(lambda each: each.mean["R0"])
    sd = np.sqrt(over(lambda each: each.sd["R0"] ** 2 + (each.mean["R0"] - mean) ** 2))
    error = np.sqrt(np.mean(over(lambda each: each.error["R0"] ** 2)))
    return mean, sd, {"trusted": float(trusted.mean()), "error": float(error)}


def _network(predictor: sg.Predictor, test: Simulation, key: Any) -> Float[np.ndarray, " series"]:
    """The network's mean of R0: over its mechanisms, by the probabilities it gives them."""
    probability = jax.jit(jax.vmap(lambda inputs: predictor.network(inputs)[1]["mechanism"].mean()))
    shares = np.asarray(probability(test.example.inputs), np.float64)
    means = []
    for mechanism in predictor.study.mechanisms:
        reader = Reader(predictor, mechanism, "parameters", num_draws=512)
        moments = reader(test.example.inputs, {}, key)
        means.append(moments.mean[:, reader.names.index("R0")])
    return np.sum(shares * np.stack(means, axis=1), axis=1)


def _prior_mean(study: sg.Study) -> float:
    """Of beta / gamma, which are independent: E beta E 1/gamma, for a uniform gamma."""
    prior: Any = study.priors["SIR"]
    low, high = float(prior["gamma"].low), float(prior["gamma"].high)
    return float(prior["beta"].mean) * np.log(high / low) / (high - low)
