"""Learned simulators, system by system, judged by one protocol.

Each is trained on endless simulations for a stated budget, then rolled out from held-out states
beside its solver, persistence, the best linear map and the nearest stored simulation, within the
world it was trained on and outside of it. Its time is held against the solver's at equal error:
where the solver is faster, the table says so. `python -m benchmarks.learned_simulation [--quick]`
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.learned_worlds import SYSTEMS, System
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax import steppers
from sgjax.rollout import RolloutReport, measures, speed_up
from sgjax.rollout.protocol import REFERENCES, World
from sgjax.solvers import FixedSteps, GridSteps

NAME = "learned_simulation"


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One system, hardly trained; under a minute; nothing is stored."""
    systems: tuple[str, ...] = tuple(SYSTEMS)
    """Which systems."""
    seeds: int = 1
    """Networks of each."""
    courses: int = 64
    """Held-out courses of each world."""
    repeats: int = 5
    """Timings of each program, of which the median counts."""


def main(options: Options) -> None:
    """Runs every system; each is kept as soon as it is done."""
    if options.quick:
        options = dataclasses.replace(
            options, systems=("Lorenz-63",), seeds=1, courses=8, repeats=2
        )
    rows = {}
    with lightly_compiled(options.quick):
        for name in options.systems:
            rows[name] = system(name, options) | {"commit": circumstances()["commit"]}
            show(name, rows[name])
            if not options.quick:
                whole = kept(NAME).get("systems", {}) | {name: rows[name]}
                keep(NAME, {"benchmark": NAME, **circumstances(), "systems": whole})
    whole = rows if options.quick else kept(NAME).get("systems", {}) | rows
    summary(whole)
    finish(NAME, {**dataclasses.asdict(options), "systems": whole}, store=not options.quick)


def system(name: str, options: Options) -> dict[str, Any]:
    """Every seed of one system."""
    asked = SYSTEMS[name]
    if options.quick:
        few = tuple((objective, 60) for objective, _ in asked.objectives[:1])
        asked = dataclasses.replace(asked, objectives=few, judged=64, outside={})
    found = [one(name, asked, seed, options) for seed in range(options.seeds)]
    return {"domain": asked.domain, "architecture": asked.architecture, "seeds": found}


