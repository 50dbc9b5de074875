"""What a learned simulator must beat: persistence, a linear map, and the nearest simulation.

Each is a step `(courses, history, channels), (courses, controls) -> (courses, channels)`, made from
simulated courses, and rolls out like a learned one.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax.attribution.nearest import encode, nearest_rows, padded
from sgjax.tasks import NextState

BatchStep: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

RIDGE = 1e-6
"""Of the linear map, beside mean squares of 1."""


class Windows:
    """Frames with the one that follows each, and what else a step is told, cut from courses."""

    def __init__(
        self,
        courses: Float[np.ndarray, "courses frames channels"],
        known: Float[np.ndarray, "courses known"],
        controls: Float[np.ndarray, "courses gaps controls"],
        history: int,
    ):
        count = courses.shape[1] - history
        cut = lambda rows, at: rows[:, at : at + count]
        frames = np.stack([cut(courses, at) for at in range(history)], axis=2)
        flat = lambda rows: rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])
        self.frames, self.following = flat(frames), flat(courses[:, history:])
        told = np.repeat(known[:, None], count, axis=1)
        self.told = np.concatenate([flat(told), flat(controls[:, history - 1 :])], axis=1)


def persistence(task: NextState) -> BatchStep:
    """Nothing changes: neither the state nor, where acceleration is predicted, its move."""

    def step(frames: np.ndarray, told: np.ndarray) -> np.ndarray:
        del told
        moving = task.predicts == "acceleration"
        return 2 * frames[:, -1] - frames[:, -2] if moving else frames[:, -1]

    return step


def linear(windows: Windows) -> BatchStep:
    """The best linear map of frames and what is told, with a constant: ridge least squares.

    Dynamic mode decomposition (Schmid, 2010) where nothing else is told.
    """

    def rows(frames: np.ndarray, told: np.ndarray) -> np.ndarray:
        flat = frames.reshape(len(frames), -1)
        return np.concatenate([flat, told, np.ones((len(flat), 1))], axis=1).astype(np.float64)

    every = rows(windows.frames, windows.told)
    scale = np.sqrt(np.mean(every**2, axis=0))
    scale[scale == 0] = 1.0
    every /= scale
    change = windows.following.astype(np.float64) - windows.frames[:, -1]
    gram = every.T @ every / len(every) + RIDGE * np.eye(every.shape[1])
    matrix = np.linalg.solve(gram, every.T @ change / len(every)) / scale[:, None]

    def step(frames: np.ndarray, told: np.ndarray) -> np.ndarray:
        return frames[:, -1] + rows(frames, told) @ matrix

    return step


def nearest(windows: Windows) -> BatchStep:
    """What followed the nearest simulated situation: its change, from here.

    Distances are Euclidean in deviations of each number, frames and what is told together.
    """
    flat = windows.frames.reshape(len(windows.frames), -1)
    rows = np.concatenate([flat, windows.told], axis=1)
    scale = rows.std(axis=0)
    scale[scale == 0] = 1.0
    filled = np.zeros((padded(len(rows)), rows.shape[1]), np.float32)
    filled[: len(rows)] = rows / scale
    there = jnp.arange(len(filled)) < len(rows)
    unit = jnp.ones(rows.shape[1])
    table = encode(jnp.asarray(filled), there, unit, np.dtype(np.float32))
    change = windows.following - windows.frames[:, -1]

    @jax.jit
    def places(queries: Array) -> Array:
        return nearest_rows(queries, table, 1)[1][:, 0]

    def step(frames: np.ndarray, told: np.ndarray) -> np.ndarray:
        asked = np.concatenate([frames.reshape(len(frames), -1), told], axis=1) / scale
        lost = ~np.isfinite(asked).all(axis=1)
        found = np.asarray(places(jnp.asarray(np.where(lost[:, None], 0, asked), jnp.float32)))
        return np.where(lost[:, None], np.nan, frames[:, -1] + change[found])

    return step


def roll(
    step: BatchStep,
    frames: Float[np.ndarray, "courses history channels"],
    known: Float[np.ndarray, "courses known"],
    controls: Float[np.ndarray, "courses steps controls"],
) -> Float[np.ndarray, "courses steps channels"]:
    """A rollout of a baseline."""
    made = []
    with np.errstate(over="ignore", invalid="ignore"):
        for index in range(controls.shape[1]):
            told = np.concatenate([known, controls[:, index]], axis=1)
            following = step(frames, told)
            frames = np.concatenate([frames[:, 1:], following[:, None]], axis=1)
            made.append(following)
    return np.stack(made, axis=1)
