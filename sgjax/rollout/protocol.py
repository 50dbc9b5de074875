r"""One protocol for every learned simulator: `predictor, worlds -> one table`.

Held-out simulations are solved to some nine digits in float64; the learned simulator starts from
their first frames and is stepped to their end, beside what it must beat (persistence, a linear map,
the nearest simulation) and beside the solver that trained it, whose own rounding and truncation
bound what can be learned of a chaotic system.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgjax._types import Theta
from sgjax.predictors import Predictor
from sgjax.priors import fold_name
from sgjax.rollout import baselines, measures
from sgjax.rollout._rollout import known_rows
from sgjax.simulators import (
    AbstractODESimulator,
    AbstractSemilinearSimulator,
    AbstractSimulator,
)
from sgjax.simulators._calibration import solve_precisely
from sgjax.solvers import GridSteps
from sgjax.steppers import Convolution, next_state_of, stepper_of
from sgjax.stream import SimulationStream
from sgjax.study import Study

Invariant = Callable[[Theta, Float[np.ndarray, "frames channels"]], Float[np.ndarray, " frames"]]
"""A quantity that the exact flow keeps, of each frame of a course."""

REFERENCES = ("persistence", "linear", "nearest simulation")

FINER = 8
"""So many times more sub-steps than in training make the truth where steps are fixed by nature."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """What errors are measured in, from the truth of the world that was trained on."""

    mean: Float[np.ndarray, " channels"]
    sd: Float[np.ndarray, " channels"]
    dt: float
    lyapunov_time: float = 1.0
    """The unit of valid times, 1 / the largest Lyapunov exponent; 1 leaves them as they are."""
    fields: int = 0
    """How many fields the channels are, each at all points of a ring; 0 where they are no field."""


@dataclasses.dataclass(frozen=True)
class World:
    """The courses of one world: how they begin, how they go on, and what a step is told."""

    thetas: Theta
    frames: Float[np.ndarray, "courses history channels"]
    truth: Float[np.ndarray, "courses steps channels"]
    solved: Float[np.ndarray, "courses steps channels"]
    """The same by the solver that the training stream uses."""
    known: Float[np.ndarray, "courses known"]
    controls: Float[np.ndarray, "courses steps controls"]


@dataclasses.dataclass(frozen=True)
class RolloutReport:
    """What `judge` found: `rows`, one for each world and model, and the courses behind them."""

    rows: list[dict[str, Any]]
    scales: Scales
    worlds: dict[str, World]
    predicted: dict[str, dict[str, Float[np.ndarray, "courses steps channels"]]]
    """By world and model."""

    def row(self, world: str, model: str = "learned") -> dict[str, Any]:
        """What was found of one model in one world."""
        return next(r for r in self.rows if (r["world"], r["model"]) == (world, model))

    def __str__(self) -> str:
        of_fields = ("correlation time", "spectrum distance") if self.scales.fields else ()
        shown = ("world", "model", "one step", "valid time", *of_fields, "histogram distance",
                 "survival")  # fmt: skip
        texts = [[_text(row[name]) for name in shown] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(shown, *texts, strict=True)]
        lines = [shown, *texts]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def judge(
    predictor: Predictor,
    worlds: Mapping[str, Study] | Study,
    key: jax.Array,
    *,
    courses: int = 64,
    stored: int = 2048,
    lyapunov_time: float = 1.0,
    invariants: Mapping[str, Invariant] | None = None,
) -> RolloutReport:
    """Judges a learned simulator by one protocol.

    **Arguments:** `worlds`, studies like the one it was trained on, by name: with longer times (the
    gap between them the same), or with priors outside the trained ones; the first one gives the
    scales; `courses` of each; `stored` simulated courses make the baselines; `lyapunov_time`, the
    unit of valid times; `invariants`, quantities that the exact flow keeps.

    Raises `ValueError` where a world has other channels, another gap, uneven times, or is no ODE,
    and where there are no worlds, courses or stored simulations.
    """
    named = {"as trained": worlds} if isinstance(worlds, Study) else dict(worlds)
    if not named or courses < 1 or stored < 1:
        raise ValueError(
            "Judging needs a world, and at least one of `courses` and of `stored`; got "
            f"{len(named)} world(s), {courses} and {stored}."
        )
    for name, study in named.items():
        _check(predictor.study, study, name)
    drawn = {
        name: draw_world(study, fold_name(key, f"judge {name}"), courses)
        for name, study in named.items()
    }
    first = next(iter(drawn.values()))
    scales = Scales(
        first.truth.mean((0, 1)),
        np.where(first.truth.std((0, 1)) > 0, first.truth.std((0, 1)), 1.0),
        float(np.diff(predictor.study.ts[:2])[0]),
        lyapunov_time,
        _fields(predictor),
    )
    steps = _baselines(predictor, fold_name(key, "stored"), stored)
    steps["learned"] = _learned(predictor)
    rows, predicted = [], {}
    for name, world in drawn.items():
        models = {"its solver": world.solved} | {
            label: baselines.roll(step, world.frames, world.known, world.controls)
            for label, step in steps.items()
        }
        predicted[name] = models
        errors = {label: _one_step(step, world) for label, step in steps.items()}
        for label in ("learned", "its solver", *REFERENCES):
            row = evaluate_rollout(models[label], world.truth, scales)
            row |= _drifts(models[label], world, invariants or {})
            row["one step"] = errors.get(label)
            rows.append({"world": name, "model": label, **row})
        learned = rows[-1 - len(REFERENCES) - 1]
        learned["skill"] = {r: 1 - errors["learned"] / errors[r] for r in REFERENCES}
    return RolloutReport(rows, scales, drawn, predicted)


def evaluate_rollout(predicted: np.ndarray, truth: np.ndarray, scales: Scales) -> dict[str, Any]:
    """The measures of a rollout made anywhere, of the frames after those it began from.

    Both are `(courses, steps, channels)`. A rollout that diverged is counted, never left out.
    Valid times come as quartiles over courses, for thresholds 0.3, 0.4 and 0.5 deviations.

    Raises `ValueError` where the shapes differ or the truth is not finite.
    """
    predicted, truth = (np.asarray(each, np.float64) for each in (predicted, truth))
    if predicted.ndim != 3 or predicted.shape != truth.shape:
        raise ValueError(
            f"The rollout has shape {predicted.shape}, the truth {truth.shape}; both must be "
            "(courses, steps, channels), without the frames they begin from."
        )
    if not np.isfinite(truth).all():
        raise ValueError("The truth is not finite; take out the courses that left float range.")
    dt, unit = scales.dt, scales.lyapunov_time
    errors = measures.relative_error(predicted, truth)
    times = {
        str(level): np.quantile(
            measures.valid_time(predicted, truth, scales.sd, dt, level) / unit, (0.25, 0.5, 0.75)
        ).tolist()
        for level in (0.3, 0.4, 0.5)
    }
    return {
        "valid times": times,
        "valid time": times["0.4"][1],
        "longest": dt * truth.shape[1] / unit,
        "relative error": _at_marks(errors),
        "geometric mean": measures.geometric_mean(errors),
        "survival": measures.survival(predicted, scales.mean, scales.sd),
        "histogram distance": measures.histogram_distance(predicted, truth, scales.sd),
        **(_of_fields(predicted, truth, scales) if scales.fields else {}),
    }


def _of_fields(predicted: np.ndarray, truth: np.ndarray, scales: Scales) -> dict[str, Any]:
    """What is asked of fields only, whose channels are points: each field counts alike."""
    rows = lambda courses: np.moveaxis(
        courses.reshape(*courses.shape[:2], scales.fields, -1), 2, 1
    ).reshape(-1, courses.shape[1], courses.shape[2] // scales.fields)
    v, u = rows(predicted), rows(truth)
    return {
        "correlation time": measures.correlation_time(v, u, scales.dt, 0.8),
        "correlation time 0.95": measures.correlation_time(v, u, scales.dt, 0.95),
        "vrmse": _at_marks(measures.vrmse(v, u)),
        "spectrum distance": measures.spectrum_distance(v, u),
    }


def _at_marks(errors: np.ndarray) -> dict[int, list[float]]:
    """Quartiles over courses at the first step, at powers of two, and at the last one."""
    steps = errors.shape[1]
    marks = sorted({*(2**n for n in range(20) if 2**n <= steps), steps})
    return {mark: _quartiles(errors[:, mark - 1]) for mark in marks}


def draw_world(study: Study, key: jax.Array, courses: int) -> World:
    """Held-out courses of a study of one mechanism, solved precisely and as in training."""
    (simulator,) = study.mechanisms.values()
    task = next_state_of(study)
    table = study.simulator.mechanism_table.size
    stream = SimulationStream(study, key, table).held_out()
    numbers = np.arange(2 * courses, dtype=np.uint32)
    ids = np.stack([np.zeros_like(numbers), numbers], axis=1)
    made = stream.simulate(ids)
    kept = np.flatnonzero(np.asarray(made.valid))[:courses]
    if kept.size < courses:
        raise ValueError(f"Only {kept.size} of {2 * courses} simulations are finite.")
    thetas = {name: np.asarray(draw)[kept] for name, draw in made.theta.items()}
    precise = np.asarray(solve_precisely(simulator, thetas, _fine(simulator)).values, np.float64)
    values = np.asarray(made.latent, np.float64)[kept]
    history, gaps = task.history, study.ts.size - 1
    known = np.asarray(known_rows(study, {n: thetas[n] for n in study.known}, courses))
    controls = np.zeros((courses, gaps, 0))
    if task.controls is not None:
        held = np.asarray(thetas[task.controls], np.float64)
        controls = held.reshape(courses, held.shape[1], -1)[:, -gaps:]
    return World(
        thetas, precise[:, :history], precise[:, history:], values[:, history:], known,
        controls[:, history - 1 :],
    )  # fmt: skip


def _fine(simulator: AbstractSimulator) -> GridSteps | None:
    """Finer fixed steps where adaptive ones are no truth: stiff, or chaotic with an invariant."""
    if not isinstance(simulator, AbstractSemilinearSimulator):
        return None
    solver = simulator.solver
    assert isinstance(solver, GridSteps)
    return dataclasses.replace(solver, num_substeps=FINER * solver.num_substeps)


def _learned(predictor: Predictor) -> baselines.BatchStep:
    """A learned simulator as a step of many situations."""
    network = stepper_of(predictor)
    known = network.shape.known
    program = jax.jit(
        jax.vmap(lambda frames, told: network.step(frames, told[:known], told[known:])[1])
    )

    def step(frames: np.ndarray, told: np.ndarray) -> np.ndarray:
        return np.asarray(program(jnp.asarray(frames), jnp.asarray(told)), np.float64)

    return step


def _baselines(predictor: Predictor, key: jax.Array, stored: int) -> dict[str, baselines.BatchStep]:
    study = predictor.study
    task = next_state_of(study)
    made = SimulationStream(study, key, study.simulator.mechanism_table.size).take(stored)
    valid = np.asarray(made.valid)
    network = stepper_of(predictor)
    inputs = np.asarray(made.example.inputs.values, np.float64)[valid]
    following = np.asarray(made.example.targets["next state"].values, np.float64)[valid]
    channels = network.shape.channels
    courses = np.concatenate([inputs[..., :channels], following[:, None]], axis=1)
    known = np.asarray(made.example.inputs.known, np.float64)[valid]
    windows = baselines.Windows(courses, known, inputs[..., channels:], task.history)
    return {
        "persistence": baselines.persistence(task),
        "linear": baselines.linear(windows),
        "nearest simulation": baselines.nearest(windows),
    }


def _one_step(step: baselines.BatchStep, world: World) -> float:
    """The mean relative error of single steps from true frames, over all places of all courses."""
    whole = np.concatenate([world.frames, world.truth], axis=1)
    gaps = world.controls.shape[1]
    lead = np.zeros((len(whole), world.frames.shape[1] - 1, world.controls.shape[2]))
    held = np.concatenate([lead, world.controls], axis=1)
    windows = baselines.Windows(whole, world.known, held, world.frames.shape[1])
    predicted = step(windows.frames, windows.told).reshape(len(whole), gaps, -1)
    return float(np.mean(measures.relative_error(predicted, world.truth)))


def _drifts(
    predicted: np.ndarray, world: World, invariants: Mapping[str, Invariant]
) -> dict[str, Any]:
    found = {}
    for name, invariant in invariants.items():
        rows = []
        for index, course in enumerate(predicted):
            theta = {n: jnp.asarray(draw[index]) for n, draw in world.thetas.items()}
            whole = np.concatenate([world.frames[index], course])
            rows.append(np.asarray(invariant(theta, whole)))
        found[f"drift of {name}"] = float(np.median(measures.drift(np.stack(rows))))
    return found


def _fields(predictor: Predictor) -> int:
    """Where fewer fields than channels share their scale, channels are points."""
    network = stepper_of(predictor)
    ring = isinstance(network.stepper, Convolution)
    return network.stepper.fields if ring else 0


def _check(trained: Study, world: Study, name: str) -> None:
    next_state_of(world)
    simulators = list(world.mechanisms.values())
    if len(simulators) != 1 or not isinstance(simulators[0], AbstractODESimulator):
        raise ValueError(f"World {name!r} needs one mechanism, an ODE whose truth can be solved.")
    gaps = [float(np.diff(study.ts[:2])[0]) for study in (trained, world)]
    same = world.channels == trained.channels and world.known == trained.known
    if not same or world.task != trained.task or not np.isclose(*gaps, rtol=1e-4):
        raise ValueError(
            f"World {name!r} must have the channels, known parameters, task and gap between times "
            f"of the study that was trained on: {trained.channels}, {trained.known}, gap {gaps[0]}."
        )


def _quartiles(values: np.ndarray) -> list[float]:
    return [float(np.quantile(values, level, method="higher")) for level in (0.25, 0.5, 0.75)]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
