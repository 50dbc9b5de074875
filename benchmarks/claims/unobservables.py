"""What no one sees: does the network find it where the data hold it, and say so where they do not?

Logistic growth, of which the capacity K is asked, often long before growth slows. RMSE of ln K by
how far growth had come (tau, the record's length over the time of steepest growth) and by the exact
posterior sd, which the data decide: prior mean, network, exact posterior mean, and maximum
likelihood, unrestricted and in the prior's box, which shows what the prior alone is worth. Beside
it the shares of series whose profile likelihood leaves K open.

Then controls. Reported cases of SIR tell nothing of the reporting rate where it is drawn
independently of the reported population: its score must be 0. In a twin whose priors leak it must
not be, and of the reported population and of beta - gamma the data tell nearly all. Last, R0 from
the first days of an epidemic, and the number exposed, whom no one counts.

`python -m benchmarks.claims.unobservables [--quick] [--picture FILE]`
"""

import dataclasses
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import sgjax as sg
from benchmarks.claims.early import estimates, reproduction_number
from benchmarks.claims.exact_growth import posterior_moments
from benchmarks.claims.unobservables_shown import FAR, TARGETS, WORST, show_growth, show_scores
from benchmarks.claims.unobservables_shown import picture as picture
from benchmarks.claims.unobservables_shown import section as section
from benchmarks.claims.worlds import early_outbreak, exposed, growth, inflection, reported
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax.diagnostics import rank_pits, uniformity
from sgjax.diagnostics.calibration import NUM_DRAWS
from sgjax.identifiability.moments import Reader
from sgjax.references import Fit, fit, profile_likelihood
from sgjax.study import Simulation

NAME = "claim_unobservables"

TAUS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.75, np.inf)
STRATA = 5
"""Of equal counts by exact posterior sd."""

FIRST_TEST = 2**20
"""Test series are held-out simulations from this number on."""

UNRESTRICTED = {
    "growth_rate": (0.01, 5.0),
    "log_capacity": (0.0, float(np.log(1e9))),
    "log_initial": (float(np.log(0.1)), float(np.log(200.0))),
}

EARLY = (14, 21, 28)
"""Days of an epidemic from which R0 is asked."""

