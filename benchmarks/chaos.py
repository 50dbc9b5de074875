"""Does a run that is killed again and again end with the numbers of one that was left alone?

Two processes train a tiny run, keep a state at every interval, then build an index of simulations
together and save it. At random moments one of them is killed (SIGKILL): while it starts, trains,
writes a state, or makes the index. The other must end by itself. After each kill the newest state
that was finished must be intact and no older than before, and an index that is there must be
complete; then both are started again. In the end weights and index must be those of the
undisturbed run, to the bit. `python -m benchmarks.chaos [--quick] [--processes 1]`
"""

import collections
import dataclasses
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.record import finish
from sgjax.checkpoint import fault_of
from sgjax.devices import ends_with_others, initialise
from sgjax.runs import Saving, Session, Source
from sgjax.studies import Preset

STUDY = """
import numpyro.distributions as dist
import sgjax as sg

study = sg.Study(
    sg.simulators.ExponentialDecay(
        prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[1, 2, 3, 4, 5, 6]
    ),
    sg.observations.Gaussian(sd=0.05, prior={}),
    sg.Estimate(),
    name="decay",
)
"""

STEPS_PER_KILL, REST = 1_000, 1_000
"""Updates of the run, for each kill in training and after the last of them."""

IN_INDEX = 0.3
"""The share of kills that wait for the training to end, and hit the making of the index."""

EARLY = 0.3
"""Of the others, the share that falls into the start of a process."""

LATE_SECONDS = 3.0
"""The rest falls within so long after the first interval."""

JOIN_SECONDS, HEARTBEAT_SECONDS = 10.0, 10.0
"""How long processes wait for one that never comes, and for one that is silent."""

END_SECONDS = 60.0
"""A process that has lost another must have ended by itself after so long."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One kill of one process, a small index, programs compiled in haste; under a minute."""
    kills: int = 50
    """How often the run is killed."""
    processes: int = 2
    """How many processes share the run."""
    indexed: int = 1_000_000
    """Simulations of the index."""
    seed: int = 0
    """Decides the moments."""
    work: Path | None = None
    """What the killed processes are started with: goes on with the run in this folder."""


