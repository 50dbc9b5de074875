"""How fast are the nearest simulations found, against exact libraries and bare simulation?

`SimulationIndex`'s search (`nearest_rows`) against faiss-cpu's IndexFlatL2 and usearch's exact
search of the same points, with as many threads as cores for each; faiss with its own choice of
method and with BLAS, whichever is faster. Rounds are interleaved; times are medians, wall and CPU
of the process, since the machine may be shared. Recall is against float64 by NumPy. Then how the
search grows with rows and queries, what low precision costs in recall, and what a search without
an index costs beyond simulating and embedding. On an accelerator, the share of the bandwidth that
one pass over the points would need is given.
`python -m benchmarks.attribution_speed [--quick]`; the libraries: `pip install sgjax[bench]`
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("EQX_ON_ERROR", "nan")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.record import finish
from sgjax.attribution import Search
from sgjax.attribution.nearest import Rows, encode, nearest_rows, padded
from sgjax.devices import available_cores, make_mesh

CORES = available_cores()
ORACLE_QUERIES = 10
BANDWIDTH = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}
"""Bytes a second, by kind of device, as their makers state it."""

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """A tenth of the rows, fewer rounds, no table of growth; under a minute."""
    rows: int = 1_000_000
    """Simulations in the index."""
    size: int = 64
    """Coordinates of a point."""
    queries: int = 100
    """Searched at once."""
    k: int = 50
    """Neighbours of each."""
    simulations: int = 2**18
    """Searched without an index."""
    rounds: int = 7
    """Repeats, of which medians are taken."""
    seed: int = 0
    """Of the points."""
    devices: int = 0
    """Only for the benchmark itself: search on so many CPU devices and print the seconds."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Measures the tables and prints them."""
    if options.devices:
        print(json.dumps(_on_devices(options)))
        return
    if options.quick:
        options = dataclasses.replace(options, rows=100_000, simulations=2**15, rounds=3)
    tables = {"search": _search(options)}
    if not options.quick:
        tables["growth"] = _growth(options)
    tables["precision"] = _precision(options)
    tables["without an index"] = _streaming(options)
    for name, rows in tables.items():
        _show(name, rows)
    result = {**dataclasses.asdict(options), "cores": CORES, "tables": tables}
    finish("attribution_speed", result, store=options.store and not options.quick)


