"""Training for the posterior benchmark: online on endless simulations, or within a budget of N.

Nothing here sees an observation or a reference posterior. Every choice is fixed beforehand but one,
when to stop within a budget, and that is made on simulations held out of the budget itself.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from sgjax import Optimisation, Predictor, SimulationStream, print_report, train
from sgjax._types import PRNGKey
from sgjax.predictors import build_network
from sgjax.priors import fold_name
from sgjax.study import Simulation, Study
from sgjax.training import Report, Trainer

HELD_OUT = 10
"""One in so many simulations of a budget is held out of training."""

PILOT = 8192
"""At most so many simulations of a stream measure the scaling of inputs and targets."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides a training run."""

    budget: int | None
    """The number of simulations in all; endless where `None`."""
    head: str
    num_steps: int
    batch_size: int
    width: int
    depth: int
    learning_rate: float

    @property
    def label(self) -> str:
        """A name for results."""
        world = "online" if self.budget is None else f"budget_{self.budget}"
        size = f"{self.width}x{self.depth}"
        pace = f"{self.num_steps}x{self.batch_size}_rate_{self.learning_rate:g}"
        return f"{world}_{self.head}_{size}_{pace}"


def train_online(study: Study, setting: Setting, key: PRNGKey) -> tuple[Predictor, dict[str, Any]]:
    """Fresh simulations at every step; what was spent, and the held-out score, beside it."""
    stream = SimulationStream(study, fold_name(key, "stream"), setting.batch_size)
    predictor = _untrained(stream, setting, PILOT, key)
    reports: list[Report] = []
    start = time.perf_counter()
    predictor = train(
        predictor,
        stream,
        setting.num_steps,
        optimisation=_optimisation(setting),
        interval=max(1, setting.num_steps // 20),
        callbacks=(reports.append, print_report),
    )
    wall = time.perf_counter() - start
    trained = _trainer(predictor, stream, setting)
    judge = _judge(trained, stream.held_out().take(PILOT))
    return predictor, {
        "simulations": setting.num_steps * setting.batch_size,
        "wall_seconds": wall,
        "compile_seconds": reports[-1].compile_seconds,
        "training_seconds": reports[-1].seconds,
        "held_out_score": float(judge(trained.params, trained.constants)),
    }


def train_in_budget(
    study: Study, setting: Setting, key: PRNGKey
) -> tuple[Predictor, dict[str, Any]]:
    """A finite world, met again every epoch; the weights of the best held-out score are kept."""
    assert setting.budget is not None
    held_out_size = setting.budget // HELD_OUT
    size = setting.budget - held_out_size
    batch_size = max(n for n in range(1, setting.batch_size + 1) if size % n == 0)
    stream = SimulationStream(study, fold_name(key, "stream"), batch_size, num_simulations=size)
    predictor = _untrained(stream, setting, min(PILOT, size), key)
    trainer = _trainer(predictor, stream, setting)
    judge = _judge(trainer, stream.held_out().take(held_out_size))
    state, start = trainer.initial_state(), time.perf_counter()
    best, average, interval = np.inf, state.average, max(1, setting.num_steps // 100)
    step = np.zeros((), int)
    for _ in range(setting.num_steps // interval):
        state, _ = trainer.compiled(interval, state)(state)
        found = float(judge(state.average, state.constants))
        if found < best:
            # A copy: the next interval writes into the buffers of this state.
            best, average, step = found, jnp.copy(state.average), np.asarray(state.step)
    wall = time.perf_counter() - start
    return trainer.predictor(state._replace(average=average)), {
        "simulations": setting.budget,
        "batch_size": batch_size,
        "wall_seconds": wall,
        "held_out_score": best,
        "best_step": int(step),
    }


def _untrained(stream: SimulationStream, setting: Setting, pilot: int, key: PRNGKey) -> Predictor:
    """A network whose scaling is measured from the first simulations of the stream itself."""
    made = stream.take(pilot)
    network = build_network(
        stream.study.specs,
        made.example.inputs,
        made.example.targets,
        made.valid,
        heads={"parameters": setting.head},
        width=setting.width,
        depth=setting.depth,
        rngs=nnx.Rngs(fold_name(key, "weights")),
    )
    return Predictor(stream.study, network)


def _trainer(predictor: Predictor, stream: SimulationStream, setting: Setting) -> Trainer:
    return Trainer(predictor, stream, _optimisation(setting), setting.num_steps)


def _optimisation(setting: Setting) -> Optimisation:
    return Optimisation(learning_rate=setting.learning_rate)


def _judge(
    trainer: Trainer, held_out: Simulation
) -> Callable[[Float[Array, " weights"], PyTree], Float[Array, ""]]:
    """The mean score of held-out simulations, of weights and constants."""
    return jax.jit(lambda weights, constants: trainer.loss(weights, constants, held_out)[0])
