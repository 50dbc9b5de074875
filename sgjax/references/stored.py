"""References that ship with the package: ready-made study -> a dict, stored as JSON beside it."""

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from sgjax.observations import Observed
from sgjax.references.grid import grid_posterior
from sgjax.references.nuts import nuts_posterior
from sgjax.references.posterior import ReferencePosterior, largest_change, mechanism_probabilities
from sgjax.simulators import replace_mechanisms
from sgjax.solvers import FixedSteps
from sgjax.study import Study


def load_reference(name: str) -> dict[str, Any]:
    """The stored reference of a ready-made study, in the form of `compute_reference`.

    Raises `ValueError` where none is stored.
    """
    file = importlib.resources.files("sgjax") / "studies" / f"{name}.json"
    if not file.is_file():
        raise ValueError(
            f"No reference is stored for {name!r}; compute one with `python -m sgjax.references`."
        )
    return json.loads(file.read_text())


def compute_reference(
    study: Study,
    observed: Observed,
    others: Mapping[str, Study] | None = None,
    *,
    points: int | None = None,
    finer_substeps: int = 16,
    num_chains: int = 32,
    num_samples: int = 1000,
) -> dict[str, Any]:
    """Grid posteriors of every mechanism, checked by NUTS and by a solver of finer steps.

    `others` holds the same study under other priors, each by a text that says which; they may
    reach where the study's own steps are unstable, so the finer ones solve them. The result has
    the entries of `describe`, and `nuts`, `finer_substeps`, `other_priors`, `method`, `versions`.
    """
    grids = _grids(study, observed, points)
    finer = _grids(_with_substeps(study, finer_substeps), observed, points)
    chains = {
        name: nuts_posterior(
            study,
            name,
            observed,
            jax.random.key(index),
            num_chains=num_chains,
            num_samples=num_samples,
            target_acceptance=0.95,
        )
        for index, name in enumerate(study.priors)
    }
    return {
        "study": study.name,
        "method": f"trapezoid rule on a grid in unconstrained space, {jnp.result_type(float)}",
        **describe(study, grids),
        "nuts": {
            name: {"estimates": chain.summary(), **chain.diagnostics}
            for name, chain in chains.items()
        },
        "finer_substeps": {
            "num_substeps": finer_substeps,
            "log_evidence": {name: grid.log_evidence for name, grid in finer.items()},
            "estimate_change": {name: largest_change(finer[name], grids[name]) for name in grids},
        },
        "other_priors": {
            text: describe(other, _grids(_with_substeps(other, finer_substeps), observed, points))
            for text, other in (others or {}).items()
        },
        "versions": {package: version(package) for package in ("jax", "diffrax", "numpyro")},
    }


def describe(study: Study, posteriors: Mapping[str, ReferencePosterior]) -> dict[str, Any]:
    """By mechanism: `log_evidence`, its posterior probability (`mechanisms`), the `estimates`
    (mean, sd, quantiles) of every quantity, and the `diagnostics` of the method."""
    evidences = {
        name: posterior.log_evidence
        for name, posterior in posteriors.items()
        if posterior.log_evidence is not None
    }
    return {
        "log_evidence": evidences,
        "mechanisms": mechanism_probabilities(evidences, study.mechanism_probabilities),
        "estimates": {name: posterior.summary() for name, posterior in posteriors.items()},
        "diagnostics": {name: posterior.diagnostics for name, posterior in posteriors.items()},
    }


def _grids(study: Study, observed: Observed, points: int | None) -> dict[str, ReferencePosterior]:
    return {name: grid_posterior(study, name, observed, points=points) for name in study.mechanisms}


def _with_substeps(study: Study, num_substeps: int) -> Study:
    """The same study, solved in other steps."""
    finer = {
        name: dataclasses.replace(simulator, solver=FixedSteps(num_substeps))  # pyright: ignore[reportCallIssue]
        for name, simulator in study.mechanisms.items()
    }
    return dataclasses.replace(study, simulator=replace_mechanisms(study.simulator, finer))
