"""What every learned simulator is: `last frames, what is given -> change of state`."""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sgjax._types import PRNGKey
from sgjax.predictors import AbstractNetwork, AbstractPredictive, InputScaling, Point
from sgjax.predictors.scaling import LARGEST, InputConstants
from sgjax.steppers.objectives import AbstractObjective
from sgjax.tasks import Example, Inputs, NextState


class FrameShape(NamedTuple):
    """What a stepper is given: numbers of frames, channels, known quantities and controls."""

    history: int
    channels: int
    known: int
    controls: int


class Situation(NamedTuple):
    """What a step starts from, in units of order one."""

    frames: Float[Array, "history channels"]
    """Deviations from the mean, the latest last."""
    moves: Float[Array, "history_less_one channels"]
    """Differences of consecutive frames, in units of their own."""
    known: Float[Array, " known"]
    control: Float[Array, " controls"]


class AbstractStepper(nnx.Module):
    """A network that steps: a situation -> features and a scaled change.

    A concrete stepper is made as `Stepper(shape, width=, depth=, rngs=)`.
    """

    width: ClassVar[int] = 64
    depth: ClassVar[int] = 3
    """Sizes where none are asked for."""

    fields: int
    """How many quantities the channels are, each at all points: they share mean and scale, since
    what treats all points alike must see them in one unit. As many as channels where none do."""

    @abc.abstractmethod
    def __call__(
        self, situation: Situation
    ) -> tuple[Float[Array, " features"], Float[Array, " channels"]]:
        """Features of a situation, and the change to come in units of its deviation."""


StepperFactory = Callable[..., AbstractStepper]
"""`(shape: FrameShape, *, width: int, depth: int, rngs: nnx.Rngs) -> AbstractStepper`."""


class StepConstants(NamedTuple):
    """What a stepper's scaling needs, measured from simulations; a number a channel."""

    mean: np.ndarray
    sd: np.ndarray
    move_sd: np.ndarray
    change_sd: np.ndarray
    known_mean: np.ndarray
    known_sd: np.ndarray
    control_mean: np.ndarray
    control_sd: np.ndarray


class StepScales(nnx.Module):
    """`StepConstants` as a layer: they travel with the weights and are not trained."""

    def __init__(self, constants: StepConstants):
        constant = lambda values: nnx.Variable(jnp.asarray(values, jnp.float32))
        self.mean, self.sd = constant(constants.mean), constant(constants.sd)
        self.move_sd, self.change_sd = constant(constants.move_sd), constant(constants.change_sd)
        self.known_mean, self.known_sd = (
            constant(constants.known_mean),
            constant(constants.known_sd),
        )
        self.control_mean = constant(constants.control_mean)
        self.control_sd = constant(constants.control_sd)

    def __call__(
        self,
        frames: Float[Array, "history channels"],
        known: Float[Array, " known"],
        control: Float[Array, " controls"],
    ) -> Situation:
        known = (known - self.known_mean[...]) / self.known_sd[...]
        return Situation(
            (frames - self.mean[...]) / self.sd[...],
            jnp.diff(frames, axis=0) / self.move_sd[...],
            jnp.clip(known, -LARGEST, LARGEST),
            (control - self.control_mean[...]) / self.control_sd[...],
        )