ARMS = ("growth", "control", "leaky", *(f"R0 from {days} days" for days in EARLY), "exposed")


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Growth alone unless told otherwise, few series, little training; half a minute."""
    arms: tuple[str, ...] = ()
    """Which worlds, all where none is named; each is kept as soon as it is done."""
    series: int = 40_000
    """Test series of growth: some 2,000 in the stratum of tau from 0.5 to 0.75."""
    profiled: int = 400
    """Of them, the first ones, whose profile likelihood is computed."""
    tests: int = 20_000
    """Test series of the other worlds."""
    references: int = 2_000
    """Test series of R0 for which the exact posterior and maximum likelihood are computed."""
    num_steps: int = 20_000
    """Updates of each network."""
    batch: int = 512
    """Simulations of an update."""
    width: int = 256
    """Of the network."""
    depth: int = 3
    """Of the network."""
    head: str = "gaussian_mixture"
    """Its density."""
    starts: int = 8
    """Starts of each fit."""
    seed: int = 0
    """Of simulations and weights."""
    picture: Path | None = None
    """Where to draw it."""


def main(options: Options) -> dict[str, Any]:
    """Runs every arm, prints its table and the line."""
    if options.quick:
        options = dataclasses.replace(
            options, arms=options.arms or ("growth",), series=256, profiled=0, tests=2_000,
            references=64, num_steps=100, width=64, depth=1, head="gaussian", starts=2,
        )  # fmt: skip
    rows: dict[str, Any] = {}
    unknown = sorted(set(options.arms) - set(ARMS))
    if unknown:
        raise SystemExit(f"There is no arm {unknown}; choose from {list(ARMS)}.")
    for arm in options.arms or ARMS:
        start = time.perf_counter()
        rows[arm] = capacity(options) if arm == "growth" else scored(arm, options)
        rows[arm] |= {
            "seconds": time.perf_counter() - start, "commit": circumstances()["commit"]
        }  # fmt: skip
        if not options.quick:  # arms of other calls stay beside it
            whole = kept(NAME).get("arms", {}) | {arm: rows[arm]}
            result = {"options": _plain(options), "arms": whole, "targets": TARGETS}
            keep(NAME, {"benchmark": NAME, **circumstances(), **result, "met": met(whole)})
        (show_growth if arm == "growth" else show_scores)(arm, rows[arm])
    arms = rows if options.quick else kept(NAME)["arms"] | rows
    result = {"options": _plain(options), "arms": arms, "targets": TARGETS, "met": met(arms)}
    if options.picture is not None:
        picture(result).savefig(options.picture, dpi=110)
    finish(NAME, result, store=not options.quick)
    return result


def _plain(options: Options) -> dict[str, Any]:
    return {n: str(v) if isinstance(v, Path) else v for n, v in vars(options).items()}


def trained(
    study: sg.Study, options: Options, heads: dict[str, str]
) -> tuple[sg.Predictor, sg.SimulationStream]:
    """A network of densities, trained by the log score, and its stream."""
    keys = jax.random.split(jax.random.key(options.seed))
    stream = sg.SimulationStream(study, keys[0], options.batch)
    blank = sg.predictors.for_study(
        study, keys[1], heads=heads, width=options.width, depth=options.depth
    )
    return sg.train(blank, stream, options.num_steps, interval=min(500, options.num_steps)), stream


def capacity(options: Options) -> dict[str, Any]:
    """Everything of logistic growth."""
    study, keys = growth(), jax.random.split(jax.random.key(options.seed + 1), 4)
    mechanism = next(iter(study.mechanisms))
    predictor, stream = trained(study, options, {"parameters": options.head})
    test = stream.held_out().take(options.series, FIRST_TEST)
    truth = np.asarray(test.theta["log_capacity"], float)
    prior: Any = study.priors[mechanism]["log_capacity"]
    reader = Reader(predictor, mechanism, "parameters", num_draws=512)
    moments = reader(test.example.inputs, {}, keys[0])
    column = reader.names.index("log_capacity")
    exact, sd = posterior_moments(np.asarray(test.observed.values)[..., 0])
    fits = {
        "maximum likelihood, unrestricted": UNRESTRICTED,
        "maximum likelihood, prior's box": "prior",
    }
    fitted: dict[str, Fit] = {
        label: fit(study, mechanism, test.observed, keys[1], bounds=bounds, starts=options.starts)
        for label, bounds in fits.items()
    }
    errors = {
        "prior mean": float(prior.mean) - truth,
        "network": moments.mean[:, column] - truth,
        "exact posterior mean": exact - truth,
    } | {label: found.theta["log_capacity"] - truth for label, found in fitted.items()}
    tau = (study.ts[-1] - study.ts[0]) / inflection(test.theta)
    by_sd = np.array_split(np.argsort(sd, kind="stable"), STRATA)
    by_tau = [np.flatnonzero((tau >= a) & (tau < b)) for a, b in pairwise(TAUS)]
    away = np.sqrt(np.mean((moments.mean[:, column] - exact) ** 2))
    spread, variance = float(prior.variance), moments.covariance[:, column, column]
    return {
        "series": options.series, "simulations": options.num_steps * options.batch,
        "overall": stratum(errors, sd, np.arange(tau.size)),
        "by_tau": [
            stratum(errors, sd, rows) | {"from": a, "to": None if np.isinf(b) else b}
            for rows, (a, b) in zip(by_tau, pairwise(TAUS), strict=True) if rows.size > 1
        ],
        "by_sd": [
            stratum(errors, sd, rows) | {"from": sd[rows].min(), "to": sd[rows].max()}
            for rows in by_sd
        ],
        "contraction": {
            "exact": 1 - np.mean(sd**2) / spread,
            "network": 1 - np.mean(errors["network"] ** 2) / spread,
            "network expects": 1 - np.mean(variance) / spread,
        },
        "network_to_exact": {
            "rms": away, "in_prior_sd": away / np.sqrt(spread),
            "log_sd_ratio": float(np.mean(np.log(np.sqrt(variance) / sd))),
        },
        "converged": {label: float(found.converged.mean()) for label, found in fitted.items()},
        "verdicts": verdicts(study, mechanism, test, by_tau, options, keys[2]),
    }  # fmt: skip


def stratum(errors: dict[str, np.ndarray], sd: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """By method the RMSE, its ratio to the exact posterior mean's, and the share far off."""
    best = errors["exact posterior mean"][rows] ** 2
    methods = {}
    for method, error in errors.items():
        squares = error[rows] ** 2
        mean, ratio = squares.mean(), squares.mean() / best.mean()
        influence = (squares - ratio * best) / best.mean()
        methods[method] = {
            "rmse": np.sqrt(mean),
            "error": squares.std() / np.sqrt(rows.size) / (2 * np.sqrt(mean)),
            "over_exact": np.sqrt(ratio),
            "over_exact_error": influence.std() / np.sqrt(rows.size) / (2 * np.sqrt(ratio)),
            "far_off": float(np.mean(np.abs(error[rows]) > FAR)),
        }
    return {"n": rows.size, "exact_sd": float(np.sqrt(np.mean(sd[rows] ** 2))), "methods": methods}


