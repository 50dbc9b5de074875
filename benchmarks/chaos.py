"""Does a run that is killed again and again end with the numbers of one that was left alone?

A tiny run keeps a state at every interval and is killed (SIGKILL) at random moments: while it
starts, while it trains, while it writes. After each kill the newest state that was finished must be
intact and no older than before; another process goes on. In the end the weights must be those of
the undisturbed run, to the bit. `python -m benchmarks.chaos [--quick]`
"""

import collections
import dataclasses
import logging
import os
import shutil
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

from benchmarks.record import finish
from sgjax.checkpoint import fault_of
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

STEPS_PER_KILL, REST = 2_000, 1_000
"""Updates of the run, for each kill and after the last."""

EARLY = 0.3
"""The share of kills that fall into the start of a process."""

LATE_SECONDS = 3.0
"""Other kills fall within so long after the first interval."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """Two kills; under a minute."""
    kills: int = 50
    """How often the run is killed."""
    seed: int = 0
    """Decides the moments."""
    work: Path | None = None
    """What the killed processes are started with: goes on with the run in this folder."""


class Job:
    """The processes that train in one folder together; here one."""

    def __init__(self, folder: Path, cache: Path):
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, "-u", "-m", "benchmarks.chaos", "--work", str(folder)]
        self.began = time.perf_counter()
        self.processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)]

    def wait_for_progress(self) -> float | None:
        """The seconds until the first update was reported; `None` where the job ended before."""
        stream = self.processes[0].stdout
        assert stream is not None
        return time.perf_counter() - self.began if stream.readline() else None

    def kill(self, generator: np.random.Generator) -> None:
        """Kills one of the processes, and then whatever waits for it."""
        self.processes[generator.integers(len(self.processes))].kill()
        for process in self.processes:
            process.kill()
            process.communicate()

    def join(self) -> None:
        """Until it has ended well."""
        for process in self.processes:
            process.communicate()
            if process.returncode:
                raise RuntimeError(f"A process ended with status {process.returncode}.")


def work(folder: Path) -> None:
    """Goes on with a run; one line for each interval."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    session = Session.open(folder, folder / "study.py")
    saving = Saving(every_seconds=0.0, held_out=0)
    session.train([lambda report: print(report.step, flush=True)], saving)


def undisturbed(begun: Path, folder: Path, cache: Path) -> float:
    """Trains a copy of the run without a kill; the seconds until its first interval was done."""
    shutil.copytree(begun, folder)
    job = Job(folder, cache)
    seconds = job.wait_for_progress()
    job.join()
    assert seconds is not None
    return seconds


def kill_once(
    folder: Path, cache: Path, start_seconds: float, generator: np.random.Generator
) -> tuple[str | None, float]:
    """Starts a job and kills it at random: the phase, and how long a start takes at most.

    No phase where the job ended before.
    """
    before = unsealed(folder)
    job = Job(folder, cache)
    early = generator.random() < EARLY
    if early:
        time.sleep(generator.uniform(0, start_seconds))
    else:
        seconds = job.wait_for_progress()
        if seconds is None:
            job.join()
            return None, start_seconds
        start_seconds = min(seconds, start_seconds)
        time.sleep(generator.uniform(0, LATE_SECONDS))
    ended = job.processes[0].poll() is not None
    job.kill(generator)
    if ended:
        return None, start_seconds
    writing = unsealed(folder) - before
    return "writing a state" if writing else "starting" if early else "training", start_seconds


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


def weights(folder: Path) -> list[np.ndarray]:
    """What a finished run has learnt."""
    predictor = Session.open(folder, folder / "study.py").predictor()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(predictor.network))]


def chaos(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """The whole experiment in an empty folder."""
    (root / "study.py").write_text(STUDY, encoding="utf-8")
    preset = Preset(num_steps=STEPS_PER_KILL * kills + REST, batch_size=32, width=16, depth=1)
    begun, calm, harassed = root / "begun", root / "calm", root / "harassed"
    Session.start(Source.find(str(root / "study.py")), preset, seed, begun)
    start_seconds = undisturbed(begun, calm, root / "cache")
    shutil.copytree(begun, harassed)
    generator, phases, last = np.random.default_rng(seed), collections.Counter(), 0
    faults: list[str] = []
    while sum(phases.values()) < kills:
        cache = root / "cache"
        phase, start_seconds = kill_once(harassed, cache, start_seconds, generator)
        if phase is None:
            break
        phases[phase] += 1
        step, fault = newest(harassed)
        if fault is not None or step < last:
            faults.append(f"after kill {sum(phases.values())}: step {step} (was {last}), {fault}")
        last = step
        print(f"kill {sum(phases.values())}: {phase}, newest state {step}", flush=True)
    Job(harassed, root / "cache").join()
    pairs = zip(weights(calm), weights(harassed), strict=True)
    return {
        "kills": sum(phases.values()), "phases": dict(phases), "seed": seed,
        "processes": 1, "num_steps": preset.num_steps, "steps_at_last_kill": last,
        "identical": all(np.array_equal(one, other) for one, other in pairs),
        "faults": faults,
    }  # fmt: skip


def main(options: Options) -> None:
    """Runs, prints the table and the line."""
    if options.work is not None:
        work(options.work)
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        result = chaos(Path(root), 2 if options.quick else options.kills, options.seed)
    table = Table(title=f"{result['kills']} kills of one run")
    table.add_column("")
    table.add_column("", justify="right")
    for phase, count in result["phases"].items():
        table.add_row(f"killed while {phase}", str(count))
    table.add_row("newest state damaged or older than before", str(len(result["faults"])))
    table.add_row("weights of the undisturbed run, to the bit", str(result["identical"]))
    Console().print(table)
    result["seconds"] = time.perf_counter() - start
    finish("chaos", result, store=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
