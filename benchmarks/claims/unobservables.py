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
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.claims.early import estimates, reproduction_number
from benchmarks.claims.exact_growth import posterior_moments
from benchmarks.claims.tables import as_printed, table, verdict
from benchmarks.claims.worlds import early_outbreak, exposed, growth, inflection, reported
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax._drawing import COLOURS, WIDTH, styled
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

FAR = 2.0
"""An estimate of ln K that is off by more is called far off."""

TARGETS = {
    "log rho": (-0.01, 0.003),
    "log rho, leaky": (0.10, 1.0),
    "log m": (0.93, 1.0),
    "beta - gamma": (0.98, 1.0),
}
"""Between which scores must lie."""

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


console = Console()


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
        (show_growth if arm == "growth" else show_scores)(arm, rows[arm])
        if not options.quick:  # arms of other calls stay beside it
            whole = kept(NAME).get("arms", {}) | {arm: rows[arm]}
            keep(NAME, {"options": _plain(options), "arms": whole, "targets": TARGETS})
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
    return {
        name: bool(low < found[name] < high)
        for name, (low, high) in TARGETS.items()
        if name in found
    }


def show_growth(arm: str, row: dict[str, Any]) -> None:
    """The tables of growth."""
    methods = list(row["overall"]["methods"])
    strata = {"tau": row["by_tau"], "exact posterior sd": row["by_sd"]}
    for by, parts in strata.items():
        table = Table(title=f"{arm}: RMSE of ln K by {by} (over the exact posterior mean's)")
        for column in (by, "n", *methods, f"unrestricted off by > {FAR:g}"):
            table.add_column(column)
        for part in parts:
            own = part["methods"]
            end = "" if part["to"] is None else f" - {part['to']:.3g}"
            cells = [
                f"{own[m]['rmse']:.3f} ± {own[m]['error']:.3f} ({own[m]['over_exact']:.2f})"
                for m in methods
            ]
            far = f"{own['maximum likelihood, unrestricted']['far_off']:.1%}"
            table.add_row(f"{part['from']:.3g}{end}", f"{part['n']:,}", *cells, far)
        console.print(table)
    console.print(
        f"contraction {row['contraction']}; network to exact {row['network_to_exact']}; "
        f"converged {row['converged']}; profiles by tau {row['verdicts']}; {row['seconds']:.0f} s"
    )


def show_scores(arm: str, row: dict[str, Any]) -> None:
    """The scores of one world."""
    table = Table(title=f"{arm}: what the data tell, {row['tests']:,} tests")
    for column in ("quantity", "mechanism", "score", "the network expects", "verdict",
                   "in 90 %", "width", "ranks uniform, p"):  # fmt: skip
        table.add_column(column)
    for each in row["scores"]:
        score = f"{each['score']:.4f} ± {each['error']:.4f}"
        names = (each["quantity"], each["mechanism"])
        own = row["calibration"].get(each["quantity"])
        shown = (f"{own['coverage_90']:.1%}", f"{own['width']:.3f}", f"{own['p_value']:.2g}")
        table.add_row(*names, score, f"{each['expected']:.4f}", each["verdict"], *shown)
    console.print(table)
    if "errors" in row:
        show_methods(arm, row)
    for each in row["combinations"]:
        console.print(
            f"  {each['score']:.4f} ± {each['error']:.4f}  {each['combination, in prior sds']}"
        )
    console.print(row.get("fisher", {}).get("verdict", ""), f"{row['seconds']:.0f} s")


def show_methods(arm: str, row: dict[str, Any]) -> None:
    """The errors of R0, method by method."""
    table = Table(title=f"{arm}: its RMSE on {row['errors']['n']:,} series, by every way there is")
    for column in ("method", "RMSE", "over the exact posterior mean's"):
        table.add_column(column)
    for method, own in row["errors"]["methods"].items():
        ratio = f"{own['over_exact']:.3f} ± {own['over_exact_error']:.3f}"
        table.add_row(method, f"{own['rmse']:.3f} ± {own['error']:.3f}", ratio)
    console.print(table, row["references"])


def section(result: Mapping[str, Any]) -> str:
    """The tables of all arms, and what became of the targets."""

    def show() -> None:
        for arm, row in result["arms"].items():
            (show_growth if arm == "growth" else show_scores)(arm, row)

    targets = [(name, verdict(told)) for name, told in result["met"].items()]
    return as_printed(console, show) + "\n" + table(("target", ""), targets)


@styled
def picture(result: dict[str, Any]) -> Figure:
    """RMSE of ln K by tau and by exact posterior sd, and the scores of the controls."""
    arms = result["arms"]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    top, bottom = halves
    axes: Any = top.subplots(1, 2, sharey=True)
    mixed = lambda arm: len({row["mechanism"] for row in arms[arm]["scores"]}) > 1
    growth = arms.get("growth")
    titles = ("by time seen over time of steepest growth", "by exact posterior sd")
    for axis, by, title in zip(axes, ("by_tau", "by_sd"), titles, strict=True):
        parts = growth[by] if growth else []
        for method, colour in zip(parts[0]["methods"] if parts else (), COLOURS, strict=False):
            rows = [part["methods"][method] for part in parts]
            axis.errorbar(
                range(len(parts)), [row["rmse"] for row in rows], [row["error"] for row in rows],
                marker="o", markersize=3, linewidth=1, color=colour, label=method,
            )  # fmt: skip
        ends = [(f"{p['from']:.2g}", "" if p["to"] is None else f"{p['to']:.2g}") for p in parts]
        axis.set_xticks(range(len(parts)), ["-\n".join(each) for each in ends], fontsize="x-small")
        axis.set(yscale="log", title=title)
    axes[0].set_ylabel("RMSE of ln K")
    if growth:
        axes[0].legend(fontsize="x-small", frameon=False)
    bars = [
        (f"{row['quantity']}: {arm}{', ' + row['mechanism'] if mixed(arm) else ''}",
         row["score"], row["error"])
        for arm in arms if arm != "growth"
        for row in arms[arm]["scores"]
        if row["quantity"] in (*TARGETS, "R0", "log exposed")
    ]  # fmt: skip
    axis = bottom.subplots()
    labels, scores, errors = zip(*bars, strict=True) if bars else ((), (), ())
    axis.barh(range(len(bars)), scores, xerr=errors, color=COLOURS[0], height=0.6)
    axis.set_yticks(range(len(bars)), labels)
    axis.invert_yaxis()
    axis.set(xlabel="score: 1 where the data decide, 0 where an answer is the prior mean")
    return figure


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    with lightly_compiled(asked.quick):
        main(asked)
