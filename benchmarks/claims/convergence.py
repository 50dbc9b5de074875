"""Does a trained network tend to the Bayes predictor, and how fast with the number of simulations?

In worlds whose Bayes predictor is known, the excess risk over it against the number of simulations,
for squared, pinball and log loss and the cross-entropy, each run with its own schedule. Few
simulations are used again and again, and the state with the least loss on an eighth of them, kept
apart, is taken; many are seen once. Networks of several widths show where the approximation takes
over. Beside them: a linear regression, and a network whose labels were shuffled.

`python -m benchmarks.claims.convergence [--quick] [--worlds NAME ...] [--counts N ...]`; rows that
are stored are not computed again.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.claims.exact import FIRST_TEST, HEADS, WORLDS, World
from benchmarks.claims.tables import table, verdict
from benchmarks.record import circumstances, finish, keep, kept, lightly_compiled
from sgjax.study import Simulation
from sgjax.trainer import Optimisation, Trainer

NAME = "claim_convergence"

REUSED = 2**17
"""Up to so many simulations are used again and again; more are seen once."""

CLASSES = ("conjugate classes", "SIR or SEIR")
"""Worlds that ask which mechanism it was."""

CHECKS = 40
"""How often the loss on simulations kept apart is taken."""

TARGETS = {
    "share_of_bayes_risk": {"conjugate": 1e-3, "logistic growth": 1e-2, "SIR": 1e-2},
    "divergence": {
        "conjugate": 5e-4, "conjugate classes": 5e-4,
        "logistic growth": 5e-3, "SIR": 5e-3, "SIR or SEIR": 5e-3,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """The closed-form world, few simulations; under half a minute."""
    worlds: tuple[str, ...] = tuple(WORLDS)
    """Which worlds."""
    losses: tuple[str, ...] = ("squared", "pinball", "log", "cross-entropy")
    """Which losses, of those that a world has."""
    counts: tuple[int, ...] = (2**9, 2**11, 2**13, 2**15, 2**17, 2**20, 2**23, 2**27)
    """Simulations of each run."""
    width: int = 128
    """Of the networks."""
    widths: tuple[int, ...] = (8, 32, 512)
    """Other widths, in the worlds' first losses, of up to `widest` simulations."""
    widest: int = 2**23
    """See `widths`."""
    tests: int = 2000
    """Series on which a network is judged."""
    updates: int = 3000
    """Least number of updates of runs that use simulations again."""
    seeds: int = 1
    """Runs of each kind; seed 0 alone beyond 2^20 simulations."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a row from the others."""

    world: str
    loss: str
    count: int
    width: int
    seed: int
    kind: str = "network"
    """"network", or the controls: "linear regression", "shuffled labels"."""


class Shuffled(sg.SimulationStream):
    """A stream whose targets belong to another simulation."""

    def batches(self, step, count):
        made = super().batches(step, count)
        turned = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=1), made.example.targets)
        return dataclasses.replace(made, example=dataclasses.replace(made.example, targets=turned))


def main(options: Options) -> dict[str, Any]:
    """Runs whatever is not kept yet; each row is kept as soon as it is done."""
    if options.quick:
        options = dataclasses.replace(
            options, worlds=("conjugate",), losses=("squared",), counts=(2**9, 2**12),
            widths=(), tests=500, updates=600,
        )  # fmt: skip
    rows: list[dict[str, Any]] = [] if options.quick else kept(NAME).get("rows", [])
    worlds: dict[str, World] = {}
    for run in runs(options):
        if any(dataclasses.asdict(run).items() <= known.items() for known in rows):
            continue
        if run.world not in worlds:
            worlds[run.world] = WORLDS[run.world]()
        rows.append(row(worlds[run.world], run, options))
        Console().print(_line(rows[-1]))
        if not options.quick:
            keep(NAME, {"benchmark": NAME, **circumstances(), **summary(rows)})
    show(rows)
    result = {"options": dataclasses.asdict(options), **summary(rows)}
    finish(NAME, result, store=not options.quick)
    return result


def runs(options: Options) -> list[Run]:
    """All runs, the cheap ones first."""
    asked = []
    for name in options.worlds:
        losses = ("cross-entropy",) if name in CLASSES else tuple(HEADS)
        for loss in (each for each in losses if each in options.losses):
            for count in options.counts:
                repeats = options.seeds if count <= 2**20 else 1
                asked += [Run(name, loss, count, options.width, seed) for seed in range(repeats)]
                if loss == losses[0] and count <= options.widest:
                    asked += [Run(name, loss, count, width, 0) for width in options.widths]
            if loss == "squared":
                most = min(REUSED, max(options.counts))
                asked.append(Run(name, loss, most, 0, 0, "linear regression"))
                if not options.quick:
                    asked.append(Run(name, loss, 2**15, options.width, 0, "shuffled labels"))
    return sorted(asked, key=lambda run: run.count)