def verdicts(
    study: sg.Study, mechanism: str, test: Simulation, by_tau: list[np.ndarray],
    options: Options, key: jax.Array,
) -> list[dict[str, float]]:  # fmt: skip
    """By stratum of tau, how often the profile likelihood says what of ln K, without the prior."""
    if not options.profiled:
        return []
    observed = jax.tree.map(lambda leaf: leaf[: options.profiled], test.observed)
    found = profile_likelihood(
        study, mechanism, observed, "log_capacity", key, bounds=UNRESTRICTED, starts=4
    )
    told = []
    for rows in by_tau:
        here = found.verdict[rows[rows < options.profiled]]
        words, counts = np.unique(here, return_counts=True)
        told.append({str(w): int(c) / here.size for w, c in zip(words, counts, strict=True)})
    return told


def scored(arm: str, options: Options) -> dict[str, Any]:
    """The scores of every target of another world, and its combinations of parameters."""
    heads = {"parameters": options.head}
    if arm in ("control", "leaky"):
        study = reported(leaky=arm == "leaky")
    elif arm == "exposed":
        study, heads = exposed(), heads | {"latent": options.head}
    else:
        study = early_outbreak(int(arm.split()[2]))
    predictor, stream = trained(study, options, heads)
    # Functions of the parameters are on the scale that they are asked for.
    names = [name for name in study.parameter_names if name not in study.known]
    found = sg.identifiability(
        predictor,
        stream,
        jax.random.key(options.seed + 2),
        num_simulations=options.tests,
        log_scale=names,
    )
    result = {
        "simulations": options.num_steps * options.batch,
        "tests": found.num_simulations,
        "scores": found.table(),
        "strata": found.strata_table(),
        "combinations": found.directions_table(),
        "calibration": calibration(predictor, stream, options),
    }
    if arm.startswith("R0"):
        test = stream.held_out().take(options.references, FIRST_TEST)
        key = jax.random.key(options.seed + 4)
        said, sd, result["references"] = estimates(predictor, test, key, options.starts)
        truth = np.asarray(reproduction_number(test.theta), float)
        errors = {method: values - truth for method, values in said.items()}
        result["errors"] = stratum(errors, sd, np.arange(truth.size))
    if arm in ("control", "leaky"):
        mechanism = next(iter(study.mechanisms))
        fisher = sg.fisher_information(study, mechanism, jax.random.key(options.seed + 3))
        result["fisher"] = {"rank": fisher.rank, "of": len(fisher.names), "verdict": fisher.verdict}
    return result


def calibration(
    predictor: sg.Predictor, stream: sg.SimulationStream, options: Options
) -> dict[str, dict[str, float]]:
    """By quantity the share of truths in 90 % intervals, and whether their ranks are uniform."""
    key = jax.random.key(options.seed + 5)
    found, slots = sg.diagnostics.calibrate(predictor, stream, key, options.tests), NUM_DRAWS + 1
    return {
        name: {
            "coverage_90": found.coverage(name),
            "error": float(np.sqrt(0.09 / ranks.size)),
            **dataclasses.asdict(uniformity(rank_pits(np.rint(ranks * slots - 0.5), slots - 1))),
        }
        for name, ranks in found.ranks.items()
    }


def met(arms: dict[str, Any]) -> dict[str, bool]:
    """Which targets are met; those of arms that did not run are left out."""
    found: dict[str, float] = {}
    for arm, suffix in (("control", ""), ("leaky", ", leaky")):
        for row in arms.get(arm, {}).get("scores", []):
            found[row["quantity"] + suffix] = row["score"]
    growing = arms.get("growth", {})
    strata = [row for by in ("by_sd", "by_tau") for row in growing.get(by, []) if row["n"] >= 2000]
    if strata:
        found[WORST] = max(row["methods"]["network"]["over_exact"] for row in strata)
    return {
        name: bool(low < found[name] < high)
        for name, (low, high) in TARGETS.items()
        if name in found
    }


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    with lightly_compiled(asked.quick):
        main(asked)
