"""What does a mismatch between simulator and reality cost, and what shows it without labels?

(1) The bound |R_real - R_syn| <= B TV on worlds whose total variation is known exactly, and a
change of the target given the series that breaks its version from series alone. (2) The gap in risk
of 16 shifts of logistic growth beside every distance that needs no labels. (3) Power of the
declared test and of the others for 1 to 1,000 real series, beside a classifier trained for the very
fault; false alarms. (4) Two remedies: what they save under shift and cost without.

`python -m benchmarks.claims.mismatch [--quick]`; a part that is done is not computed again after a
stop.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy import stats

import sgjax as sg
from benchmarks.claims.mismatch_power import LEVEL, alarms, missed, power_table
from benchmarks.claims.mismatch_shown import DISTANCES, SHOWN, console
from benchmarks.claims.mismatch_shown import picture as picture
from benchmarks.claims.mismatch_shown import section as section
from benchmarks.claims.shifted import (
    CAPACITY,
    FAULTS,
    NONE,
    PRIOR_SD,
    REMEDIES,
    clipped_loss,
    growth,
    inputs_from,
)
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax.diagnostics import mmd, sliced_wasserstein
from sgjax.mismatch.classifier import TotalVariation, accuracy, log_odds
from sgjax.mismatch.pool import PRIMARY, Pool
from sgjax.predictors import ByMechanism
from sgjax.predictors._posterior import natural
from sgjax.tasks import Inputs

NAME = "claim_mismatch"

QUICK = ("Gompertz 0.5", "noise sd 0.3", "AR(1) 0.9", "reported 0.5")


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Four shifts, no remedy, few series; under a minute."""
    faults: tuple[str, ...] = tuple(FAULTS)
    """Which shifts."""
    remedies: tuple[str, ...] = tuple(REMEDIES)
    """Which training worlds; the first is the simulator itself."""
    num_steps: int = 6_000
    """Updates of each network."""
    batch: int = 256
    """Simulations of an update."""
    width: int = 64
    """Of the networks."""
    test: int = 20_000
    """Test series of each cell."""
    classified: int = 12_000
    """Series of each kind that classifiers are given, half of them held out."""
    compared: int = 2_000
    """Series of each kind that kernel and transport distances are computed from."""
    worlds: int = 200
    """Of known total variation."""
    sizes: tuple[int, ...] = (1, 10, 100, 1000)
    """Numbers of real series."""
    replicates: tuple[int, ...] = (400, 200, 100, 40)
    """Of each cell, by number of series."""
    null_replicates: tuple[int, ...] = (2000, 2000, 2000, 100)
    """Without any shift, by number of series."""
    pool: int = 2048
    """Fresh simulations that groups are drawn from."""
    groups: int = 199
    """Groups of a test."""
    oracle: int = 30_000
    """Series of each kind that the oracle is trained on."""
    seed: int = 0
    """Of everything; development was on others."""


def main(options: Options) -> dict[str, Any]:
    """Runs the four parts, prints tables and the line."""
    if options.quick:
        options = dataclasses.replace(
            options, faults=QUICK, remedies=tuple(REMEDIES)[:1], num_steps=100, width=16, test=2000,
            classified=600, compared=400, worlds=60, sizes=(1, 10), replicates=(40, 10),
            null_replicates=(100, 20), pool=256, groups=99, oracle=1000,
        )  # fmt: skip
    result = begun(options)
    seconds, start = result["seconds"], time.perf_counter()
    predictors, streams = {}, {}
    for name in options.remedies:
        predictors[name], streams[name] = trained(name, options)
    seconds["training"] = time.perf_counter() - start
    base = options.remedies[0]
    parts: dict[str, Callable[[], Any]] = {
        "bound": lambda: bound(predictors[base], options),
        "shifts": lambda: shifts(predictors[base], pool, options),
        "remedies": lambda: remedies(predictors, options),
        "power": lambda: power(pool, options),
    }
    pool = Pool(predictors[base], streams[base], num_pool=options.pool, num_simulations=20_000)
    for name in [each for each in parts if each not in result]:
        start = time.perf_counter()
        result[name] = parts[name]()
        seconds[name] = time.perf_counter() - start
        SHOWN[name](result[name])
        if not options.quick:
            keep(NAME, {"benchmark": NAME, **circumstances(), **result})
    result["verdicts"] = verdicts(result)
    for name, verdict in result["verdicts"].items():
        console.print(f"{name}: {verdict}")
    finish(NAME, result, store=not options.quick)
    return result


def begun(options: Options) -> dict[str, Any]:
    """The parts that a run of these options, that was stopped, has left."""
    asked = json.loads(json.dumps(dataclasses.asdict(options)))
    known = {} if options.quick else kept(NAME)
    if known.get("options") != asked or "verdicts" in known:
        return {"options": asked, "seconds": {}}
    return {name: known[name] for name in ("options", "seconds", *SHOWN) if name in known}


