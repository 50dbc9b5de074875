"""Posterior means and covariances of every quantity: `predictor, inputs -> moments`, many at once.

Means of draws are reduced on the device, where they are made. Parameters and functions of them are
in their own units, or their logarithms; functions of the latent course as they are learned.
"""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.devices import jit
from sgjax.predictors import AbstractPredictive, ByMechanism, CannotGive, Predictor, natural
from sgjax.tasks import Inputs, Target, component_names

BLOCK = 1024
"""Simulations of one program."""


class Moments(NamedTuple):
    """Of many posteriors, in the order of the names."""

    mean: Float[np.ndarray, "series size"]
    covariance: Float[np.ndarray, "series size size"]


class Reader:
    """The moments of a predictor's posteriors within one mechanism, of one block of the task.

    `names` are its quantities: the estimated parameters and the functions of them, or for
    `block="latent"` the functions of the latent course; `parameters` says how many of the first are
    parameters. `logarithmic` are those measured on the log scale.

    Raises `CannotGive` where the head has no draws.
    """

    def __init__(self, predictor: Predictor, mechanism: str, block: str, num_draws: int):
        self.predictor, self.mechanism, self.block = predictor, mechanism, block
        self.num_draws, self.logarithmic = num_draws, frozenset[str]()
        study = predictor.study
        spec, index = study.specs[block], list(study.mechanisms).index(mechanism)
        self.parameters, self.names, self._index = 0, spec.names, index
        self._truths = jax.jit(jax.vmap(self._numbers))
        self._read = jit(self._moments)
        if block == "parameters":
            sizes = _sizes(predictor, mechanism)
            prior = study.priors[mechanism]
            self.parameters = sum(size for name, size in sizes.items() if name in prior)
            labels = [component_names(name, size) for name, size in sizes.items()]
            self.names = tuple(label for each in labels for label in each)

    def measure(self, logarithmic: Collection[str]) -> None:
        """Says which are measured on the log scale; before the first call."""
        self.logarithmic = frozenset(logarithmic)

    def truths(self, target: Target, known: Theta) -> Float[np.ndarray, "series size"]:
        """The true quantities of simulations, in their own units."""
        return np.asarray(self._truths(target.values, known), np.float64)

    def scaled(self, values: Float[np.ndarray, "series size"]) -> np.ndarray:
        """Quantities on the scale they are measured on."""
        values = values.copy()
        for column, name in enumerate(self.names):
            if name in self.logarithmic:
                with np.errstate(divide="ignore", invalid="ignore"):
                    values[:, column] = np.log(values[:, column])
        return values

    def __call__(self, inputs: Inputs, known: Theta, key: PRNGKey) -> Moments:
        """The moments of the posteriors of many series."""
        count, parts = inputs.values.shape[0], []
        size = min(BLOCK, 1 << max(count - 1, 0).bit_length())
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            given = jax.tree.map(lambda leaf, at=rows: jnp.asarray(leaf)[at], (inputs, known))
            keys = jax.random.split(jax.random.fold_in(key, start), size)
            parts.append(jax.device_get(self._read(*given, keys)))
        join = lambda *leaves: np.concatenate(leaves, dtype=np.float64)[:count]
        return Moments(*jax.tree.map(join, *parts))

    def _numbers(self, row: Array, known: Theta) -> Float[Array, " size"]:
        if self.block != "parameters":
            return row
        theta = natural(self.predictor.study, self.mechanism, row, known)
        return jnp.concatenate([jnp.ravel(values) for values in theta.values()])

    def _moments(self, inputs: Inputs, known: Theta, keys: PRNGKey) -> tuple[Array, Array]:
        logarithmic = np.array([name in self.logarithmic for name in self.names])

        def one(inputs: Inputs, known: Theta, key: PRNGKey) -> tuple[Array, Array]:
            predictive: AbstractPredictive = self.predictor.network(inputs)[1][self.block]
            if isinstance(predictive, ByMechanism):
                predictive = predictive.select(self._index)
            rows = predictive.sample(key, self.num_draws)
            draws = jax.vmap(lambda row: self._numbers(row, known))(rows)
            tiny = jnp.finfo(draws.dtype).tiny
            logs = jnp.log(jnp.maximum(draws, tiny))
            draws = jnp.where(logarithmic, logs, draws)
            mean = jnp.mean(draws, axis=0)
            centred = draws - mean
            return mean, centred.T @ centred / (self.num_draws - 1)

        return jax.vmap(one)(inputs, known, keys)


def _sizes(predictor: Predictor, mechanism: str) -> dict[str, int]:
    """How many numbers each quantity has, in the order of `natural`, which no jitted dict keeps."""
    study, sizes = predictor.study, {}

    def look(row: Array, known: Theta) -> None:
        made = natural(study, mechanism, row, known)
        sizes.update({name: jnp.size(values) for name, values in made.items()})

    row = jnp.zeros(len(study.specs["parameters"].names))
    jax.eval_shape(look, row, {name: jnp.zeros(()) for name in study.known})
    return sizes


def readers(predictor: Predictor, num_draws: int) -> tuple[list[Reader], list[str]]:
    """One reader for each mechanism and block of numbers, and notes on what cannot be read."""
    study, made, notes = predictor.study, [], []
    for block, spec in study.specs.items():
        if spec.kind not in ("parameters", "quantities"):
            continue
        for mechanism in study.mechanisms:
            reader = Reader(predictor, mechanism, block, num_draws)
            try:
                jax.eval_shape(reader._moments, *_shapes(predictor))
            except CannotGive as reason:
                notes.append(f"{block}: {reason}")
                break
            made.append(reader)
    return made, notes


def _shapes(predictor: Predictor) -> tuple[Inputs, Theta, PRNGKey]:
    """Blank inputs of one series."""
    study = predictor.study
    times, channels = study.context_ts.size, len(study.channels)
    values = jnp.zeros((1, times, channels))
    known = {name: jnp.ones(1) for name in study.known}
    inputs = Inputs(jnp.zeros((1, times)), values, values == 0, jnp.zeros((1, len(study.known))))
    return inputs, known, jax.random.split(jax.random.key(0), 1)
