"""All that the commands say of one series, as one record: `predictor, data -> Analysis`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from sgjax._types import PRNGKey, Theta
from sgjax.attribution import (
    AttributedPosterior,
    Neighbours,
    SimulationIndex,
    attribute_posterior,
    choose_k,
)
from sgjax.attribution.clouds import PER_REGRESSOR, Method
from sgjax.attribution.progress import Telling
from sgjax.mismatch import Mismatch, check_mismatch, posterior_predictive_p, prior_predictive
from sgjax.observations import Observed
from sgjax.predictors import CannotGive, Posterior, Predictor, find_task, summarise
from sgjax.priors import fold_name
from sgjax.stream import SimulationStream
from sgjax.study import Study
from sgjax.tasks import Estimate

NUM_DRAWS = 20_000

KEPT = 2**20
"""How many simulations are kept as an index; more are drawn again for each search."""

LARGEST_CLOUD, CLOUDS = 1024, 128
"""Neighbours tried at most for an attributed posterior, and held-out simulations tried on."""

Alternatives = Mapping[str, Mapping[str, dist.Distribution]]
"""By parameter, other priors by the words that describe them."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What a trained predictor says of one real series.

    `result` is what `result.json` holds; the other fields are what pictures are drawn from.
    """

    study: Study
    observed: Observed
    posterior: Posterior
    draws: dict[str, Theta]
    """By mechanism, joint posterior draws of parameters and derived quantities."""
    mismatch: Mismatch
    attributed: AttributedPosterior | None
    """The nearest simulations as a posterior; `None` where too few were searched."""
    prior_predictive: dict[str, Any]
    result: dict[str, Any]

    @property
    def neighbours(self) -> Neighbours:
        """The nearest simulations."""
        return self.mismatch.neighbours


def analyse(
    predictor: Predictor,
    stream: SimulationStream,
    posterior: Posterior,
    key: PRNGKey,
    *,
    alternatives: Alternatives | None = None,
    k: int = 20,
    num_simulations: int = 200_000,
    progress: Telling = False,
) -> Analysis:
    """Estimates, mechanisms, nearest simulations and mismatch of one series.

    `alternatives` are other priors under which the mechanisms' probabilities are also given, by
    reweighting; `num_simulations` are searched for the `k` nearest, and for as many more as the
    attributed posterior is best made of.
    """
    study = predictor.study
    observed = Observed(posterior.inputs.ts, posterior.inputs.values, posterior.inputs.mask)
    before = prior_predictive(study, fold_name(key, "prior predictive"), observed)
    draws = _draws(posterior, fold_name(key, "draws"))
    num_simulations = min(num_simulations, stream.num_simulations or num_simulations)
    searched = stream
    if num_simulations <= KEPT:
        searched = SimulationIndex.build(predictor, stream, num_simulations, progress=progress)
    mismatch = check_mismatch(predictor, searched, posterior, k=k, num_simulations=num_simulations)
    attributed = _attributed(predictor, searched, posterior, num_simulations)
    result = {
        "study": study.name,
        "data": _data(study, observed),
        "prior_predictive": describe_prior_predictive(before),
        "estimates": {name: summarise(values) for name, values in draws.items()},
        "mechanisms": posterior.mechanisms,
        "mechanisms_prior": study.mechanism_probabilities,
        "among": "among these mechanisms only",
        "model_averaged": _averaged(posterior, draws),
        "sensitivity": sensitivity(posterior, alternatives or {}) if draws else [],
        "neighbours": mismatch.neighbours.table(),
        "attributed": None if attributed is None else describe_attributed(attributed),
        "mismatch": {
            "p_value": mismatch.p_value,
            "distance": mismatch.distance,
            "verdict": mismatch.verdict,
            "searched": num_simulations,
            "held_out": int(mismatch.held_out_distances.size),
            "posterior_predictive_p": _predictive_p(posterior, draws, key),
        },
    }
    if "forecast" in posterior.blocks:
        levels = (0.05, 0.25, 0.5, 0.75, 0.95)
        ahead = np.asarray(posterior.forecast(levels))
        result["forecast"] = {"levels": levels, "quantiles": ahead.tolist()}
    if "latent" in posterior.blocks:
        levels = (0.05, 0.5, 0.95)
        result["latent"] = {
            name: dict(zip(("q05", "q50", "q95"), np.asarray(values).tolist(), strict=True))
            for name, values in posterior.latent(levels).items()
        }
    return Analysis(study, observed, posterior, draws, mismatch, attributed, before, result)


def _attributed(
    predictor: Predictor,
    searched: SimulationStream | SimulationIndex,
    posterior: Posterior,
    num_simulations: int,
) -> AttributedPosterior | None:
    """The nearest simulations as a posterior, of as many as held-out simulations are best told by.

    Moved along a local line where the predictor estimates parameters and there are enough.
    """
    specs, smallest = predictor.study.specs, 10
    lines = 0 if "parameters" not in specs else int(specs["parameters"].present.sum(axis=1).max())
    method: Method = "kernel"
    if 0 < 8 * PER_REGRESSOR * lines <= num_simulations:
        method, smallest = "regression", PER_REGRESSOR * lines
    largest = min(LARGEST_CLOUD, num_simulations // 8)
    if largest < 2 * smallest:
        return None
    grid = np.unique(np.geomspace(smallest, largest, 8).round().astype(int)).tolist()
    choice = choose_k(
        predictor, searched, num_simulations, method=method, grid=grid, num_held_out=CLOUDS
    )
    return attribute_posterior(
        predictor, searched, posterior, choice.k, num_simulations, method=method
    )


def describe_attributed(attributed: AttributedPosterior) -> dict[str, Any]:
    """An attributed posterior in JSON."""
    return {
        "method": attributed.method,
        "k": attributed.k,
        "effective_k": attributed.effective_k,
        "mechanisms": attributed.mechanisms,
        "mechanisms_error": attributed.mechanisms_error,
        "estimates": attributed.summary(),
        "notes": list(attributed.notes),
    }


def describe_prior_predictive(before: Mapping[str, Any]) -> dict[str, Any]:
    """The prior predictive check in JSON and in words."""
    share = before["outside"]
    verdict = (
        "Every value lies inside the 99 % band of the prior predictive."
        if share == 0
        else f"{share:.0%} of the values lie outside the 99 % band of the prior predictive: "
        "the prior or the mechanism does not expect such data."
    )
    return {
        "outside_share": share,
        "verdict": verdict,
        "levels": np.asarray(before["levels"]).tolist(),
        "quantiles": np.asarray(before["quantiles"]).tolist(),
    }


def sensitivity(posterior: Posterior, alternatives: Alternatives) -> list[dict[str, Any]]:
    """The mechanisms' probabilities under other priors, one row each."""
    return [
        {"prior": words, **posterior.prior_sensitivity(name, prior)}
        for name, priors in alternatives.items()
        for words, prior in priors.items()
    ]


