"""How close does `sgjax train lynx_hare` come to NUTS with the same simulator and likelihood?

The pelts of lynx and hare, 1900 to 1920: 8 unknown numbers. For each seed: train, compare means and
sds of the answer with those of NUTS, as the network gives them and after correction by importance
weights, and judge the 90 % intervals on fresh simulations. The prior is the trivial baseline. NUTS
is run once and kept: half an hour. `python -m benchmarks.lynx_hare [--quick] [--budget demo|full]`
"""

import dataclasses
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import circumstances, finish, keep, kept
from sgjax.predictors import as_observed, summarise
from sgjax.priors import sample_prior
from sgjax.references import amortisation_break_even, importance_posterior, nuts_posterior
from sgjax.runs import Session, Source

Summary = Mapping[str, Mapping[str, float]]
MECHANISM = "LotkaVolterra"


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One seed and a toy budget, under a minute; its numbers mean nothing."""
    budget: Literal["demo", "full"] = "full"
    """That of the study's presets."""
    seeds: int = 2
    """Independent networks."""
    proposals: int = 200_000
    """Weighted draws of the correction."""
    num_samples: int = 2000
    """Draws of each of 16 chains of NUTS."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Runs NUTS where it is not kept, then all seeds."""
    if options.quick:
        options = dataclasses.replace(options, seeds=1, proposals=8192, budget="demo", store=False)
    name, exact = f"lynx_hare_{options.budget}", kept("lynx_hare_nuts")
    if not exact:
        exact = _nuts(options)
        keep("lynx_hare_nuts", exact)
    rows = []
    for seed in range(options.seeds):  # kept after each, so that a run cut short has told something
        rows.append(_one(seed, options, exact["estimates"]))
        result = {"budget": options.budget, "nuts": exact, "prior": _prior(exact["estimates"]),
                  "runs": rows, "median": _median(rows)}  # fmt: skip
        _show(result)
        finish(name, result, store=options.store)


def _nuts(options: Options) -> dict[str, Any]:
    source = Source.find("lynx_hare")
    assert source.ready is not None
    observed = as_observed(source.study, source.ready.data.values)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True):  # what it warns of is in the diagnostics
        found = nuts_posterior(
            source.study,
            MECHANISM,
            observed,
            jax.random.key(0),
            num_chains=16,
            num_samples=options.num_samples,
        )
    seconds = time.perf_counter() - start
    return {
        **circumstances(),
        "seconds": seconds,
        "estimates": found.summary(),
        "diagnostics": found.diagnostics,
    }


def _one(seed: int, options: Options, exact: Summary) -> dict[str, Any]:
    source = Source.find("lynx_hare")
    assert source.ready is not None
    preset = source.ready.demo if options.budget == "demo" else source.ready.full
    if options.quick:
        preset = dataclasses.replace(preset, num_steps=40, batch_size=64, width=32, depth=1)
    with tempfile.TemporaryDirectory() as folder:
        session = Session.start(source, preset, seed, Path(folder) / "run")
        start = time.perf_counter()
        predictor = session.train()
        wall = time.perf_counter() - start
        totals = session.totals
    posterior = predictor(as_observed(session.study, source.ready.data.values))
    estimates = posterior.estimates(num_samples=100_000)[MECHANISM]
    start = time.perf_counter()
    with warnings.catch_warnings(record=True):
        corrected = importance_posterior(
            posterior, jax.random.key(seed), num_samples=options.proposals, prior_share=0.05
        )
    seconds = time.perf_counter() - start
    calibration = session.calibrate(predictor, 1024 if options.quick else 10_000).summary()
    facts = ("ess", "pareto_k", "trusted", "log_evidence_error")
    return {
        **circumstances(),
        "seed": seed,
        **dataclasses.asdict(preset),
        "wall_seconds": wall,
        **totals,
        "errors": _errors(estimates, exact),
        "corrected_errors": _errors(corrected.summary(), exact),
        "correction": {name: corrected.diagnostics[name] for name in facts} | {"seconds": seconds},
        "coverage_90": {name: row["coverage_90"] for name, row in calibration.items()},
    }


def _errors(found: Summary, exact: Summary) -> dict[str, dict[str, float]]:
    """By parameter: the mean's error in the reference's sds, and the sd's relative error."""
    return {
        name: {
            "mean_in_sd": abs(found[name]["mean"] - true["mean"]) / true["sd"],
            "sd_relative": abs(found[name]["sd"] / true["sd"] - 1),
        }
        for name, true in exact.items()
    }


def _prior(exact: Summary) -> dict[str, dict[str, float]]:
    """The errors of answering with the prior."""
    prior = Source.find("lynx_hare").study.priors[MECHANISM]
    keys = jax.random.split(jax.random.key(0), 100_000)
    return _errors(summarise(jax.vmap(lambda key: sample_prior(key, prior))(keys)), exact)


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"wall_seconds": statistics.median(row["wall_seconds"] for row in rows)}
    for kind in ("errors", "corrected_errors"):
        made[kind] = {
            name: {
                of: statistics.median(row[kind][name][of] for row in rows)
                for of in ("mean_in_sd", "sd_relative")
            }
            for name in rows[0][kind]
        }
        for of in ("mean_in_sd", "sd_relative"):
            made[f"{kind}_worst_{of}"] = max(error[of] for error in made[kind].values())
    return made


def _show(result: dict[str, Any]) -> None:
    median, nuts = result["median"], result["nuts"]
    table = Table(title=f"Distance from NUTS, median of {len(result['runs'])} seeds")
    for column in ("parameter", "mean, in sds", "sd, relative", "corrected mean", "corrected sd"):
        table.add_column(column)
    for name in median["errors"]:
        rows = (median[kind][name] for kind in ("errors", "corrected_errors"))
        table.add_row(name, *(f"{row[of]:.3f}" for row in rows for of in row))
    worst = max(row["mean_in_sd"] for row in result["prior"].values())
    table.add_row("prior baseline, worst", f"{worst:.1f}", "", "", "")
    console = Console()
    console.print(table)
    diagnostics = nuts["diagnostics"]
    console.print(
        f"NUTS: {nuts['seconds']:.0f} s, R-hat at most {max(diagnostics['r_hat'].values()):.4f}, "
        f"effective draws at least {min(diagnostics['ess'].values()):,.0f}"
    )
    for row in result["runs"]:
        ess, k = row["correction"]["ess"], row["correction"]["pareto_k"]
        console.print(
            f"seed {row['seed']}: trained for {row['wall_seconds']:.0f} s with compilation; "
            f"of the correction {ess:,.0f} effective draws, Pareto k {k:.2f}"
        )
    series = amortisation_break_even(median["wall_seconds"], 0.0, nuts["seconds"])
    console.print(f"Training once takes less time than NUTS on {series:,.0f} series or more.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
