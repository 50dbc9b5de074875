"""One process of `benchmarks.scaling`: what an update of the README's study takes, in seconds.

`python -m benchmarks.scaling_worker JSON` prints one JSON line, process 0 for all.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sgjax as sg
from benchmarks.readme_study import readme_study
from sgjax.devices import from_all, initialise, is_first, make_mesh
from sgjax.training import Optimisation, Report, Trainer


def main(asked: dict[str, Any]) -> None:
    """Joins the others, then measures what is asked for."""
    initialise(asked.get("coordinator"), asked.get("processes"), asked.get("process"))
    measure = remembered if asked["kind"] == "memory" else timed
    # Many steps tell more about memory than large ones.
    study = small_study() if asked["small"] else readme_study()
    mesh = make_mesh() if jax.device_count() > 1 else None
    stream = sg.SimulationStream(study, jax.random.key(0), asked["batch"], mesh)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=asked["width"])
    found = measure(predictor, stream, asked)
    if is_first():
        print(json.dumps(found))


def small_study() -> sg.Study:
    """Exponential decay, six times, Gaussian noise."""
    return sg.Study(
        sg.simulators.ExponentialDecay(ts=range(1, 7)),
        sg.observations.Gaussian(sd=0.05, prior={}),
        sg.Estimate(),
    )


def timed(
    predictor: sg.predictors.Predictor, stream: sg.SimulationStream, asked: dict[str, Any]
) -> dict[str, Any]:
    """Seconds of an update in each round, and the length of the gradient."""
    trainer = Trainer(predictor, stream, Optimisation(), 100_000)
    state = trainer.initial_state()
    program = trainer.compiled(asked["steps"], state)
    state, _ = jax.block_until_ready(program(state))
    seconds = np.zeros(asked["rounds"])
    for index in range(asked["rounds"]):
        from_all(0.0, stream.mesh)  # all begin together
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(state))
        seconds[index] = (time.perf_counter() - start) / asked["steps"]
    return {"seconds": seconds.tolist(), "weights": int(trainer.params.size)}


def remembered(
    predictor: sg.predictors.Predictor, stream: sg.SimulationStream, asked: dict[str, Any]
) -> dict[str, Any]:
    """Resident megabytes after each tenth of many small updates."""
    resident: list[float] = []
    tenth = asked["steps"] // 10

    def look(report: Report) -> None:
        if report.step % tenth == 0:
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
            resident.append(pages * 4096 / 2**20)

    # Many reports, since what could pile up is made once for each.
    sg.train(predictor, stream, asked["steps"], interval=tenth // 10, callbacks=[look])
    return {"steps": asked["steps"], "resident_mb": resident}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