class StepperNetwork(AbstractNetwork):
    """A stepper with its scales and the objective that trains it; answers `NextState`."""

    def __init__(
        self,
        stepper: AbstractStepper,
        shape: FrameShape,
        constants: StepConstants,
        inputs: InputConstants,
        predicts: str,
        objective: AbstractObjective,
    ):
        self.stepper = stepper
        self.shape = shape
        self.scales = StepScales(constants)
        self.scaling = InputScaling(inputs)
        self.predicts = predicts
        self.objective = objective
        self.blocks = ("next state",)

    def step(
        self,
        frames: Float[Array, "history channels"],
        known: Float[Array, " known"],
        control: Float[Array, " controls"],
    ) -> tuple[Float[Array, " features"], Float[Array, " channels"]]:
        """Features, and the frame after the last `history` ones; all in natural units."""
        features, change = self.stepper(self.scales(frames, known, control))
        base = base_of(frames, self.predicts, self.scales.mean[...])
        return features, base + self.change_sd * change

    @property
    def change_sd(self) -> Float[Array, " channels"]:
        """The unit of predicted changes."""
        return self.scales.change_sd[...]

    def __call__(
        self, inputs: Inputs
    ) -> tuple[Float[Array, " features"], dict[str, AbstractPredictive]]:
        values, controls = self._parts(inputs)
        frames, control = values[-self.shape.history :], controls[-1]
        features, following = self.step(frames, inputs.known.astype(jnp.float32), control)
        return features, {"next state": Point(following, self.change_sd)}

    def scores(self, example: Example):
        values, controls = self._parts(example.inputs)
        following = example.targets["next state"].values.astype(jnp.float32)
        course = jnp.concatenate([values, following[None]])
        known = example.inputs.known.astype(jnp.float32)

        def step(frames: Array, control: Array) -> Array:
            return self.step(frames, known, control)[1]

        score = self.objective(
            step, self.change_sd, course, controls, self.shape.history, course_key(course)
        )
        return {"next state": score}

    def _parts(self, inputs: Inputs) -> tuple[Array, Array]:
        values = inputs.values.astype(jnp.float32)
        return values[:, : self.shape.channels], values[:, self.shape.channels :]


def base_of(
    frames: Float[Array, "history channels"], predicts: str, mean: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    """What the predicted change is added to."""
    if predicts == "change":
        return frames[-1]
    if predicts == "acceleration":
        return 2 * frames[-1] - frames[-2]
    return jnp.broadcast_to(mean, frames[-1].shape)


def course_key(course: Float[Array, "frames channels"]) -> PRNGKey:
    """A key for what an objective draws: no simulation comes twice, so its own numbers seed it."""
    bits = jax.lax.bitcast_convert_type(course, jnp.uint32)
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape) + 1
    return jax.random.fold_in(jax.random.key(0), jnp.sum(bits * weights))


def measure_steps(
    task: NextState, inputs: Inputs, following: np.ndarray, fields: int
) -> StepConstants:
    """The scales of a batch of valid courses: of states, of their changes, and of what is given."""
    channels = following.shape[-1]
    values = np.asarray(inputs.values, np.float64)
    states = np.concatenate([values[..., :channels], following[:, None]], axis=1)
    held = values[..., channels:]
    if task.predicts == "acceleration":
        changes = states[:, 2:] - 2 * states[:, 1:-1] + states[:, :-2]
    elif task.predicts == "change":
        changes = np.diff(states, axis=1)
    else:
        changes = states[:, 1:]
    known = np.asarray(inputs.known, np.float64)
    return StepConstants(
        _shared(states.mean((0, 1)), fields, np.mean),
        _positive(_shared(_sd(states, fields), fields, _root_mean_square)),
        _positive(_shared(_size(np.diff(states, axis=1)), fields, _root_mean_square)),
        _positive(_shared(_change_size(changes, task), fields, _root_mean_square)),
        known.mean(0),
        _positive(known.std(0)),
        held.mean((0, 1)),
        _positive(held.std((0, 1))),
    )


def _sd(states: np.ndarray, fields: int) -> np.ndarray:
    """Deviations about the mean that points of a field share."""
    return np.sqrt(np.mean((states - _shared(states.mean((0, 1)), fields, np.mean)) ** 2, (0, 1)))


def _change_size(changes: np.ndarray, task: NextState) -> np.ndarray:
    if task.predicts == "state":
        return changes.std((0, 1))
    return _size(changes)


def _size(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(values**2, axis=(0, 1)))


def _shared(values: np.ndarray, fields: int, how: Callable[..., np.ndarray]) -> np.ndarray:
    rows = values.reshape(fields, -1)
    return np.repeat(how(rows, axis=1), rows.shape[1])


def _root_mean_square(values: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.mean(values**2, axis=axis))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 1e-30, values, 1.0)
