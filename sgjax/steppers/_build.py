"""Untrained learned simulators: `study -> predictor` whose scales are measured from simulations."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgjax._types import PRNGKey
from sgjax.predictors import Predictor
from sgjax.predictors.scaling import measure_inputs
from sgjax.priors import fold_name
from sgjax.steppers._base import FrameShape, StepperFactory, StepperNetwork, measure_steps
from sgjax.steppers.convolution import Convolution
from sgjax.steppers.interaction import Interaction
from sgjax.steppers.mlp import MLP
from sgjax.steppers.objectives import AbstractObjective, OneStep
from sgjax.stream import SimulationStream
from sgjax.study import Study
from sgjax.tasks import NextState

ARCHITECTURES: Mapping[str, StepperFactory] = {
    "mlp": MLP,
    "convolution": Convolution,
    "interaction": Interaction,
}

PILOT_COURSES = 1024
"""How many simulations scales are measured from."""


def for_study(
    study: Study,
    key: PRNGKey,
    *,
    architecture: str | StepperFactory = "mlp",
    objective: AbstractObjective | None = None,
    width: int | None = None,
    depth: int | None = None,
    **more: int,
) -> Predictor:
    """An untrained learned simulator for a study whose task is `NextState`.

    **Arguments:** `architecture`, a name in `ARCHITECTURES` or a factory; `objective`, `OneStep` by
    default; `width` and `depth`, the architecture's own where `None`; `more` goes to the
    architecture (`fields` of a convolution, `axes` of bodies). Train it by `sgjax.train`, step it
    by `sgjax.rollout`.

    Raises `ValueError` where the study asks for something else, its times are uneven, or no
    simulation of it is finite.
    """
    task = next_state_of(study)
    make = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else architecture
    if make is None:
        raise ValueError(
            f"There is no architecture {architecture!r}; choose one of {list(ARCHITECTURES)}."
        )
    if (width is not None and width < 1) or (depth is not None and depth < 1):
        raise ValueError(f"`width` and `depth` must be at least 1; got {width} and {depth}.")
    objective = objective or OneStep()
    frames = study.ts.size
    if task.history + objective.reach > frames:
        raise ValueError(
            f"A window of {task.history} + {objective.reach} frames does not fit into the "
            f"simulator's {frames} times; extend `ts` or look less far ahead."
        )
    size = study.simulator.mechanism_table.size
    batch = SimulationStream(study, fold_name(key, "pilot"), size).take(PILOT_COURSES)
    valid = np.asarray(batch.valid, bool)
    if not valid.any():
        raise ValueError("No simulation of the study is finite; check its equations and priors.")
    inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[valid], batch.example.inputs)
    following = np.asarray(batch.example.targets["next state"].values, np.float64)[valid]
    channels = len(study.channels)
    shape = FrameShape(
        task.history, channels, inputs.known.shape[-1], inputs.values.shape[-1] - channels
    )
    cls_width, cls_depth = getattr(make, "width", 64), getattr(make, "depth", 3)
    rngs = nnx.Rngs(fold_name(key, "weights"))
    stepper = make(shape, width=width or cls_width, depth=depth or cls_depth, rngs=rngs, **more)
    constants = measure_steps(task, inputs, following, stepper.fields)
    scaling = measure_inputs(inputs)
    network = StepperNetwork(stepper, shape, constants, scaling, task.predicts, objective)
    return Predictor(study, network)


def next_state_of(study: Study) -> NextState:
    """The task of a learned simulator; `ValueError` where the study has another."""
    if not isinstance(study.task, NextState):
        raise ValueError(
            f"A learned simulator needs a study with task NextState; this one has "
            f"{type(study.task).__name__}."
        )
    gaps = np.diff(study.ts)
    if not np.allclose(gaps, gaps[0], rtol=1e-4):
        raise ValueError("A learned simulator needs times that are evenly apart; change `ts`.")
    return study.task


def stepper_of(predictor: Predictor) -> StepperNetwork:
    """The network of a learned simulator; `ValueError` where it is another predictor."""
    if not isinstance(predictor.network, StepperNetwork):
        raise ValueError("This predictor is no learned simulator; make it by `steppers.for_study`.")
    return predictor.network


def with_objective(predictor: Predictor, objective: AbstractObjective) -> Predictor:
    """The same learned simulator, trained on by another objective."""
    network = stepper_of(predictor)
    graph, state = nnx.split(network)
    copy = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    copy.objective = dataclasses.replace(objective)
    return predictor.with_network(copy)