def compiled_once(root: Path) -> dict[str, str | int]:
    """Settings of JAX by which every process finds the programs of those before it."""
    return {
        "jax_compilation_cache_dir": str(root / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


class Job:
    """The processes that work in one folder together."""

    def __init__(self, folder: Path, options: Options):
        count = options.processes
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
        environment = os.environ | {
            **{name.upper(): str(value) for name, value in compiled_once(folder.parent).items()},
            "JAX_NUM_CPU_DEVICES": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
            }
        command = [sys.executable, "-u", "-m", "benchmarks.chaos", "--work", str(folder)]
        command += ["--indexed", str(options.indexed)]
        self.began, self.said = time.perf_counter(), folder.parent / "said"
        with open(self.said, "w", encoding="utf-8") as errors:
            self.processes = [
                subprocess.Popen(
                    command,
                    env=environment | {"JAX_PROCESS_ID": str(number)},
                    stdout=subprocess.PIPE if number == 0 else subprocess.DEVNULL,
                    stderr=errors,
                    text=True,
                )
                for number in range(count)
            ]

    def wait_for(self, word: str) -> float | None:
        """Seconds until process 0 says a word; `None` where it ended before."""
        stream = self.processes[0].stdout
        assert stream is not None
        for line in stream:
            if line.startswith(word):
                return time.perf_counter() - self.began
        return None

    def kill(self, generator: np.random.Generator) -> float | None:
        """Kills one process; the seconds until the others have ended, `None` where one did not."""
        self.processes[generator.integers(len(self.processes))].kill()
        start = time.perf_counter()
        try:
            for process in self.processes:
                process.communicate(timeout=max(0.1, END_SECONDS + start - time.perf_counter()))
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.kill()
                process.communicate()
            return None
        return time.perf_counter() - start

    def join(self) -> None:
        """Until it has ended well."""
        for process in self.processes:
            process.communicate()
            if process.returncode:
                said = self.said.read_text(encoding="utf-8")[-2000:]
                raise RuntimeError(f"A process ended with status {process.returncode}:\n{said}")


def work(folder: Path, indexed: int) -> None:
    """Goes on with a run, then makes its index; process 0 says a line for each step of it."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    initialise(timeout=JOIN_SECONDS, heartbeat=HEARTBEAT_SECONDS)
    session = Session.open(folder, folder / "study.py")
    saving = Saving(every_seconds=0.0, held_out=0)
    predictor = session.train([lambda report: print("step", report.step, flush=True)], saving)
    print("trained", flush=True)
    index = sg.SimulationIndex.build(predictor, session.stream, indexed)
    index.save(folder / "index")


@dataclasses.dataclass
class Chaos:
    """A run under attack, and what was seen of it."""

    folder: Path
    options: Options
    start_seconds: float
    """Until the first update of the undisturbed run, compilation included; then the least seen."""
    index_seconds: float
    """From the end of training to the index in its folder."""
    generator: np.random.Generator
    phases: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    last: int = 0
    survived: list[float] = dataclasses.field(default_factory=list)
    """How long those that were not killed went on."""

    def kill_in_training(self) -> bool:
        """Starts the job and kills it at random; whether the run was still under way."""
        before = unsealed(self.folder)
        job = Job(self.folder, self.options)
        early = self.generator.random() < EARLY
        if early:
            time.sleep(self.generator.uniform(0, self.start_seconds))
        else:
            seconds = job.wait_for("step")
            if seconds is None:
                job.join()
                return False
            self.start_seconds = min(seconds, self.start_seconds)
            time.sleep(self.generator.uniform(0, LATE_SECONDS))
        self._kill(job, "starting" if early else "training", before)
        return True

    def kill_in_index(self) -> None:
        """Lets the job train to its end and kills it while it makes the index."""
        shutil.rmtree(self.folder / "index", ignore_errors=True)
        before, job = unsealed(self.folder), Job(self.folder, self.options)
        if job.wait_for("trained") is None:
            job.join()
        time.sleep(self.generator.uniform(0, self.index_seconds))
        self._kill(job, "making the index", before)

    def _kill(self, job: Job, phase: str, before: set[Path]) -> None:
        seconds = job.kill(self.generator)
        writing = unsealed(self.folder) - before
        self.phases["writing a state" if writing else phase] += 1
        kill = f"kill {sum(self.phases.values())}"
        if seconds is None:
            self.faults.append(f"{kill}: another process did not end by itself")
        elif self.options.processes > 1:
            self.survived.append(seconds)
        step, fault = newest(self.folder)
        if fault is not None or step < self.last:
            self.faults.append(f"{kill}: step {step} (was {self.last}), {fault}")
        self.last = step
        index = self.folder / "index"
        if index.exists() and not (index / "description.json").exists():
            self.faults.append(f"{kill}: half an index")
        print(f"{kill}: {phase}, newest state {step}", flush=True)


def unsealed(folder: Path) -> set[Path]:
    """States that are not finished, or half deleted."""
    return {place for place in places(folder) if not (place / "manifest.json").exists()}


def places(folder: Path) -> list[Path]:
    """The folders of states, finished or not."""
    return [path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir()]


def newest(folder: Path) -> tuple[int, str | None]:
    """The newest state that was finished, and what is wrong with it."""
    sealed = [place for place in places(folder) if (place / "manifest.json").exists()]
    if not sealed:
        return 0, None
    last = max(sealed, key=lambda place: int(place.name))
    return int(last.name), fault_of(last)


def learnt(folder: Path) -> list[np.ndarray]:
    """What a finished run has learnt, and its index."""
    predictor = Session.open(folder, folder / "study.py").predictor()
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(predictor.network))]
    return weights + [np.load(folder / "index" / f"{name}.npy") for name in ("values", "squares")]


def chaos(root: Path, options: Options) -> dict[str, Any]:
    """The whole experiment in an empty folder."""
    for name, value in compiled_once(root).items():
        jax.config.update(name, value)
    (root / "study.py").write_text(STUDY, encoding="utf-8")
    in_index = round(IN_INDEX * options.kills)
    in_training = options.kills - in_index
    num_steps = STEPS_PER_KILL * in_training + REST
    preset = Preset(num_steps=num_steps, batch_size=32, width=16, depth=1)
    begun, calm, harassed = root / "begun", root / "calm", root / "harassed"
    Session.start(Source.find(str(root / "study.py")), preset, options.seed, begun)
    shutil.copytree(begun, calm)
    job = Job(calm, options)
    started, trained = job.wait_for("step"), job.wait_for("trained")
    job.join()
    assert started is not None and trained is not None
    indexing = time.perf_counter() - job.began - trained
    shutil.copytree(begun, harassed)
    generator = np.random.default_rng(options.seed)
    run = Chaos(harassed, options, started, indexing, generator)
    for _ in range(in_training):
        if not run.kill_in_training():
            break
    at_last_kill = run.last
    for _ in range(in_index):
        run.kill_in_index()
    shutil.rmtree(harassed / "index", ignore_errors=True)
    if options.processes > 1:
        Job(harassed, options).join()
    else:
        work(harassed, options.indexed)  # nobody kills it: no start of a process to wait for
    pairs = zip(learnt(calm), learnt(harassed), strict=True)
    return {
        "kills": sum(run.phases.values()), "phases": dict(run.phases), "seed": options.seed,
        "processes": options.processes, "num_steps": num_steps, "indexed": options.indexed,
        "steps_at_last_kill_in_training": at_last_kill,
        "identical": all(np.array_equal(one, other) for one, other in pairs),
        "faults": run.faults,
        "heartbeat_seconds": HEARTBEAT_SECONDS,
        "survivors_ended_after_seconds": sorted(round(each, 2) for each in run.survived),
    }  # fmt: skip


def main(options: Options) -> None:
    """Runs, prints the table and the line."""
    if options.work is not None:
        with ends_with_others():
            work(options.work, options.indexed)
        return
    start = time.perf_counter()
    if options.quick:
        options = dataclasses.replace(options, kills=1, processes=1, indexed=20_000)
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # JAX has not begun yet
    with tempfile.TemporaryDirectory() as root:
        result = chaos(Path(root), options)
    table = Table(title=f"{result['kills']} kills of a run of {result['processes']} processes")
    table.add_column("")
    table.add_column("", justify="right")
    for phase, count in result["phases"].items():
        table.add_row(f"killed while {phase}", str(count))
    if result["survivors_ended_after_seconds"]:
        seconds = result["survivors_ended_after_seconds"][-1]
        table.add_row("the others had ended after at most", f"{seconds:.0f} s")
    table.add_row("faults", str(len(result["faults"])))
    table.add_row("weights and index of the undisturbed run, to the bit", str(result["identical"]))
    Console().print(table)
    result["seconds"] = time.perf_counter() - start
    one = "" if options.processes > 1 else "_one_process"
    finish(f"chaos{one}", result, store=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
