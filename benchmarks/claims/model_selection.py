"""Does a network tell mechanisms apart as well as the exact Bayes factor, and better than AIC?

SIR or SEIR from daily counts, in worlds that differ in how the epidemic starts; three laws of
growth; a predator that is ever hungry or one that is sated. On fresh series: the network's error;
that of the exact Bayes factor (its floor, evidences by adaptive importance sampling); of AIC,
AICc, BIC and the plain likelihood ratio, fitted in the prior's box and with wide bounds; and of
the likelihood ratio with a threshold tuned on other simulations, which knows the prior as the
network does. A win over AIC alone would only show that the prior was used.

`python -m benchmarks.claims.model_selection [--quick]`
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.claims.tables import table, verdict
from benchmarks.claims.worlds import Seeding, growth_laws, hungry_or_sated, latent_or_not, two_laws
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax.references import Fit, evidence, fit_mechanisms, mechanism_posterior
from sgjax.study import Simulation

NAME = "claim_model_selection"

FIRST_TEST, FIRST_TUNING = 2**20, 2**21
"""Test and tuning series are held-out simulations from these numbers on."""

PRIMARY: Seeding = "on the growing direction"

ARMS: dict[str, Callable[[], sg.Study]] = {
    "primary": lambda: latent_or_not(40, 0.05, PRIMARY),
    "none exposed at first": lambda: latent_or_not(40, 0.05, "none exposed"),
    "25 days": lambda: latent_or_not(25, 0.05, PRIMARY),
    "80 days": lambda: latent_or_not(80, 0.05, PRIMARY),
    "little noise": lambda: latent_or_not(40, 0.01, PRIMARY),
    "much noise": lambda: latent_or_not(40, 0.2, PRIMARY),
    "laws of growth": growth_laws,
    "predators": hungry_or_sated,
    "two laws in closed form": two_laws,
}
"""The worlds. Unless its name says otherwise an epidemic has 40 days, an overdispersion of 0.05 and
is on the growing direction from the start."""

TARGETS = {"excess_error": 0.01, "kl": 0.005, "share_of_aic": 0.5}


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One arm, few series, little training; about a minute."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which worlds."""
    series: int = 10_000
    """Test series of each arm."""
    tuning: int = 2_000
    """Series on which the threshold is tuned."""
    num_steps: int = 8_000
    """Updates of each network."""
    batch: int = 512
    """Simulations of an update."""
    width: int = 128
    """Of the network."""
    starts: int = 8
    """Starts of each fit."""
    seed: int = 0
    """Of simulations and weights."""


def main(options: Options) -> dict[str, Any]:
    """Runs every arm; each is kept as soon as it is done."""
    if options.quick:
        options = dataclasses.replace(
            options, arms=("two laws in closed form",), series=64, tuning=64, num_steps=100,
            starts=2,
        )  # fmt: skip
    rows = {}
    for name in options.arms:
        rows[name] = arm(name, options) | {"commit": circumstances()["commit"]}
        show(name, rows[name])
        if not options.quick:
            # Arms of other calls stay beside it.
            whole = kept(NAME).get("arms", {}) | {name: rows[name]}
            result = {"options": dataclasses.asdict(options), "arms": whole, "targets": TARGETS}
            keep(NAME, {"benchmark": NAME, **circumstances(), **result})
    result = {"options": dataclasses.asdict(options), "arms": rows, "targets": TARGETS}
    if not options.quick:
        result["arms"] = kept(NAME)["arms"] | rows
    finish(NAME, result, store=not options.quick)
    return result