def _data(study: Study, observed: Observed) -> dict[str, Any]:
    values = np.where(observed.mask, observed.values, np.nan)
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in np.asarray(values)]
    return {
        "ts": np.asarray(observed.ts, np.float64).tolist(),
        "channels": list(study.channels),
        "values": rows,
    }


def _draws(posterior: Posterior, key: PRNGKey) -> dict[str, Theta]:
    if find_task(posterior.study.task, Estimate) is None:
        return {}
    try:
        return {
            name: jax.device_get(posterior.sample(fold_name(key, name), NUM_DRAWS, name))
            for name in posterior.study.mechanisms
        }
    except CannotGive:  # a head without a density: its quantiles are all there is
        return {}


def _averaged(posterior: Posterior, draws: Mapping[str, Theta]) -> dict[str, dict[str, float]]:
    """Estimates averaged over mechanisms, for quantities that all of them have."""
    if len(draws) < 2:
        return {}
    common = set.intersection(*(set(theta) for theta in draws.values()))
    counts = {name: round(share * NUM_DRAWS) for name, share in posterior.mechanisms.items()}
    names: Sequence[str] = [name for name in next(iter(draws.values())) if name in common]
    return summarise(
        {
            name: np.concatenate([draws[mechanism][name][:n] for mechanism, n in counts.items()])
            for name in names
        }
    )


def _predictive_p(
    posterior: Posterior, draws: Mapping[str, Theta], key: PRNGKey
) -> dict[str, float | None]:
    key = fold_name(key, "posterior predictive")
    values: dict[str, float | None] = {}
    for mechanism in draws:
        try:
            p = posterior_predictive_p(posterior, mechanism, fold_name(key, mechanism))
        except ValueError:  # no closed-form likelihood
            p = None
        values[mechanism] = p
    return values
