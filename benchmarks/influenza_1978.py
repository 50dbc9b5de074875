"""How close do `sgjax demo` and `sgjax train influenza_1978` come to the exact posterior?

For each seed: train, estimate from the real series, compare with the reference that is stored with
the study (a grid), and judge the 90 % intervals on fresh simulations. The prior is the trivial
baseline. `python -m benchmarks.influenza_1978 [--quick] [--budget demo|full] [--seeds 5]`
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import finish
from sgjax.predictors import as_observed, natural, summarise
from sgjax.references import load_reference
from sgjax.runs import Session, Source
from sgjax.stream import SimulationStream

NAMES = ("beta", "gamma", "R0", "infectious_period")


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One seed and a toy budget, under a minute; its numbers mean nothing."""
    budget: Literal["demo", "full"] = "demo"
    """As `sgjax demo` or as `sgjax train influenza_1978`."""
    seeds: int = 5
    """Independent repeats."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Runs all seeds and prints the table."""
    reference = load_reference("influenza_1978")
    seeds = range(1 if options.quick else options.seeds)
    prior, rows = _prior_baseline(reference), []
    name, store = f"influenza_1978_{options.budget}", options.store and not options.quick
    for seed in seeds:  # kept after each, so that a run cut short has told what it found
        rows.append(_one(seed, options, reference))
        result = {
            "budget": options.budget,
            "runs": rows,
            "median": _median(rows),
            "prior": prior,
        }
        _show(result)
        finish(name, result, store=store)


def _one(seed: int, options: Options, reference: dict[str, Any]) -> dict[str, Any]:
    source = Source.find("influenza_1978")
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
    estimates = posterior.estimates(num_samples=100_000)
    calibration = session.calibrate(predictor, 1024 if options.quick else 10_000).summary()
    return {
        "seed": seed,
        "wall_seconds": wall,
        **totals,
        "mechanisms": posterior.mechanisms,
        "estimates": estimates,
        "errors": _errors(estimates, reference),
        "mechanism_error": max(
            abs(share - reference["mechanisms"][name])
            for name, share in posterior.mechanisms.items()
        ),
        "coverage_90": {name: row["coverage_90"] for name, row in calibration.items()},
        "coverage_90_by_sd_tercile": {
            name: row["coverage_90_by_sd_tercile"] for name, row in calibration.items()
        },
    }


def _errors(estimates: dict, reference: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By mechanism and quantity: the mean's error in reference sds, and the sd's relative error."""
    errors = {}
    for mechanism, exact in reference["estimates"].items():
        for name in NAMES:
            found, true = estimates[mechanism][name], exact[name]
            errors[f"{mechanism} {name}"] = {
                "mean_in_sd": abs(found["mean"] - true["mean"]) / true["sd"],
                "sd_relative": abs(found["sd"] / true["sd"] - 1),
            }
    return errors


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = rows[0]["errors"]
    errors = {
        key: {
            kind: statistics.median(row["errors"][key][kind] for row in rows)
            for kind in ("mean_in_sd", "sd_relative")
        }
        for key in keys
    }
    return {
        "errors": errors,
        "worst_mean_in_sd": max(error["mean_in_sd"] for error in errors.values()),
        "worst_sd_relative": max(error["sd_relative"] for error in errors.values()),
        "mechanism_error": statistics.median(row["mechanism_error"] for row in rows),
        "wall_seconds": statistics.median(row["wall_seconds"] for row in rows),
        "simulations_per_second": statistics.median(row["simulations_per_second"] for row in rows),
    }


def _prior_baseline(reference: dict[str, Any]) -> dict[str, float]:
    """The errors of answering with the prior (its median, since the moments are infinite)."""
    study = Source.find("influenza_1978").study
    import jax

    drawn = SimulationStream(study, jax.random.key(0), 2).take(4096)
    worst = 0.0
    for index, (mechanism, exact) in enumerate(reference["estimates"].items()):
        rows = np.asarray(drawn.mechanism) == index
        values = drawn.example.targets["parameters"].values[rows]
        draws = jax.vmap(lambda row, m=mechanism: natural(study, m, row, {}))(values)
        table = summarise(draws)
        for name in NAMES:
            gap = abs(table[name]["q50"] - exact[name]["mean"]) / exact[name]["sd"]
            worst = max(worst, gap)
    return {
        "worst_median_in_sd": worst,
        "mechanism_error": abs(0.5 - reference["mechanisms"]["SIR"]),
    }


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"Distance to the exact posterior, median of {len(result['runs'])} seeds")
    for column in ("quantity", "mean, in reference sds", "sd, relative"):
        table.add_column(column)
    for name, row in result["median"]["errors"].items():
        table.add_row(name, f"{row['mean_in_sd']:.3f}", f"{row['sd_relative']:.3f}")
    table.add_row("P(mechanism), absolute", f"{result['median']['mechanism_error']:.3f}", "")
    table.add_row("prior baseline, worst", f"{result['prior']['worst_median_in_sd']:.1f}", "")
    console = Console()
    console.print(table)
    console.print(f"{result['median']['wall_seconds']:.0f} s a run, compilation included")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