def one(name: str, asked: System, seed: int, options: Options) -> dict[str, Any]:
    """One network: trained, judged, timed."""
    study = asked.trained(asked.frames)
    key = jax.random.key(seed)
    predictor = steppers.for_study(
        study, key, architecture=asked.architecture, width=asked.width, objective=None,
        **asked.options,
    )  # fmt: skip
    heard: list[Any] = []
    for stage, (objective, steps) in enumerate(asked.objectives):
        stream = sg.SimulationStream(study, jax.random.fold_in(key, stage), asked.batch)
        # Each stage begins at the rate where the one before it was useful.
        rate = sg.Optimisation(learning_rate=asked.learning_rate / 4**stage)
        predictor = sg.train(
            steppers.with_objective(predictor, objective), stream, steps,
            interval=max(1, steps // 4), optimisation=rate, callbacks=[heard.append],
        )  # fmt: skip
        last = heard[-1]
        print(f"{name}, seed {seed}: stage {stage + 1}, loss {last.loss:.3g}", flush=True)
    worlds = {"as trained": asked.trained(asked.judged)}
    worlds |= {label: make(asked.judged) for label, make in asked.outside.items()}
    start = time.perf_counter()
    report = sg.judge(
        predictor, worlds, jax.random.key(2000 + seed), courses=options.courses,
        lyapunov_time=asked.lyapunov_time, invariants=asked.invariants,
    )  # fmt: skip
    network = steppers.stepper_of(predictor)
    ends = [
        r for r, n in zip(heard, [*heard[1:], None], strict=True) if n is None or n.step <= r.step
    ]
    return {
        "updates": sum(steps for _, steps in asked.objectives),
        "simulations": asked.batch * sum(steps for _, steps in asked.objectives),
        "weights": sum(leaf.size for leaf in jax.tree.leaves(_weights(network))),
        "training_seconds": sum(report.seconds for report in ends),
        "compile_seconds": sum(report.compile_seconds for report in ends),
        "judging_seconds": time.perf_counter() - start,
        "rows": report.rows,
        "speed": speed(predictor, worlds["as trained"], report, asked, options),
    }


def _weights(network: Any) -> Any:
    from flax import nnx

    return nnx.state(network, nnx.Param)


# Speed --------------------------------------------------------------------------------------------


def speed(
    predictor: sg.Predictor, study: sg.Study, report: RolloutReport, asked: System,
    options: Options,
) -> dict[str, Any]:  # fmt: skip
    """The solver's time at equal error over the learned simulator's, on the same courses.

    The error is the mean over the first steps of the error in deviations, up to where the learned
    simulator's median valid time ends: later, chaos makes all errors alike.
    """
    world, scales = report.worlds["as trained"], report.scales
    valid = report.row("as trained")["valid time"] * scales.lyapunov_time / scales.dt
    steps = int(np.clip(valid, 2, world.truth.shape[1]))
    error = lambda made: measures.scaled_error(
        np.asarray(made, np.float64)[:, :steps], world.truth[:, :steps], scales.sd
    ).mean(axis=1)
    told = {name: world.thetas[name] for name in study.known}
    held = world.controls if world.controls.shape[-1] else None
    length = world.truth.shape[1]
    model = lambda: sg.rollout(predictor, world.frames, length, told, held)
    seconds = timed(model, options.repeats)
    settings, errors, taken = [], [], []
    for label, run in solvers(study, world, asked):
        made = np.asarray(run())[:, -length:]
        if np.isfinite(made).all():
            settings.append(label)
            errors.append(error(made))
            taken.append(timed(run, options.repeats))
    found = speed_up(error(report.predicted["as trained"]["learned"]), seconds, errors, taken)
    return {
        **dataclasses.asdict(found),
        "steps_compared": steps,
        "microseconds_a_step": 1e6 * seconds / (length * len(world.truth)),
        "solver": [
            {"setting": s, "error": float(e.mean()), "seconds": t}
            for s, e, t in zip(settings, errors, taken, strict=True)
        ],
        "learned_error": float(error(report.predicted["as trained"]["learned"]).mean()),
    }


def solvers(study: sg.Study, world: World, asked: System) -> list[tuple[str, Any]]:
    """The solver in ever finer settings, each as a compiled program of the same courses."""
    (simulator,) = study.mechanisms.values()
    thetas: dict[str, Any] = dict(world.thetas)
    if asked.restart is not None:
        simulator, thetas = asked.restart(simulator, thetas, world.frames)
    thetas = {name: jnp.asarray(values, jnp.float32) for name, values in thetas.items()}
    keys = jax.random.split(jax.random.key(0), len(world.truth))
    own: Any = simulator
    assert isinstance(own.solver, GridSteps)
    kinds: list[Any] = [own.solver]
    if isinstance(own.solver, FixedSteps):
        kinds = [FixedSteps(method=method) for method in asked.methods]  # pyright: ignore
    programs = []
    for kind in kinds:
        for count in (1, 2, 4, 8):
            solver = dataclasses.replace(kind, num_substeps=count)
            finer = dataclasses.replace(own, solver=solver)
            program = jax.jit(lambda thetas, s=finer: s.simulate_batch(keys, thetas).values)
            label = f"{getattr(kind, 'method', type(kind).__name__)}, {count} sub-steps"
            programs.append((label, lambda program=program: program(thetas)))
    return programs


def timed(run: Any, repeats: int) -> float:
    """The median time of a compiled program, in seconds."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# Tables -------------------------------------------------------------------------------------------


def show(name: str, found: dict[str, Any]) -> None:
    """The table of a system: medians over seeds."""
    columns = ("one step", "valid time", "histogram distance", "survival")
    table = Table(title=f"{name} ({found['domain']}), {found['architecture']}")
    for title in ("world", "model", *columns):
        table.add_column(title)
    for index, row in enumerate(found["seeds"][0]["rows"]):
        values = [[seed["rows"][index][column] for seed in found["seeds"]] for column in columns]
        cells = ["-" if v[0] is None else f"{statistics.median(v):.4g}" for v in values]
        table.add_row(row["world"], row["model"], *cells)
    Console(width=110).print(table)
    for seed, each in enumerate(found["seeds"]):
        fast = each["speed"]
        bound = f"{fast['bound']} " if fast["bound"] else ""
        print(
            f"seed {seed}: {each['training_seconds']:.0f} s of training, {each['weights']:,} "
            f"weights; at equal error the solver takes {bound}{fast['ratio']:.3g} "
            f"({fast['low']:.3g} to {fast['high']:.3g}) times as long"
        )


def summary(systems: dict[str, Any]) -> None:
    """All systems, a line each; medians over seeds."""
    table = Table(title="Learned simulators")
    for title in (
        "system", "network", "one step, over the best baseline's", "valid time",
        "nearest simulation's", "its solver's", "outside", "training, s", "solver's time",
    ):  # fmt: skip
        table.add_column(title)
    for name, found in systems.items():
        table.add_row(name, found["architecture"], *_line(found["seeds"]))
    Console(width=140).print(table)


def _line(seeds: list[dict[str, Any]]) -> list[str]:
    def middle(world: str, model: str, column: str) -> float:
        rows = [r for s in seeds for r in s["rows"] if (r["world"], r["model"]) == (world, model)]
        return statistics.median(row[column] for row in rows)

    first = seeds[0]["rows"]
    worlds = list(dict.fromkeys(row["world"] for row in first))
    error = middle("as trained", "learned", "one step")
    best = min(middle("as trained", model, "one step") for model in REFERENCES)
    valid = [middle("as trained", m, "valid time") for m in ("learned", REFERENCES[-1])]
    solved = middle("as trained", "its solver", "valid time")
    longest = next(row["longest"] for row in first if row["world"] == "as trained")
    outside = [middle(world, "learned", "valid time") for world in worlds[1:]]
    speed = statistics.median(seed["speed"]["ratio"] for seed in seeds)
    to_the_end = lambda time: f"{time:.3g}" + (" (all)" if time >= longest * (1 - 1e-6) else "")
    return [
        f"{error:.2g} ({error / best:.2g})",
        *map(to_the_end, (*valid, solved)),
        ", ".join(f"{time:.3g}" for time in outside) or "-",
        f"{statistics.median(seed['training_seconds'] for seed in seeds):.0f}",
        f"{speed:.2g}",
    ]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