def _points(options: Options, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(options.seed)
    count = options.rows if count is None else count
    rows = generator.standard_normal((count, options.size), dtype=np.float32)
    return rows, generator.standard_normal((options.queries, options.size), dtype=np.float32)


def _table(points: np.ndarray, dtype: str = "float32") -> Rows:
    missing = padded(len(points)) - len(points)
    unit = np.abs(points).max(axis=0) / 127 if dtype == "int8" else np.ones(points.shape[1])
    padding = np.pad(points, ((0, missing), (0, 0)))
    make = jax.jit(encode, static_argnums=3)
    exists = np.arange(len(padding)) < len(points)
    return make(padding, exists, jnp.asarray(unit, jnp.float32), jnp.dtype(dtype))


_nearest = jax.jit(nearest_rows, static_argnums=(2, 3))


def _ours(rows: Rows, queries: np.ndarray, k: int) -> Run:
    asked = jnp.asarray(queries)
    return lambda: np.asarray(jax.block_until_ready(_nearest(asked, rows, k, False))[1])


def _measure(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """By row: medians of wall and CPU seconds, and the outcome; rounds in turn."""
    outcomes = {name: run() for name, run in runs.items()}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls[name].append(time.perf_counter() - wall)
            spent[name].append(time.process_time() - cpu)
    return {
        name: {
            "seconds": float(np.median(walls[name])),
            "cpu_seconds": float(np.median(spent[name])),
            "outcome": outcomes[name],
        }
        for name in runs
    }


# Against other libraries --------------------------------------------------------------------------


def _search(options: Options) -> list[dict[str, Any]]:
    points, queries = _points(options)
    table = _table(points)
    runs = {"sgjax": _ours(table, queries, options.k)}
    for name, make in (("faiss-cpu", _faiss), ("usearch", _usearch)):
        try:
            runs |= make(points, queries, options.k)
        except ImportError:
            print(f"{name} is not installed; its row is left out (pip install sgjax[bench]).")
    rows = _measure(runs, options.rounds)
    truth = _oracle(points, queries[:ORACLE_QUERIES], options.k)
    for row in rows.values():
        row["recall"] = _recall(truth, row.pop("outcome"))
        row["times_sgjax"] = row["seconds"] / rows["sgjax"]["seconds"]
        row["cpu_times_sgjax"] = row["cpu_seconds"] / rows["sgjax"]["cpu_seconds"]
    rows["sgjax"] |= _bandwidth(rows["sgjax"]["seconds"], table)
    rows |= _several_devices(options)
    return [{"row": name, **row} for name, row in rows.items()]


def _faiss(points: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Run]:
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(CORES)
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    own = faiss.cvar.distance_compute_blas_threshold

    def run(threshold: int) -> np.ndarray:
        faiss.cvar.distance_compute_blas_threshold = threshold
        return index.search(queries, k)[1]

    return {"faiss-cpu, its choice": lambda: run(own), "faiss-cpu, BLAS": lambda: run(1)}


def _usearch(points: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Run]:
    from usearch.index import search  # pyright: ignore[reportMissingImports]

    def run() -> np.ndarray:
        return search(points, queries, k, metric="l2sq", exact=True, threads=CORES).keys

    return {"usearch, exact": run}


def _oracle(points: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The nearest by float64 differences."""
    found = []
    for query in queries.astype(np.float64):
        squares = np.sum((points - query) ** 2, axis=1)
        found.append(np.argpartition(squares, k)[:k])
    return np.stack(found)


def _recall(truth: np.ndarray, found: np.ndarray) -> float:
    pairs = zip(truth, found[: len(truth)], strict=True)
    return float(np.mean([np.isin(true, got).mean() for true, got in pairs]))


def _bandwidth(seconds: float, table: Rows) -> dict[str, float]:
    peak = BANDWIDTH.get(jax.devices()[0].device_kind)
    read = sum(leaf.nbytes for leaf in table)
    return {} if peak is None else {"share_of_bandwidth": read / peak / seconds}


def _several_devices(options: Options) -> dict[str, dict[str, float]]:
    """The same search with the rows shared out to as many CPU devices as cores."""
    if jax.default_backend() != "cpu" or CORES < 2:
        return {}
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(CORES)}
    keep = ("rows", "size", "queries", "k", "rounds", "seed")
    given = [f"--{name}={getattr(options, name)}" for name in keep]
    command = [sys.executable, "-m", "benchmarks.attribution_speed", f"--devices={CORES}", *given]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {f"sgjax, {CORES} CPU devices": json.loads(out.stdout.splitlines()[-1])}


def _on_devices(options: Options) -> dict[str, float]:
    points, queries = _points(options)
    mesh, count = make_mesh(), options.devices
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    spread = jax.sharding.NamedSharding(mesh, split)
    tables = [_table(part) for part in np.array_split(points, count)]
    values, squares = (
        jax.device_put(np.stack([np.asarray(table[place]) for table in tables]), spread)
        for place in range(2)
    )
    unit = jnp.ones(options.size)

    def find(values, squares, queries):
        rows = Rows(values.reshape(values.shape[1:]), squares.reshape(squares.shape[1:]), unit)
        return jax.tree.map(lambda leaf: leaf[None], nearest_rows(queries, rows, options.k))

    search = jax.jit(
        jax.shard_map(
            find, mesh=mesh, in_specs=(split, split, whole), out_specs=split, check_vma=False
        )
    )
    run = lambda: jax.block_until_ready(search(values, squares, queries))
    row = _measure({"all": run}, options.rounds)["all"]
    return {name: row[name] for name in ("seconds", "cpu_seconds")}


# Growth and precision -----------------------------------------------------------------------------


def _growth(options: Options) -> list[dict[str, Any]]:
    rows = []
    for share in (0.1, 0.3, 1.0):
        points, _ = _points(options, int(share * options.rows))
        table = _table(points)
        for count in (1, 10, options.queries):
            queries = np.random.default_rng(1).standard_normal((count, options.size), np.float32)
            row = _measure({"": _ours(table, queries, options.k)}, options.rounds)[""]
            row.pop("outcome")
            each = 1e9 * row["cpu_seconds"] / len(points) / count
            rows.append({"rows": len(points), "queries": count, **row, "cpu_ns_a_pair": each})
    return rows


def _precision(options: Options) -> list[dict[str, Any]]:
    points, queries = _points(options)
    truth = _oracle(points, queries[:ORACLE_QUERIES], options.k)
    rows = []
    for dtype in ("float32", "bfloat16", "int8"):
        table = _table(points, dtype)
        row = _measure({"": _ours(table, queries, options.k)}, options.rounds)[""]
        recall = _recall(truth, row.pop("outcome"))
        size = sum(leaf.nbytes for leaf in table) / 2**20
        rows.append({"dtype": dtype, "MiB": size, **row, "recall": recall})
    return rows


# Without an index ---------------------------------------------------------------------------------


def _streaming(options: Options) -> list[dict[str, Any]]:
    """Simulations per second: bare simulation and embedding, building an index, searching."""
    study = sg.Study(
        simulator=sg.simulators.SIR(population=763, ts=range(1, 15)),
        observation=sg.observations.Gaussian(sd=5.0, prior={}),
        task=sg.Estimate("beta", "gamma"),
        name="benchmark",
    )
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=4096)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=options.size, depth=2)
    search = Search(predictor, stream, options.simulations)
    blocks, asked = search.blocks, search.held_out(options.queries)
    starts = range(0, options.simulations // blocks.batch, blocks.together)

    def bare() -> None:
        for start in starts:
            jax.block_until_ready(blocks.raw(start, blocks.together))

    runs = {
        "simulate and embed": bare,
        "and build an index": lambda: sg.SimulationIndex.build(
            predictor, stream, options.simulations
        ),
        "and search, 1 query": lambda: search.nearest(asked[:1], options.k),
        "and search, 10 queries": lambda: search.nearest(asked[:10], options.k),
        f"and search, {options.queries} queries": lambda: search.nearest(asked, options.k),
    }
    rows = _measure(runs, options.rounds)
    plain = rows["simulate and embed"]["cpu_seconds"]
    return [
        {
            "row": name,
            "per_second": options.simulations / row["seconds"],
            "per_cpu_second": options.simulations / row["cpu_seconds"],
            "cpu_time_over_bare": row["cpu_seconds"] / plain,
        }
        for name, row in rows.items()
    ]


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column.replace("_", " "))
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        shown.add_row(*(cell if isinstance(cell, str) else f"{cell:,.4g}" for cell in cells))
    Console().print(shown)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