def arm(name: str, options: Options) -> dict[str, Any]:
    """Everything of one world."""
    study = ARMS[name]()
    keys = jax.random.split(jax.random.key(options.seed), 5)
    stream = sg.SimulationStream(study, keys[0], options.batch)
    seconds, last = {}, time.perf_counter()

    def took(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[what], last = now - last, now

    probability = trained(study, stream, keys[1], options)
    took("training")
    test = stream.held_out().take(options.series, FIRST_TEST)
    truth = np.asarray(test.mechanism)
    network = probability(test)
    evidences = {m: evidence(study, m, test.observed, keys[2]) for m in study.mechanisms}
    exact = np.stack(list(mechanism_posterior(evidences).values()), axis=1)
    took("evidence")
    said = {"network": network.argmax(axis=1), "Bayes factor": exact.argmax(axis=1)}
    fits = {}
    for bounds in ("prior", "wide"):
        fits[bounds] = fit_mechanisms(
            study, test.observed, keys[3], bounds=bounds, starts=options.starts
        )
        took(f"fits, {bounds}")
        said |= {f"{rule}, {bounds}": one for rule, one in choices(fits[bounds]).items()}
    bonus = tuned(study, stream, keys[4], options)
    said["tuned likelihood ratio"] = (likelihoods(fits["prior"]) + bonus).argmax(axis=1)
    trusted = np.all([each.trusted for each in evidences.values()], axis=0)
    names = list(study.mechanisms)
    return {
        "mechanisms": names, "days": int(study.ts.size), "series": options.series,
        "simulations": options.num_steps * options.batch,
        "errors": {rule: judged(chosen, truth, names) for rule, chosen in said.items()},
        "excess_over_bayes": {
            rule: excess(chosen, said["Bayes factor"], truth) for rule, chosen in said.items()
        },
        "expected_floor": float(np.mean(1 - exact.max(axis=1))),
        "kl": divergence(exact, network),
        "log_score": {"network": log_score(network, truth), "exact": log_score(exact, truth)},
        "calibration_error": {
            "network": calibration_error(network, truth), "exact": calibration_error(exact, truth)
        },
        "agreement": float(np.mean(said["network"] == said["Bayes factor"])),
        "bonus": dict(zip(names, bonus.tolist(), strict=True)),
        "evidence": {
            "trusted": float(trusted.mean()),
            "least_ess": float(min(each.ess.min() for each in evidences.values())),
            "ess_1000": float(np.mean([np.mean(e.ess >= 1000) for e in evidences.values()])),
            "largest_error": float(max(each.error.max() for each in evidences.values())),
        },
        "fits": {bounds: quality(study, found, test) for bounds, found in fits.items()},
        "seconds": seconds,
    }  # fmt: skip


def trained(study: sg.Study, stream: sg.SimulationStream, key: Any, options: Options) -> Any:
    """The network's probabilities of the mechanisms as a function of simulations."""
    blank = sg.predictors.for_study(study, key, width=options.width)
    predictor = sg.train(blank, stream, options.num_steps, interval=500)

    @jax.jit
    def probabilities(inputs: Any) -> Any:
        def one(inputs: Any) -> Any:
            return predictor.network(inputs)[1]["mechanism"].mean()

        return jax.vmap(one)(inputs)

    return lambda simulated: np.asarray(probabilities(simulated.example.inputs), np.float64)


def likelihoods(fits: dict[str, Fit]) -> np.ndarray:
    """The log likelihoods of the mechanisms' best fits, (series, mechanisms)."""
    return np.stack([found.log_likelihood for found in fits.values()], axis=1)


def choices(fits: dict[str, Fit]) -> dict[str, np.ndarray]:
    """Which mechanism each rule names."""
    found = {
        rule: np.argmin([getattr(fit, rule.lower()) for fit in fits.values()], axis=0)
        for rule in ("AIC", "AICc", "BIC")
    }
    return found | {"likelihood": likelihoods(fits).argmax(axis=1)}


def tuned(study: sg.Study, stream: sg.SimulationStream, key: Any, options: Options) -> np.ndarray:
    """What to add to each mechanism's log likelihood for the least error on other simulations."""
    other = stream.held_out().take(options.tuning, FIRST_TUNING)
    fits = fit_mechanisms(study, other.observed, key, starts=options.starts)
    return best_bonus(likelihoods(fits), np.asarray(other.mechanism))


def best_bonus(logs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The bonus of each mechanism, one after another the best; that of the first is 0."""
    bonus = np.zeros(logs.shape[1])
    for place in list(range(1, bonus.size)) * (3 if bonus.size > 2 else 1):
        others = np.delete(logs + bonus, place, axis=1)
        named = np.delete(np.arange(bonus.size), place)[others.argmax(axis=1)]
        needed = others.max(axis=1) - logs[:, place]
        order = np.argsort(needed)
        # With a bonus above the i-th of them, so many are right: those named so, and the rest.
        right = np.concatenate([[0], np.cumsum(truth[order] == place)])
        rest = np.cumsum((named == truth)[order][::-1])[::-1]
        at = int(np.argmax(right + np.concatenate([rest, [0]])))
        edges = np.concatenate([[needed[order[0]] - 1], needed[order], [needed[order[-1]] + 1]])
        bonus[place] = (edges[at] + edges[at + 1]) / 2
    return bonus


def quality(study: sg.Study, fits: dict[str, Fit], test: Simulation) -> dict[str, Any]:
    """Whether fits are maxima: those that converged, and those below the truth's likelihood."""
    observation = study.observation

    @jax.jit
    def truth(theta: Any, latent: Any, observed: Any) -> Any:
        def one(theta: Any, values: Any, record: Any) -> Any:
            latent = sg.simulators.Latent(record.ts, values, None)
            return sg.observations.log_likelihood(observation, theta, latent, record)

        return jax.vmap(one)(theta, latent, observed)

    true = np.asarray(truth(test.theta, test.latent, test.observed))
    own = np.asarray(test.mechanism)
    return {
        name: {
            "converged": float(found.converged.mean()),
            "below_truth": int(np.sum(found.log_likelihood[own == n] < true[own == n] - 1e-2)),
            "of": int(np.sum(own == n)),
            "several_starts_agree": float(np.mean(found.agreeing > 1)),
        }
        for n, (name, found) in enumerate(fits.items())
    }


def judged(chosen: np.ndarray, truth: np.ndarray, names: list[str]) -> dict[str, Any]:
    """The error with its standard error, and that on series of each mechanism."""
    wrong = chosen != truth
    return {
        "error": float(wrong.mean()),
        "standard_error": float(wrong.std() / np.sqrt(wrong.size)),
        "wrong_of": {name: float(wrong[truth == n].mean()) for n, name in enumerate(names)},
    }


def excess(chosen: np.ndarray, best: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The paired difference in error, and the upper end of its one-sided 95% interval."""
    difference = (chosen != truth).astype(float) - (best != truth)
    error = difference.std() / np.sqrt(difference.size)
    return {"mean": float(difference.mean()), "upper": float(difference.mean() + 1.645 * error)}


def divergence(exact: np.ndarray, network: np.ndarray) -> dict[str, float]:
    """The mean KL divergence of the network's probabilities from the exact ones, in nats."""
    p, q = np.clip([exact, network], 1e-12, 1.0)
    each = np.sum(p * np.log(p / q), axis=1)
    return {"mean": float(each.mean()), "standard_error": float(each.std() / np.sqrt(each.size))}


def log_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Minus the mean log probability of the truth."""
    right = probabilities[np.arange(truth.size), truth]
    return float(-np.mean(np.log(np.maximum(right, 1e-12))))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error over bins of equal mass, mean over mechanisms."""
    errors = []
    for place, said in enumerate(probabilities.T):
        parts = np.array_split(np.argsort(said), bins)
        gaps = [abs(said[p].mean() - (truth[p] == place).mean()) * p.size for p in parts]
        errors.append(np.sum(gaps) / truth.size)
    return float(np.mean(errors))


def verdicts(row: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What became of the targets in one arm."""
    over, kl = row["excess_over_bayes"]["network"]["upper"], row["kl"]["mean"]
    aic = row["errors"]["AIC, prior"]["error"]
    share, floor = (row["errors"][who]["error"] / aic for who in ("network", "Bayes factor"))
    kinds = (("excess_error", over), ("kl", kl), ("share_of_aic", share))
    words = {
        "excess_error": "error over the Bayes factor, 95 % upper",
        "kl": "KL to the exact probabilities, nats",
        "share_of_aic": f"share of AIC's error (the Bayes factor's own: {floor:.2f})",
    }
    told = {kind: verdict(value <= TARGETS[kind]) for kind, value in kinds}
    if floor > TARGETS["share_of_aic"]:
        told["share_of_aic"] = "out of reach: the floor itself is above"
    return [(words[kind], f"{value:.4f}", str(TARGETS[kind]), told[kind]) for kind, value in kinds]


def section(result: Mapping[str, Any]) -> str:
    """Each arm's errors, and what became of the targets."""
    parts = [
        "AIC aims at prediction, not at the truth's name; a gain over it that the tuned likelihood "
        "ratio has too is a gain from knowing the prior.\n"
    ]
    for name, row in result["arms"].items():
        parts.append(
            f"**{name}**: {row['series']:,} series of {row['days']} values; evidences trusted "
            f"{row['evidence']['trusted']:.1%}, 1,000 effective draws in "
            f"{row['evidence']['ess_1000']:.1%}; calibration error of the network "
            f"{row['calibration_error']['network']:.3f}, of the exact probabilities "
            f"{row['calibration_error']['exact']:.3f}.\n"
        )
        lines = [
            (rule, f"{e['error']:.3f} ± {e['standard_error']:.3f}",
             f"{row['excess_over_bayes'][rule]['mean']:+.4f}",
             *(f"{share:.3f}" for share in e["wrong_of"].values()))
            for rule, e in row["errors"].items()
        ]  # fmt: skip
        head = ("rule", "error", "over the Bayes factor", *(f"of {n}" for n in row["mechanisms"]))
        parts += [table(head, lines), table(("target", "found", "asked", ""), verdicts(row))]
    return "\n".join(parts)


def picture(result: Mapping[str, Any]) -> Figure:
    """Errors of all rules, a panel for each arm."""
    arms = result["arms"]
    figure = Figure(
        figsize=(3.4 * min(3, len(arms)), 3.2 * -(-len(arms) // 3)), layout="constrained"
    )
    axes = figure.subplots(-(-len(arms) // 3), min(3, len(arms)), squeeze=False).ravel()
    for axis, (name, row) in zip(axes, arms.items(), strict=False):
        rules = list(row["errors"])[::-1]
        errors = [row["errors"][rule] for rule in rules]
        colours = ["C1" if rule in ("network", "Bayes factor") else "C7" for rule in rules]
        axis.barh(rules, [e["error"] for e in errors], color=colours,
                  xerr=[1.96 * e["standard_error"] for e in errors])  # fmt: skip
        axis.axvline(0.5, color="0.6", lw=0.8, ls=":")
        axis.set(title=name, xlabel="error")
        axis.tick_params(labelsize="x-small")
    for axis in axes[len(arms) :]:
        axis.remove()
    return figure


def show(name: str, row: dict[str, Any]) -> None:
    """The table of one arm."""
    shown = Table(title=f"{name}: {row['series']:,} series of {row['days']} values")
    of = (f"of {mechanism}" for mechanism in row["mechanisms"])
    for column in ("rule", "error", "over Bayes factor (95 % upper)", *of):
        shown.add_column(column)
    for rule, error in row["errors"].items():
        over = row["excess_over_bayes"][rule]
        shown.add_row(
            rule,
            f"{error['error']:.3f} ± {error['standard_error']:.3f}",
            f"{over['mean']:+.4f} ({over['upper']:+.4f})",
            *(f"{share:.3f}" for share in error["wrong_of"].values()),
        )
    console = Console()
    console.print(shown)
    calibration = row["calibration_error"]
    console.print(
        f"KL to the exact probabilities {row['kl']['mean']:.4f} ± "
        f"{row['kl']['standard_error']:.4f} nats; calibration error {calibration['network']:.3f} "
        f"(exact: {calibration['exact']:.3f}); evidences trusted {row['evidence']['trusted']:.2%}; "
        f"fits {row['fits']}; seconds {row['seconds']}"
    )


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    with lightly_compiled(asked.quick):
        main(asked)
