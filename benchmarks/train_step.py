"""What does an update cost, how much of that is simulating, and what would other ways cost?

The study of the README (SIR with negative-binomial counts, the default predictor), 1,024 fresh
simulations for each update: as one compiled program; the same with stock diffrax steps; in a loop
on the host; from a file simulated before; and with other packages (`benchmarks/rivals.py`). All
rows of a table run in turn, round after round, in one process on one core; times are CPU times of
the process, medians over the rounds, compilation apart.

`python -m benchmarks.train_step [--quick] [--rivals-python PYTHON]`
"""

import dataclasses
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Before JAX counts the cores.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from benchmarks.first_step import measure_starts, show_starts
from benchmarks.readme_study import DEFAULT, predictor_and_stream, readme_sir, readme_study
from benchmarks.record import finish
from benchmarks.step_parts import Given, costs, needed, programs
from sgjax.devices import jit
from sgjax.priors import sample_prior
from sgjax.solvers import AdaptiveSteps, FixedSteps, Steps
from sgjax.training import Optimisation, Trainer, TrainState

NUM_STEPS = 100_000
"""The length of the schedule; no timing comes near it."""
EPOCHS = 10
"""How often a stored simulation is used, in the row for the file that shares its cost out."""
STOCK, FILE = "fused, stock diffrax", "file"
NUM_JUDGED = 256
LARGEST_SHARE = 0.12
"""Of an update that solving and noise may take."""

LEAST_RATIO, LEAST_RATIO_SHIPPED = 4.0, 30.0
"""To the fastest rival with a diffrax simulator, and to one with the simulator it ships."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Few updates, no stock diffrax, no fresh processes; about a minute without rivals."""
    rivals_python: Path | None = None
    """An interpreter that has the other packages (see `benchmarks/rivals.py`); else left out."""
    batch: int = 1024
    """Simulations per update."""
    width: int = 256
    """Of the network, `for_study`'s by default; on a CPU a wide one is all matrix products."""
    steps: int = 20
    """Updates per timing."""
    rounds: int = 9
    """Repeats, of which medians are taken."""
    stored: int = 2**17
    """Simulations in the file, a multiple of `batch`."""
    tolerance: float = 1e-3
    """The error that stock diffrax must reach: of each course's largest value, 99 % quantile."""
    seed: int = 0
    """Of weights and simulations."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


class Row(NamedTuple):
    """One way to make updates; `run` makes `steps` of them and gives the losses."""

    run: Callable[[], np.ndarray]
    first_seconds: float


def main(options: Options) -> None:
    """Measures all rows and parts and prints the tables."""
    if options.quick:
        options = dataclasses.replace(options, steps=4, rounds=3, stored=2**14)
    predictor, stream = predictor_and_stream(options.batch, options.seed, options.width)
    trainer = Trainer(predictor, stream, Optimisation(), NUM_STEPS)
    alone = options.quick and options.rivals_python is None
    stock, errors = (AdaptiveSteps(), {}) if alone else choose_stock(options)
    stock_stream = dataclasses.replace(stream, study=readme_study(stock))
    stock_trainer = Trainer(predictor, stock_stream, Optimisation(), NUM_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        pieces = Pieces.of(trainer)
        stored = StoredSimulations(pieces, Path(folder) / "simulations.npy", options.stored)
        looping = lambda batches: through_host(trainer, pieces, batches, options.steps)
        rows = {
            "fused": _timed(lambda: fused(trainer, options.steps)),
            "host loop": _timed(lambda: looping(fetched(pieces))),
            FILE: _timed(lambda: looping(stored.batches())),
        }
        if not options.quick:
            rows[STOCK] = _timed(lambda: fused(stock_trainer, options.steps))
        made = {} if options.quick else programs(trainer, options.steps)
        parts = {name: _timed(make) for name, make in made.items()}
        seconds, losses = interleave(rows | parts, options.rounds)
    for epochs in (1, EPOCHS):
        share = stored.seconds / stored.count * options.batch * options.steps / epochs
        seconds[f"{FILE}, made for {epochs} epoch(s)"] = seconds[FILE] + share
    result: dict[str, Any] = {
        **{name: value for name, value in vars(options).items() if name != "rivals_python"},
        "weights": int(trainer.params.size),
        "solver_errors_q99": errors,
        "rows": summarise(seconds, rows, losses, options),
        "file": stored.summary(),
    }
    show(result)
    if options.rivals_python is not None:
        result["rivals"] = measure_rivals(options, result["weights"], stock)
        show_rivals(result)
    if not options.quick:
        result["parts"] = costs(seconds, options.steps, options.batch)
        show_parts(result)
        result["starts"] = measure_starts()
        show_starts(result["starts"])
    name = "train_step" if options.width == 256 else f"train_step_width_{options.width}"
    finish(name, result, store=options.store and not options.quick)


def choose_stock(options: Options) -> tuple[AdaptiveSteps, dict[str, float]]:
    """The loosest adaptive steps of stock diffrax that reach the tolerance; errors by solver."""
    prior = readme_sir().prior
    keys = jax.random.split(jax.random.key(options.seed + 2), NUM_JUDGED)
    thetas = jax.jit(jax.vmap(lambda key: sample_prior(key, prior)))(keys)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(value), float) for name, value in thetas.items()}
        exact = _courses(FixedSteps(128), wide)
    scale = np.abs(exact).max(axis=1, keepdims=True)

    def error(solver: Steps) -> float:
        gaps = (np.abs(_courses(solver, thetas) - exact) / scale).max(axis=(1, 2))
        return float(np.quantile(np.nan_to_num(gaps, nan=np.inf), 0.99, method="higher"))

    errors = {"default": error(DEFAULT)}
    for digits in (4,) if options.quick else range(2, 8):
        solver = AdaptiveSteps(10.0**-digits, 10.0 ** -(digits + 3))
        label = f"adaptive, rtol 1e-{digits}"
        errors[label] = error(solver)
        if errors[label] <= options.tolerance:
            return solver, errors
    raise ValueError(f"No adaptive setting reaches {options.tolerance:g}; raise `tolerance`.")


def _courses(solver: Steps, thetas: dict[str, Array]) -> np.ndarray:
    simulator = readme_sir(solver)
    keys = jax.random.split(jax.random.key(0), NUM_JUDGED)
    courses = jax.jit(lambda keys, thetas: simulator.simulate_batch(keys, thetas).values)
    return np.asarray(courses(keys, thetas))


def _timed(make: Callable[[], Callable[[], np.ndarray]]) -> Row:
    """Makes a row and runs it once, compilation included."""
    start = time.perf_counter()
    run = make()
    run()
    return Row(run, time.perf_counter() - start)


def fused(trainer: Trainer, steps: int) -> Callable[[], np.ndarray]:
    """The program of `sgjax.train`: simulate, predict, score and update, `steps` times."""
    state = trainer.initial_state()
    program = trainer.compiled(steps, state)

    def run() -> np.ndarray:
        nonlocal state
        state, metrics = program(state)
        return np.asarray(metrics.loss)

    return run


class Pieces(NamedTuple):
    """The fused step in two programs, for data that pass through the host."""

    simulate: Callable[[np.ndarray], Given]
    update: Callable[[TrainState, Given], tuple[TrainState, Array]]
    """The trainer's own, on a batch from elsewhere."""

    @classmethod
    def of(cls, trainer: Trainer) -> "Pieces":
        def update(state: TrainState, batch: Given) -> tuple[TrainState, Array]:
            state, metrics = trainer.update(state, batch)  # pyright: ignore[reportArgumentType]
            return state, metrics.loss

        simulate = jit(lambda step: needed(trainer.stream.batch(step)))
        return cls(simulate, jit(update, donate_argnums=0))