def trained(name: str, options: Options) -> tuple[sg.Predictor, sg.SimulationStream]:
    """A network for the capacity, of one world of training."""
    study = growth(REMEDIES[name]())
    stream = sg.SimulationStream(study, jax.random.key(options.seed), options.batch)
    blank = sg.predictors.for_study(
        study, jax.random.key(options.seed + 1), width=options.width, depth=2
    )
    return sg.train(blank, stream, options.num_steps, interval=min(500, options.num_steps)), stream


def log_capacity(predictor: sg.Predictor, inputs: Inputs) -> np.ndarray:
    """The predicted logarithm of the capacity, its median."""
    study = predictor.study

    @jax.jit
    def answer(inputs: Inputs) -> jax.Array:
        def one(inputs: Inputs) -> jax.Array:
            block = predictor.network(inputs)[1]["parameters"]
            assert isinstance(block, ByMechanism)
            theta = natural(study, "Logistic", block.select(0).mean(), {})
            return jnp.log(theta["carrying_capacity"])

        return jax.vmap(one)(inputs)

    return np.asarray(answer(inputs), np.float64)


# The bound ----------------------------------------------------------------------------------------


def bound(predictor: sg.Predictor, options: Options) -> dict[str, Any]:
    """Gaps in risk beside B TV, on worlds whose joint total variation is known exactly."""
    random = np.random.default_rng([options.seed, 2])
    drawn = []
    for _ in range(2):
        sizes, truth = NONE.draw(options.test, random)
        predicted = log_capacity(predictor, inputs_from(sizes))
        drawn.append((predicted, truth, clipped_loss(predicted, truth)))
    (predicted, truth, ordinary), (fresh, _, others) = drawn
    worlds = [
        contaminated(ordinary, fresh, others, random) if n % 2 else moved(options.test, random)
        for n in range(options.worlds)
    ]
    excess = [abs(w["gap"]) - w["total_variation"] - 4 * w["error"] for w in worlds]
    # Only the target moves, and the law of the series stays: their total variation is 0.
    changed = clipped_loss(predicted, truth + PRIOR_SD) - ordinary
    return {
        "worlds": worlds,
        "violations": int(np.sum(np.array(excess) > 0)),
        "tight": int(sum(abs(w["gap"]) >= 0.8 * w["total_variation"] for w in worlds)),
        "target_moved": {"gap": float(changed.mean()), "total_variation_of_series": 0.0},
    }


def contaminated(
    ordinary: np.ndarray, fresh: np.ndarray, others: np.ndarray, random: np.random.Generator
) -> dict[str, Any]:
    """A share of capacities beyond the prior's end, which no simulation has: TV is the share.

    From losses of simulated pairs, and predictions and losses of other pairs for the mixture.
    """
    share, low = random.uniform(0.02, 0.95), random.uniform(0, 2)
    strange = np.log(CAPACITY[1]) + PRIOR_SD * random.uniform(low, low + 1, fresh.size)
    is_strange = random.random(fresh.size) < share
    loss = np.where(is_strange, clipped_loss(fresh, strange), others)
    error = np.hypot(loss.std(), ordinary.std()) / np.sqrt(fresh.size)
    return {"kind": "contamination", "total_variation": share,
            "gap": float(loss.mean() - ordinary.mean()), "error": float(error)}  # fmt: skip


def moved(count: int, random: np.random.Generator) -> dict[str, Any]:
    r"""(x, y) normal and moved: $TV = 2 \Phi(|\delta| / 2) - 1$, $\delta$ in whitened units.

    y ~ N(0, 1), x the mean of m values of N(y, 1); the Bayes prediction is m x / (m + 1).
    """
    m, shift = int(random.integers(1, 20)), random.normal(size=2) * random.uniform(0, 1.5)
    covariance = np.array([[1 + 1 / m, 1], [1, 1]])
    distance = np.sqrt(shift @ np.linalg.solve(covariance, shift))
    losses = []
    for offset in (np.zeros(2), shift):
        x, y = random.multivariate_normal(offset, covariance, count).T
        losses.append(np.minimum((m * x / (m + 1) - y) ** 2, 1))
    error = np.hypot(losses[0].std(), losses[1].std()) / np.sqrt(count)
    return {"kind": "normal shift", "total_variation": float(2 * stats.norm.cdf(distance / 2) - 1),
            "gap": float(losses[1].mean() - losses[0].mean()), "error": float(error)}  # fmt: skip


# Shifts -------------------------------------------------------------------------------------------


