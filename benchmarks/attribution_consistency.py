"""Is attribution consistent: do neighbours become the exact posterior as simulations grow?

Two worlds whose posterior a grid gives; held-out series; clouds of neighbours among 1e3 to 1e7
simulations in four spaces: the inputs; the features and the predictive means of a network trained
on all parameters; the one predictive mean of a network trained on another parameter only, which is
not sufficient for the target. k is chosen by leave-one-out on other held-out simulations, for each
space, number and method. The error is the Wasserstein-1 distance of the target's logarithm from its
exact posterior, in prior and in posterior sds; beside it that of as many independent draws of the
posterior as the cloud is worth (the floor), the energy distance of all parameters, the accuracy of
a classifier where a cloud is large enough for one (C2ST), and the slope of log error^2 against
log N, which theory puts at -2/(m+2) for dimension m, with a local line at
-4/(m+4). `python -m benchmarks.attribution_consistency [--quick]`
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import wasserstein_distance

from benchmarks.attribution_worlds import (
    FIRST_TEST,
    LEVELS,
    WORLDS,
    Reference,
    World,
    check_reference,
    references,
    train,
)
from benchmarks.record import RESULTS, finish, lightly_compiled
from sgjax.attribution import Search, SimulationIndex
from sgjax.attribution.choose_k import score_clouds
from sgjax.attribution.clouds import Clouds, Method, draw_clouds, weigh
from sgjax.attribution.source import HeldOut, Source
from sgjax.attribution.sufficiency import judge_clouds
from sgjax.diagnostics import c2st
from sgjax.predictors import Predictor

SPACES = {
    "means": (False, "predictive"),
    "features": (False, "features"),
    "inputs": (False, "inputs"),
    "mean of another parameter": (True, "predictive"),
}
"""Whether the network is the narrow one, and the space."""

METHODS: tuple[Method, ...] = ("kernel", "regression")
ATOMS, CLASSIFIED = 5000, 5
"""Distinct points of a cloud that a classifier needs, and the test series it is asked about."""

COMPARED = 400
"""Draws of the posterior in an energy distance."""

TARGETS = {"kernel": 0.015, "regression": 0.008}
"""What the error in prior sds shall be at 1e7 simulations in the space of means."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One world and space, few series and simulations, a small network; under a minute."""
    worlds: tuple[str, ...] = tuple(WORLDS)
    """Which worlds."""
    spaces: tuple[str, ...] = tuple(SPACES)
    """Which spaces."""
    series: int = 100
    """Test series of each world."""
    left_out: int = 256
    """Held-out simulations that k is chosen on."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    """Simulations searched; each number holds the ones before it."""
    largest_k: int = 4096
    """The largest cloud tried."""
    num_steps: int = 20_000
    """Updates of each network, on 512 simulations each."""
    width: int = 64
    """Of the networks."""
    seed: int = 0
    """Of simulations and weights."""
    resume: Path | None = None
    """A folder for finished parts; those found there are not run again."""
    store: bool = True
    """Keep result and picture under benchmarks/results/."""


def main(options: Options) -> None:
    """Runs every world and space, then prints tables and slopes."""
    if options.quick:
        options = dataclasses.replace(
            options, worlds=options.worlds[:1], spaces=options.spaces[:1], series=6,
            left_out=64, sizes=(2_000, 16_000), largest_k=512, num_steps=500, width=32,
        )  # fmt: skip
    if options.resume is not None:
        options.resume.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    checks = {}
    with lightly_compiled(options.quick):
        for name in options.worlds:
            exact = references(name, options.seed, options.series, options.resume)
            checks[name] = check_reference(name, options.seed, exact[0])
            for narrow in sorted({SPACES[space][0] for space in options.spaces}):
                rows += _network(name, narrow, exact, options)
    slopes = _slopes(rows)
    _show(rows, slopes)
    kept = [{k: v for k, v in row.items() if k != "errors"} for row in rows]
    result = {
        **dataclasses.asdict(options), "resume": None, "reference_error_in_sds": checks,
        "rows": kept, "slopes": slopes, "targets": TARGETS,
    }  # fmt: skip
    store = options.store and not options.quick
    if store:
        _draw(rows, RESULTS / "attribution_consistency.png")
    finish("attribution_consistency", result, store=store)


def _network(
    name: str, narrow: bool, exact: list[Reference], options: Options
) -> list[dict[str, Any]]:
    """Every space of one network."""
    world, rows = WORLDS[name], []
    wanted = {name: SPACES[name][1] for name in options.spaces if SPACES[name][0] == narrow}
    parts = {space: _part(options, name, space) for space in wanted}
    done = [_done(path, options) for path in parts.values()]
    if all(len(each) == len(METHODS) * len(options.sizes) for each in done):
        return [row for each in done for row in each]
    start = time.perf_counter()
    names = (world.narrow,) if narrow else ()
    predictor, stream = train(world, names, options.seed, options.num_steps, options.width)
    print(f"{name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    for space, kind in wanted.items():
        labels = {"world": name, "space": space}
        rows += _space(world, predictor, stream, kind, exact, options, labels, parts[space])
    return rows


def _part(options: Options, name: str, space: str) -> Path | None:
    return None if options.resume is None else options.resume / f"{name} {space}.json"


def _done(path: Path | None, options: Options) -> list[dict[str, Any]]:
    """The rows of a space that were made before."""
    if path is None or not path.exists():
        return []
    rows = json.loads(path.read_text())
    return [row for row in rows if row["num_simulations"] in options.sizes]


def _space(
    world: World, predictor: Predictor, stream: Any, kind: str,
    exact: list[Reference], options: Options, labels: dict[str, str], path: Path | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Errors for each number of simulations and each method; the index grows, nothing is redone."""
    start, title = time.perf_counter(), ", ".join(labels.values())
    index = SimulationIndex.build(predictor, stream, options.sizes[0], space=kind)
    source = Source(predictor, index, 0)
    left_out = source.held_out(options.left_out)
    tests = np.stack([np.zeros(options.series), FIRST_TEST + np.arange(options.series)], axis=1)
    tests = tests.astype(np.uint32)
    fresh = stream.held_out()
    embedded = Search(predictor, fresh, 1, index.space).blocks.drawn_again(tests)
    queries = np.concatenate([np.asarray(left_out.queries), embedded])
    test_inputs = fresh.simulate(tests).example.inputs
    inputs = jax.tree.map(
        lambda a, b: np.concatenate([a, np.asarray(b)]), left_out.inputs, test_inputs
    )
    rows = _done(path, options)
    made = {row["num_simulations"] for row in rows}
    for size in (size for size in options.sizes if size not in made):
        if size > len(index):
            index.add(size - len(index))
        found = index.search(queries, min(options.largest_k, size // 8))
        clouds = draw_clouds(predictor, stream, found, inputs, "regression")
        for method in METHODS:
            row = _method(world, predictor, clouds, left_out, method, exact, size)
            told = {"largest_k": options.largest_k, "left_out": options.left_out}
            rows.append({**labels, "dimension": index.space.size, **told, **row})
            print(
                f"{title}: N = {size:,}, {method}, k = {row['k']}, error {row['prior_sds']:.4f} "
                f"prior sds, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        if path is not None:
            path.write_text(json.dumps(rows))
    return rows


def _method(
    world: World, predictor: Predictor, clouds: Clouds, left_out: HeldOut, method: Method,
    exact: list[Reference], size: int,
) -> dict[str, Any]:  # fmt: skip
    count = len(left_out.mechanism)
    choice = score_clouds(clouds.part(slice(0, count)), left_out, method, size)
    k = choice.best(world.target)
    judged = judge_clouds(predictor, clouds.part(slice(0, count)).nearest(k), left_out, method)
    tests = clouds.part(slice(count, None)).nearest(k)
    weighted = weigh(tests, method)
    names = clouds.coordinates.labels
    natural = clouds.coordinates.theta(world.mechanism, weighted.values.reshape(-1, len(names)), {})
    logs = {label: np.log(natural[label]).reshape(tests.mechanism.shape) for label in names}
    cloud = logs[world.target]
    errors = [
        wasserstein_distance(cloud[i], one.quantiles, weighted.weights[i])
        for i, one in enumerate(exact)
    ]
    worth = weighted.effective[:, 0]
    random = np.random.default_rng(0)
    floor = [_floor(one, n, random) for one, n in zip(exact, worth, strict=True)]
    ordered = np.stack([logs[label] for label in clouds.coordinates.study.parameter_names], axis=2)
    energy = [
        _energy_distance(ordered[i], weighted.weights[i], one.joint[:COMPARED], random)
        for i, one in enumerate(exact)
    ]
    energy_floor = [
        _energy_distance(one.joint[COMPARED:], None, one.joint[:COMPARED], random) for one in exact
    ]
    told = [
        _told_apart(ordered[i], weighted.weights[i], exact[i].joint, random)
        for i in range(min(CLASSIFIED, len(exact)))
    ]
    sds = np.array([one.sd for one in exact])
    return {
        "method": method,
        "num_simulations": size,
        "k": k,
        "k_at_edge": k == choice.grid[-1],
        "effective_k": float(worth.mean()),
        "prior_sds": float(np.mean(errors) / world.prior_sd),
        "prior_sds_error": float(np.std(errors) / np.sqrt(len(errors)) / world.prior_sd),
        "posterior_sds": float(np.mean(errors / sds)),
        "floor_prior_sds": float(np.mean(floor) / world.prior_sd),
        "energy_distance": float(np.mean(energy)),
        "energy_distance_floor": float(np.mean(energy_floor)),
        "c2st": _mean([each and each[0] for each in told]),
        "c2st_null": _mean([each and each[1] for each in told]),
        "gain": judged[world.target].gain,
        "attributed": judged[world.target].attributed,
        "scores": {row["k"]: row[world.target]["score"] for row in choice.table()},
        "errors": list(map(float, errors)),
    }


def _floor(one: Reference, worth: float, random: np.random.Generator) -> float:
    """The distance of so many independent draws of the posterior from it."""
    uniform = random.uniform(size=(4, max(round(worth), 1)))
    draws = np.interp(uniform, LEVELS, one.quantiles)
    return float(np.mean([wasserstein_distance(row, one.quantiles) for row in draws]))


def _energy_distance(
    points: np.ndarray, weights: np.ndarray | None, joint: np.ndarray, random: np.random.Generator
) -> float:
    """Of all parameters together, in the posterior's sds, without the bias of few draws."""
    count = len(joint) // 2
    chosen = random.choice(len(points), count, p=weights)
    sd = joint.std(axis=0)
    first, second = points[chosen] / sd, joint[random.permutation(len(joint))[:count]] / sd
    apart = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2)
    within = sum(apart(each, each).sum() / (count * (count - 1)) for each in (first, second))
    return float(2 * apart(first, second).mean() - within)


def _told_apart(
    points: np.ndarray, weights: np.ndarray, joint: np.ndarray, random: np.random.Generator
) -> tuple[float, float] | None:
    """The accuracy of a classifier between cloud and posterior, and between two halves of the
    posterior's draws; none where the cloud is too small.

    A point is kept with a probability in proportion to its weight, so that none is there twice.
    """
    kept = np.flatnonzero(random.uniform(size=len(weights)) < weights / weights.max())
    if len(kept) < ATOMS:
        return None
    cloud = points[random.permutation(kept)[:ATOMS]]
    first, second = joint[:ATOMS], joint[ATOMS : 2 * ATOMS]
    return c2st(first, cloud).accuracy, c2st(first, second).accuracy


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


# Slopes, tables, picture --------------------------------------------------------------------------


def _slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slopes of log mean-error^2 against log N, with the bootstrap over test series."""
    random, made = np.random.default_rng(0), []
    for key in dict.fromkeys((row["world"], row["space"], row["method"]) for row in rows):
        own = [row for row in rows if (row["world"], row["space"], row["method"]) == key]
        errors = np.array([row["errors"] for row in own])
        logs = np.log([row["num_simulations"] for row in own])
        slope = lambda e, logs=logs: float(np.polyfit(logs, 2 * np.log(e.mean(axis=1)), 1)[0])
        count = errors.shape[1]
        again = [slope(errors[:, random.integers(count, size=count)]) for _ in range(500)]
        m = own[0]["dimension"]
        theory = -2 / (m + 2) if key[2] == "kernel" else -4 / (m + 4)
        made.append(
            dict(zip(("world", "space", "method"), key, strict=True))
            | {"slope": slope(errors), "standard_error": float(np.std(again)), "theory": theory}
        )
    return made


def _show(rows: list[dict[str, Any]], slopes: list[dict[str, Any]]) -> None:
    columns = (
        "world", "space", "method", "num_simulations", "k", "prior_sds", "prior_sds_error",
        "posterior_sds", "floor_prior_sds", "energy_distance", "c2st", "c2st_null",
        "gain", "attributed",
    )  # fmt: skip
    for title, records, names in (
        ("Distance from the exact posterior", rows, columns),
        ("Slopes of log error^2 against log N", slopes, tuple(slopes[0])),
    ):
        table = Table(title=title)
        for name in names:
            table.add_column(name.replace("_", " "))
        for record in records:
            table.add_row(*(_text(record[name]) for name in names))
        Console(width=160).print(table)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against number of simulations, a panel a world."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["world"] for row in rows))
    figure, panels = pyplot.subplots(1, len(names), figsize=(6 * len(names), 4.5), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for number, space in enumerate(SPACES):
            for method, style in zip(METHODS, ("o-", "s--"), strict=True):
                own = [
                    row for row in rows
                    if (row["world"], row["space"], row["method"]) == (name, space, method)
                ]  # fmt: skip
                if not own:
                    continue
                x = [row["num_simulations"] for row in own]
                label = f"{space}, {method}"
                panel.loglog(
                    x, [row["prior_sds"] for row in own], style, c=f"C{number}", label=label
                )
        panel.set(title=name, xlabel="simulations searched", ylabel="error in prior sds")
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Options))