def through_host(
    trainer: Trainer, pieces: Pieces, batches: Iterator[Given], steps: int
) -> Callable[[], np.ndarray]:
    """One dispatch per update, on batches of NumPy arrays."""
    state = trainer.initial_state()

    def run() -> np.ndarray:
        nonlocal state
        losses = []
        for batch in itertools.islice(batches, steps):
            state, loss = pieces.update(state, jax.device_put(batch))
            losses.append(loss)
        return np.asarray(losses)

    return run


def fetched(pieces: Pieces) -> Iterator[Given]:
    """The batches of the stream, one dispatch each, fetched to the host."""
    for step in itertools.count():
        yield jax.device_get(pieces.simulate(np.asarray(step, np.uint32)))


class StoredSimulations:
    """Simulations in a memory-mapped .npy file, one record each: a row is read in one piece."""

    def __init__(self, pieces: Pieces, path: Path, count: int):
        leaves, self.form = jax.tree.flatten(next(fetched(pieces)))
        self.count, self.batch_size = count, len(leaves[0])
        self.names = [f"array_{index}" for index in range(len(leaves))]
        pairs = zip(self.names, leaves, strict=True)
        record = np.dtype([(name, leaf.dtype, leaf.shape[1:]) for name, leaf in pairs])
        start = time.process_time()
        file = np.lib.format.open_memmap(path, "w+", record, (count,))
        for first, batch in zip(range(0, count, self.batch_size), fetched(pieces), strict=False):
            for name, leaf in zip(self.names, jax.tree.leaves(batch), strict=True):
                file[name][first : first + self.batch_size] = leaf
        file.flush()
        self.seconds = time.process_time() - start
        self.file = np.load(path, mmap_mode="r")

    def batches(self) -> Iterator[Given]:
        """Epoch after epoch, each in another order."""
        random = np.random.default_rng(0)
        while True:
            for places in random.permutation(self.count).reshape(-1, self.batch_size):
                rows = self.file[places]
                yield jax.tree.unflatten(
                    self.form, [np.ascontiguousarray(rows[name]) for name in self.names]
                )

    def summary(self) -> dict[str, float]:
        """Its size, and what it cost."""
        return {
            "simulations": self.count,
            "bytes_per_simulation": self.file.dtype.itemsize,
            "write_microseconds_per_simulation": 1e6 * self.seconds / self.count,
        }