def shifts(predictor: sg.Predictor, pool: Pool, options: Options) -> dict[str, Any]:
    """Gap in risk and distances of each shift, and how they rank together."""
    random = np.random.default_rng([options.seed, 3])
    sizes, truth = NONE.draw(options.test, random)
    own = inputs_from(sizes)
    risk = clipped_loss(log_capacity(predictor, own), truth).mean()
    reference = views(pool, own, options.classified)
    rows = {}
    for name in ("none", *options.faults):
        sizes, truth = (NONE if name == "none" else FAULTS[name]).draw(options.test, random)
        inputs = inputs_from(sizes)
        loss = clipped_loss(log_capacity(predictor, inputs), truth)
        rows[name] = {"risk": float(loss.mean()), "gap": float(loss.mean() - risk)}
        rows[name] |= distances(reference, views(pool, inputs, options.classified), options)
    gaps = [abs(rows[name]["gap"]) for name in options.faults]
    ranks = {
        each: float(np.asarray(stats.spearmanr(gaps, [rows[f][each] for f in options.faults]))[0])
        for each in DISTANCES
    }
    return {"simulated_risk": float(risk), "rows": rows, "spearman": ranks}


def views(pool: Pool, inputs: Inputs, count: int) -> dict[str, np.ndarray]:
    """Points of series: as scaled inputs, features and predictions, and whitened features."""
    some = jax.tree.map(lambda leaf: leaf[:count], inputs)
    points = {kind: np.asarray(values) for kind, values in pool.sample(some).points.items()}
    space = pool.spaces["features"]
    plain = points["features"] @ np.linalg.inv(np.asarray(space.rotation, float))
    return {"x": points["inputs"], "h": plain.astype(np.float32),
            "h whitened": points["features"], "predicted": points["predictive"]}  # fmt: skip


def distances(
    simulated: dict[str, np.ndarray], real: dict[str, np.ndarray], options: Options
) -> dict[str, float]:
    """Every distance without labels between two sets of views."""
    key, found = jax.random.key(options.seed), {}
    for kind in ("x", "h"):
        half = min(len(real[kind]), len(simulated[kind])) // 2
        labelled = jnp.concatenate([real[kind][:half], simulated[kind][:half]])
        asked = jnp.concatenate([real[kind][half : 2 * half], simulated[kind][half : 2 * half]])
        odds = log_odds(key, labelled, jnp.arange(2 * half) < half, asked)
        limit = TotalVariation(kind, accuracy(odds[:half], odds[half:]), half, half)
        found |= {f"2a-1, {kind}": limit.estimate, f"lower limit, {kind}": limit.lower_limit}
    few = slice(options.compared)
    for kind in ("x", "h", "h whitened"):
        pair = (simulated[kind][few], real[kind][few])
        found[f"MMD2, {kind}"] = mmd(*pair, key, num_permutations=1).squared
    for kind in ("h", "predicted"):
        pair = (simulated[kind][few], real[kind][few])
        found[f"W1, {kind}"] = sliced_wasserstein(*pair, key, order=1)
    return found


# Power and remedies -------------------------------------------------------------------------------


def power(pool: Pool, options: Options) -> dict[str, Any]:
    """Power of every cell, and false alarms."""
    counts = dict(zip(options.sizes, options.replicates, strict=True))
    faults = {name: FAULTS[name] for name in options.faults}
    table = power_table(pool, faults, counts, options.groups, options.oracle, options.seed)
    null = {
        str(size): {"replicates": count}
        | alarms(pool, NONE, size, count, options.groups, options.seed + 1)
        for size, count in zip(options.sizes, options.null_replicates, strict=True)
    }
    return {"cells": table, "false_alarms": null, "missed": missed(table)}


def remedies(predictors: dict[str, sg.Predictor], options: Options) -> dict[str, Any]:
    """Clipped risk in each cell of networks trained in other worlds."""
    table: dict[str, dict[str, float]] = {name: {} for name in predictors}
    for cell in ("none", *options.faults):
        random = np.random.default_rng([options.seed, 4])
        sizes, truth = (NONE if cell == "none" else FAULTS[cell]).draw(options.test, random)
        inputs = inputs_from(sizes)
        for name, predictor in predictors.items():
            table[name][cell] = float(clipped_loss(log_capacity(predictor, inputs), truth).mean())
    return table


def verdicts(result: dict[str, Any]) -> dict[str, Any]:
    """Whether each target was reached."""
    found, null = result["bound"], result["power"]["false_alarms"]
    judged = {size: row for size, row in null.items() if row["replicates"] >= 2000}
    base, *others = result["remedies"]
    under = lambda name: float(np.mean(list(result["remedies"][name].values())[1:]))
    return {
        "the bound holds in every world": found["violations"] == 0,
        "it is tight in 20 worlds at least": found["tight"] >= 20,
        "moving the target alone breaks it from series alone": found["target_moved"]["gap"] > 0.05,
        "power is 0.9 wherever the oracle reaches 0.95": not result["power"]["missed"],
        "false alarms are 5 +- 1.5 %": all(
            abs(row[PRIMARY] - LEVEL) <= 0.015 for row in judged.values()
        ) if judged else "too few replicates",
        "remedies: mean risk under shift, and cost without": {
            name: {"under_shift": under(name) - under(base),
                   "without": result["remedies"][name]["none"] - result["remedies"][base]["none"]}
            for name in others
        },
    }  # fmt: skip


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    with lightly_compiled(asked.quick):
        main(asked)