def row(world: World, run: Run, options: Options) -> dict[str, Any]:
    """One run: train, judge."""
    start = time.perf_counter()
    stream = sg.SimulationStream(world.study, jax.random.key(run.seed), 64)
    test = stream.held_out().take(options.tests, FIRST_TEST)
    settings: dict[str, Any] = {}
    if run.kind == "linear regression":
        predictor = regression(world, run)
    else:
        predictor, settings = trained(world, run, options.updates)
    settings["training_seconds"] = time.perf_counter() - start
    excess = world.judge(run.loss, predictor, test, run.seed)
    seconds = time.perf_counter() - start
    tests = {"tests": options.tests, "commit": circumstances()["commit"]}
    return dataclasses.asdict(run) | excess.result() | settings | tests | {"seconds": seconds}


def trained(world: World, run: Run, updates: int) -> tuple[sg.Predictor, dict[str, Any]]:
    """A network with its own schedule for its number of simulations."""
    head = HEADS.get(run.loss)
    heads = None if head is None else dict.fromkeys(world.study.specs, head)
    key = jax.random.fold_in(jax.random.key(run.seed), run.count)
    blank = sg.predictors.for_study(world.study, key, heads=heads, width=run.width)
    kind = Shuffled if run.kind == "shuffled labels" else sg.SimulationStream
    if run.count > REUSED:
        stream = kind(world.study, key, 1024)
        steps = run.count // 1024
        made = sg.train(blank, stream, steps, interval=min(steps, 1000))
        return made, {"batch": 1024, "steps": steps, "epochs": 1}
    return reused(blank, kind, key, run.count, updates)