def interleave(
    rows: dict[str, Row], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs the rows in turn; by row, CPU seconds of each round and the losses of the last."""
    seconds, losses = {name: np.zeros(rounds) for name in rows}, {}
    for index in range(rounds):
        for name, row in rows.items():
            start = time.process_time()
            losses[name] = row.run()
            seconds[name][index] = time.process_time() - start
    return seconds, losses


def summarise(
    seconds: dict[str, np.ndarray],
    rows: dict[str, Row],
    losses: dict[str, np.ndarray],
    options: Options,
) -> dict[str, dict[str, float | None]]:
    """By row: updates and simulations per CPU second, and how many times the fused step's cost."""
    table = {}
    for name, spent in seconds.items():
        if name in rows or name.startswith(FILE):
            rate = options.steps / float(np.median(spent))
            table[name] = {
                "steps_per_cpu_second": rate,
                "simulations_per_cpu_second": rate * options.batch,
                "cost_over_fused": float(np.median(spent / seconds["fused"])),
                "first_call_seconds": rows[name].first_seconds if name in rows else None,
                "last_loss": float(losses[name][-1]) if name in rows else None,
            }
    return table


def show(result: dict[str, Any]) -> None:
    """The ways to make updates."""
    title = f"Updates on {result['batch']:,} fresh simulations, {result['weights']:,} weights"
    table = Table(title=f"{title}, one core")
    for column in ("", "updates/s", "simulations/s", "x fused", "first call, s", "last loss"):
        table.add_column(column)
    for name, row in result["rows"].items():
        first, loss = row["first_call_seconds"], row["last_loss"]
        table.add_row(
            name,
            f"{row['steps_per_cpu_second']:.1f}",
            f"{row['simulations_per_cpu_second']:,.0f}",
            f"{row['cost_over_fused']:.2f}",
            "" if first is None else f"{first:.1f}",
            "" if loss is None else f"{loss:.4f}",
        )
    console = Console()
    console.print(table)
    for solver, error in result["solver_errors_q99"].items():
        console.print(f"error of the steps, {solver}: {error:.0e}")
    file = result["file"]
    console.print(
        f"file: {file['simulations']:,} simulations of {file['bytes_per_simulation']} bytes, "
        f"{file['write_microseconds_per_simulation']:.1f} us each to simulate and write"
    )
    gap = abs(result["rows"]["fused"]["last_loss"] - result["rows"]["host loop"]["last_loss"])
    updates = result["steps"] * (result["rounds"] + 1)
    console.print(f"host loop and fused differ by {gap:.1e} in the loss after {updates} updates")


def show_parts(result: dict[str, Any]) -> None:
    """What an update is made of."""
    table = Table(title="The fused step")
    for column in ("part", "us per simulation", "share"):
        table.add_column(column)
    for name, cost in result["parts"].items():
        table.add_row(name, f"{cost['microseconds_per_simulation']:.2f}", f"{cost['share']:.1%}")
    console = Console()
    console.print(table)
    parts = result["parts"]
    alone = parts["solve"]["share"] + parts["noise"]["share"]
    # Less an update on a batch that is there already: the strictest reading.
    for text, share in (
        ("solving and noise by themselves", alone),
        ("all that simulating adds to the step", parts["added by simulating"]["share"]),
    ):
        met = _met(share <= LARGEST_SHARE)
        console.print(f"{text}: {share:.1%} (target: at most {LARGEST_SHARE:.0%}, {met})")


def measure_rivals(options: Options, weights: int, stock: AdaptiveSteps) -> dict[str, Any]:
    """What `benchmarks/rivals.py` finds in the other interpreter."""
    asked = {
        "batch": options.batch,
        "steps": options.steps,
        "rounds": options.rounds,
        "weights": weights,
        "rtol": stock.relative_tolerance,
        "atol": stock.absolute_tolerance,
    }
    command = [str(options.rivals_python), "-m", "benchmarks.rivals", json.dumps(asked)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{options.rivals_python} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show_rivals(result: dict[str, Any]) -> None:
    """The other packages, and the ratios to them."""
    ours, rows = result["rows"]["fused"]["steps_per_cpu_second"], result["rivals"]["rows"]
    table = Table(title="The same number of weights in other packages")
    for column in ("", "weights", "updates/s", "simulations/s", "simulating", "fused is x as fast"):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['weights']:,}",
            f"{row['steps_per_cpu_second']:.2f}",
            f"{row['simulations_per_cpu_second']:,.0f}",
            f"{row['share_simulating']:.0%}",
            f"{ours / row['steps_per_cpu_second']:.1f}",
        )
    for name in result["rivals"]["not_installed"]:
        table.add_row(name, "not installed")
    console = Console()
    console.print(table)
    for kind, target in (("diffrax", LEAST_RATIO), ("shipped", LEAST_RATIO_SHIPPED)):
        speeds = [r["steps_per_cpu_second"] for n, r in rows.items() if n.endswith(kind)]
        if speeds:
            ratio = ours / max(speeds)
            met = _met(ratio >= target)
            console.print(f"{ratio:.1f} x the best with {kind} (target: {target:g} x, {met})")


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
