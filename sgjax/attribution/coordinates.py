"""The unknown parameters of a study as one vector on the real line: `theta -> coordinates`, back.

Statistics of a cloud of simulations live here: a weighted mean, a line, a rank mean nothing across
the edge of a support, and what is moved here and mapped back cannot leave it.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import Theta
from sgjax.predictors import find_task
from sgjax.priors import from_unconstrained, to_unconstrained
from sgjax.stream import Same
from sgjax.study import Study
from sgjax.tasks import Estimate, component_names, parameter_sizes

BLOCK = 4096
"""Rows of a compiled program; fewer are padded, so that it is compiled once."""


def coordinates_of(study: Study) -> "Coordinates":
    """The coordinates of a study, whose programs are compiled once."""
    return _cached(Same(study))


@functools.lru_cache(maxsize=32)
def _cached(same: Same) -> "Coordinates":
    return Coordinates(same.study)


class Coordinates:
    """Every unknown parameter of every mechanism, unconstrained, in the order of the study.

    `labels` names the numbers; `present[m, j]` says whether number `j` exists under mechanism `m`,
    and it is 0 elsewhere. Parameters that are known are left out.
    """

    labels: tuple[str, ...]
    present: Bool[np.ndarray, "mechanisms size"]

    def __init__(self, study: Study):
        self.study = study
        world = study.world
        sizes = parameter_sizes(world)
        self.names = tuple(name for name in study.parameter_names if name not in study.known)
        self.labels = tuple(
            label for name in self.names for label in component_names(name, sizes[name])
        )
        self.present = np.array(
            [
                [name in prior for name in self.names for _ in range(sizes[name])]
                for prior in study.priors.values()
            ]
        )
        self._sizes, self._thetas = sizes, world.thetas
        self._programs: dict[tuple[str, str], Callable] = {}

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.labels)

    def of(self, mechanism: str, theta: Theta) -> Float[np.ndarray, "batch size"]:
        """The coordinates of many parameters of one mechanism, the batch leading."""
        prior = self.study.priors[mechanism]

        def one(theta: Theta) -> Array:
            unconstrained = to_unconstrained(prior, theta)
            absent = {name: jnp.zeros(self._sizes[name]) for name in self.names}
            parts = absent | unconstrained
            return jnp.concatenate([jnp.ravel(parts[name]) for name in self.names])

        drawn = {name: theta[name] for name in prior}
        return in_blocks(self._program("of", mechanism, one), drawn)

    def theta(
        self, mechanism: str, vectors: Float[np.ndarray, "batch size"], known: Theta
    ) -> dict[str, np.ndarray]:
        """The parameters of one mechanism that belong to coordinates, given the `known` ones."""
        prior = self.study.priors[mechanism]
        draw = self._thetas[mechanism]
        shapes = jax.eval_shape(lambda theta: to_unconstrained(prior, theta), draw)

        def one(rows: tuple[Array, Theta]) -> Theta:
            vector, known = rows
            unconstrained, start = {}, 0
            for name in self.names:
                if name in prior:
                    part = vector[start : start + self._sizes[name]]
                    unconstrained[name] = part.reshape(shapes[name].shape)
                start += self._sizes[name]
            theta = from_unconstrained(prior, unconstrained, known)
            return {name: theta[name] for name in unconstrained}

        count = len(vectors)
        given = {
            name: np.broadcast_to(value, (count, *np.shape(value))) for name, value in known.items()
        }
        rows = (np.asarray(vectors, np.float32), given)
        return in_blocks(self._program("theta", mechanism, one), rows)

    def derived(self, mechanism: str, theta: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The functions of theta that the task asks for; those that do not exist here left out."""
        task = find_task(self.study.task, Estimate)
        functions = {} if task is None else task.derived
        if not functions:
            return {}

        def one(theta: Theta) -> Theta:
            made = {}
            for name, function in functions.items():
                with contextlib.suppress(KeyError):
                    made[name] = jnp.asarray(function(theta))
            return made

        drawn = {name: theta[name] for name in self.study.priors[mechanism]}
        return in_blocks(self._program("derived", mechanism, one), drawn)

    def of_all(
        self, theta: Theta, mechanism: Int[np.ndarray, " batch"]
    ) -> Float[np.ndarray, "batch size"]:
        """The coordinates of simulations of any mechanisms."""
        theta = {name: np.asarray(value) for name, value in theta.items()}
        values = np.zeros((len(mechanism), self.size))
        for index, name in enumerate(self.study.mechanisms):
            (rows,) = np.nonzero(mechanism == index)
            if rows.size:
                values[rows] = self.of(name, {key: leaf[rows] for key, leaf in theta.items()})
        return values

    def _program(self, what: str, mechanism: str, one: Callable) -> Callable:
        key = (what, mechanism)
        if key not in self._programs:
            self._programs[key] = jax.jit(jax.vmap(one))
        return self._programs[key]


def in_blocks(program: Callable, rows: Any, size: int = BLOCK) -> Any:
    """A program over the rows of arrays, as NumPy, in blocks of one size."""
    count = len(jax.tree.leaves(rows)[0])
    size = min(size, 1 << max(count - 1, 1).bit_length())
    parts = []
    for start in range(0, count, size):
        block = jax.tree.map(lambda leaf, s=start: _padded(np.asarray(leaf), s, size), rows)
        parts.append(jax.device_get(program(block)))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    return joined


def _padded(rows: np.ndarray, start: int, size: int) -> np.ndarray:
    block = rows[start : start + size]
    return np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)])
