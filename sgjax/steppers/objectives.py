r"""Objectives of learned simulators: `(step, course) -> one number`; no batch axis.

A step $f$ maps the last frames to the next. Errors are mean squares in units of the deviation of
the change from frame to frame, so that channels count alike. Every place of a course where a window
fits is used, or `windows` of them at random.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgjax._types import PRNGKey

Step: TypeAlias = Callable[
    [Float[Array, "history channels"], Float[Array, " controls"]], Float[Array, " channels"]
]


@dataclasses.dataclass(frozen=True)
class AbstractObjective(abc.ABC):
    """How a step is judged on one course.

    **Arguments:** `noise`, the standard deviation of what is added to the last frame a step starts
    from, in units of the change's deviation (a random walk over the frames, Sanchez-Gonzalez et
    al., 2020): the step learns to come back from its own errors; `windows`, how many windows of
    each course are used, all where `None`.

    Raises `ValueError` where a window does not fit into the course.
    """

    noise: float = 0.0
    windows: int | None = None

    def __post_init__(self):
        if self.noise < 0 or self.reach < 1 or (self.windows is not None and self.windows < 1):
            raise ValueError(f"Sizes of an objective must be positive; got {self}.")

    @property
    @abc.abstractmethod
    def reach(self) -> int:
        """How many frames ahead a window goes."""

    @abc.abstractmethod
    def window(
        self,
        step: Step,
        frames: Float[Array, "history channels"],
        truth: Float[Array, "reach channels"],
        controls: Float[Array, "reach controls"],
    ) -> Float[Array, "compared channels"]:
        """Differences between prediction and truth in one window."""

    def __call__(
        self,
        step: Step,
        scale: Float[Array, " channels"],
        course: Float[Array, "frames channels"],
        controls: Float[Array, "gaps controls"],
        history: int,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The mean square of differences over windows, in units of `scale`."""
        count = len(course) - history - self.reach + 1
        if count < 1:
            raise ValueError(
                f"A window of {history} + {self.reach} frames does not fit into a course of "
                f"{len(course)}; extend `ts` or look less far ahead."
            )
        places, shaking = jax.random.split(key)
        starts = jnp.arange(count)
        if self.windows is not None and self.windows < count:
            starts = jax.random.choice(places, count, (self.windows,), replace=False)

        def one(start: Array, key: PRNGKey) -> Array:
            cut = lambda rows, at, size: jax.lax.dynamic_slice_in_dim(rows, at, size)
            frames = cut(course, start, history)
            truth = cut(course, start + history, self.reach)
            held = cut(controls, start + history - 1, self.reach)
            if self.noise:
                walk = jax.random.normal(key, frames.shape, frames.dtype).cumsum(0)
                frames = frames + self.noise * scale * walk / jnp.sqrt(1.0 * history)
            return self.window(step, frames, truth, held) / scale

        differences = jax.vmap(one)(starts, jax.random.split(shaking, starts.size))
        return jnp.mean(jnp.square(differences))


@dataclasses.dataclass(frozen=True)
class OneStep(AbstractObjective):
    r"""$\| f(u_t) - u_{t+1} \|^2$, with `noise` $\| f(u_t + \epsilon) - u_{t+1} \|^2$."""

    @property
    def reach(self) -> int:
        return 1

    def window(self, step, frames, truth, controls):
        return step(frames, controls[0])[None] - truth


@dataclasses.dataclass(frozen=True)
class Unroll(AbstractObjective):
    r"""$\frac1k \sum_{j \le k} \| f^j(u_t) - u_{t+j} \|^2$, differentiated through all steps.

    Gradients are cut every `cut` steps where given. Begin with few steps and train on with more
    (`with_objective`): early on, long rollouts teach nothing but their own divergence.
    """

    steps: int = 4
    cut: int | None = None

    @property
    def reach(self) -> int:
        return self.steps

    def window(self, step, frames, truth, controls):
        return unrolled(step, frames, controls, self.cut) - truth


@dataclasses.dataclass(frozen=True)
class Pushforward(AbstractObjective):
    r"""$\| f(\operatorname{sg}[f^{k-1}(u_t)]) - u_{t+k} \|^2$ (Brandstetter et al., 2022).

    The step is trained where its own rollouts lead, without derivatives through them.
    """

    steps: int = 2

    @property
    def reach(self) -> int:
        return self.steps

    def window(self, step, frames, truth, controls):
        if self.steps > 1:
            ahead = unrolled(step, frames, controls[:-1], None)
            frames = jax.lax.stop_gradient(jnp.concatenate([frames, ahead])[-len(frames) :])
        return step(frames, controls[-1])[None] - truth[-1:]


def unrolled(
    step: Step,
    frames: Float[Array, "history channels"],
    controls: Float[Array, "steps controls"],
    cut: int | None = None,
) -> Float[Array, "steps channels"]:
    """A rollout: each frame is stepped from those before it."""

    def advance(frames: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        index, control = given
        if cut is not None:
            frames = jnp.where(index % cut == 0, jax.lax.stop_gradient(frames), frames)
        following = step(frames, control)
        return jnp.concatenate([frames[1:], following[None]]), following

    return jax.lax.scan(advance, frames, (jnp.arange(len(controls)), controls))[1]