def reused(
    blank: sg.Predictor, kind: type[sg.SimulationStream], key: Any, count: int, updates: int
) -> tuple[sg.Predictor, dict[str, Any]]:
    """A network from few simulations: an eighth of them chooses the state."""
    batch = max(32, min(1024, count // 16))
    inner = count * 7 // 8
    stream = kind(blank.study, key, batch, num_simulations=inner)
    epochs = max(20, -(-updates * batch // inner))
    interval = max(1, epochs * (inner // batch) // CHECKS)
    steps = CHECKS * interval
    trainer = Trainer(blank, stream, Optimisation(), steps)
    apart = sg.SimulationStream(blank.study, key, batch).take(count - inner, inner)
    if kind is Shuffled:
        turned = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), apart.example.targets)
        apart = dataclasses.replace(
            apart, example=dataclasses.replace(apart.example, targets=turned)
        )
    loss = jax.jit(lambda state: trainer.loss(state.average, state.constants, apart)[0])
    state = trainer.initial_state()
    best, chosen, at = np.inf, jnp.copy(state.average), 0
    for check in range(1, CHECKS + 1):
        state = trainer.compiled(interval, state)(state)[0]
        value = float(loss(state))
        if value < best:
            best, chosen, at = value, jnp.copy(state.average), check * interval
    made = trainer.predictor(state._replace(average=chosen))
    return made, {"batch": batch, "steps": steps, "chosen_step": at, "epochs": epochs}


class Linear:
    """Least squares of the targets on what a network would see, in place of a predictor."""

    def __init__(self, scaling: Any, made: Simulation):
        self.scaling = scaling
        (target,) = made.example.targets.values()
        design = np.asarray(jax.jit(jax.vmap(self.features))(made.example.inputs), np.float64)
        values = np.asarray(target.values, np.float64)
        self.weights = jnp.asarray(np.linalg.lstsq(design, values, rcond=None)[0], jnp.float32)

    def features(self, inputs: Any) -> jax.Array:
        """A constant and all views."""
        return jnp.append(jnp.ravel(self.scaling(inputs).views), 1.0)

    def network(self, inputs: Any) -> tuple[jax.Array, dict[str, Any]]:
        """As a network answers."""
        found = self.features(inputs) @ self.weights
        return found, {"linear": sg.predictors.Point(found, jnp.ones(found.shape))}


def regression(world: World, run: Run) -> Any:
    """A linear regression from so many simulations."""
    key = jax.random.key(run.seed)
    blank = sg.predictors.for_study(world.study, key, width=8)
    return Linear(blank.network.scaling, sg.SimulationStream(world.study, key, 64).take(run.count))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, slopes and what became of the targets."""
    return {"rows": rows, "slopes": slopes(rows), "targets": TARGETS, "verdicts": verdicts(rows)}


def curve(rows: list[dict[str, Any]], world: str, loss: str, width: int) -> list[dict[str, Any]]:
    """The networks of one width by their number of simulations: means over seeds."""
    own = [
        row for row in rows
        if (row["world"], row["loss"], row["width"], row["kind"]) == (world, loss, width, "network")
    ]  # fmt: skip
    points = []
    for count in sorted({row["count"] for row in own}):
        here = [row for row in own if row["count"] == count]
        values = np.array([row["excess"] for row in here])
        # All seeds share the test series.
        error = np.mean([row["standard_error"] for row in here])
        points.append({"count": count, "excess": float(values.mean()), "error": float(error),
                       "bayes_risk": here[0]["bayes_risk"], "seeds": len(here)})  # fmt: skip
    return points


def curves(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """All of them."""
    kinds = dict.fromkeys(
        (row["world"], row["loss"], row["width"]) for row in rows if row["kind"] == "network"
    )
    return {kind: curve(rows, *kind) for kind in kinds}


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Least-squares slopes of ln excess by ln simulations, where the excess is told from 0."""
    found = []
    for (world, loss, width), points in curves(rows).items():
        clear = [p for p in points if p["excess"] > 3 * p["error"]]
        if len(clear) >= 3:
            logs = np.log([[p["count"], p["excess"]] for p in clear])
            slope = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
            found.append({"world": world, "loss": loss, "width": width, "slope": slope,
                          "counts": [p["count"] for p in clear]})  # fmt: skip
    return found


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of each world and loss beside its target."""
    found = []
    for (world, loss, width), points in curves(rows).items():
        kind = "share_of_bayes_risk" if loss in ("squared", "pinball") else "divergence"
        target = TARGETS[kind].get(world)
        if target is None:
            continue
        last = points[-1]
        scale = last["bayes_risk"] if kind == "share_of_bayes_risk" else 1.0
        value, error = last["excess"] / scale, last["error"] / scale
        found.append({
            "world": world, "loss": loss, "width": width, "count": last["count"], "value": value,
            "standard_error": error, "target": target, "met": bool(value <= target),
        })  # fmt: skip
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """A table: one line a world, loss and width."""
    counts = sorted({row["count"] for row in rows if row["kind"] == "network"})
    shown = Table(title="Excess risk over the exact Bayes predictor, by number of simulations")
    for name in ("world", "loss", "width", *(f"{n:,}" for n in counts), "Bayes risk"):
        shown.add_column(name)
    for (world, loss, width), points in curves(rows).items():
        by_count = {p["count"]: f"{p['excess']:.2g} ± {p['error']:.1g}" for p in points}
        cells = (by_count.get(count, "") for count in counts)
        shown.add_row(world, loss, str(width), *cells, f"{points[0]['bayes_risk']:.3g}")
    Console().print(shown)
    for row in rows:
        if row["kind"] != "network":
            Console().print(_line(row))


def section(result: Mapping[str, Any]) -> str:
    """The curves as tables, and what became of the targets."""
    rows = result["rows"]
    counts = sorted({row["count"] for row in rows if row["kind"] == "network"})
    lines = []
    for (world, loss, width), points in curves(rows).items():
        cells = {p["count"]: f"{p['excess']:.2g} ± {p['error']:.1g}" for p in points}
        own = (cells.get(count, "") for count in counts)
        lines.append((world, loss, width, *own, f"{points[0]['bayes_risk']:.3g}"))
    parts = [table(("world", "loss", "width", *(f"{n:,}" for n in counts), "Bayes risk"), lines)]
    parts += [f"- {_line(row)}" for row in rows if row["kind"] != "network"]
    parts += [""]
    if result["slopes"]:
        parts.append(table(
            ("world", "loss", "width", "log-log slope"),
            [(s["world"], s["loss"], s["width"], f"{s['slope']:.2f}") for s in result["slopes"]],
        ))  # fmt: skip
    parts.append(table(
        ("world", "loss", "width", "simulations", "excess", "target", ""),
        [
            (v["world"], v["loss"], v["width"], f"{v['count']:,}",
             f"{v['value']:.2g} ± {v['standard_error']:.1g}", v["target"], verdict(v["met"]))
            for v in result["verdicts"]
        ],
    ))  # fmt: skip
    parts.append(
        "Excess of squared and pinball loss as a share of the Bayes risk, of the others in nats.\n"
    )
    return "\n".join(parts)


def picture(result: dict[str, Any]) -> Figure:
    """Excess against simulations, a panel for each world and loss, a line for each width."""
    kinds = curves(result["rows"])
    panels = list(dict.fromkeys((world, loss) for world, loss, _ in kinds))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, (world, loss) in enumerate(panels):
        for (*panel, width), points in kinds.items():
            if tuple(panel) == (world, loss):
                x, y = [p["count"] for p in points], [p["excess"] for p in points]
                axes[place].errorbar(x, y, [p["error"] for p in points], marker="o", ms=3, lw=1,
                                     label=f"width {width}")  # fmt: skip
        unit = "nats" if loss in ("log", "cross-entropy") else "excess risk"
        axes[place].set(xscale="log", yscale="log", title=f"{world}, {loss}", ylabel=unit,
                        xlabel="simulations")  # fmt: skip
        axes[place].legend(fontsize="x-small", frameon=False)
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _line(row: dict[str, Any]) -> str:
    who = f"{row['world']}, {row['loss']}, {row['kind']}, width {row['width']}"
    excess = f"{row['excess']:.3g} ± {row['standard_error']:.1g}"
    of = f"{row['share_of_bayes_risk']:.2%} of the Bayes risk"
    return f"{who}, {row['count']:,} simulations: {excess} ({of}), {row['seconds']:.0f} s"


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    with lightly_compiled(asked.quick):
        main(asked)
