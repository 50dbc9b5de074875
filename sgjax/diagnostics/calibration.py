"""Calibration on held-out simulations: `predictor, stream -> ranks of the truth, coverage`."""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sgjax._types import PRNGKey, Theta
from sgjax.predictors import AbstractPredictive, CannotGive, Predictor, natural
from sgjax.stream import SimulationStream
from sgjax.study import Simulation
from sgjax.tasks import Target

BLOCK = 1024
"""Simulations judged at once."""

NUM_DRAWS = 999
"""Posterior draws per simulation: the central 50 % and 90 % then hold whole numbers of ranks."""

LEVELS = np.arange(25, 976) / 1000
"""Where quantiles stand in for draws: what heads of quantiles know unless told otherwise."""

_LOWER, _UPPER = 159 - 25, 841 - 25  # the levels one sd from the middle of a normal

Judged: TypeAlias = dict[str, tuple[jax.Array, jax.Array, jax.Array]]
"""By quantity: the rank of the truth, the sd of the posterior, whether the simulation counts."""


class Calibration(eqx.Module):
    """Where the truth of held-out simulations lies among draws of their predicted posteriors.

    By quantity, over the simulations whose mechanism has it: `ranks` (the share of draws below the
    truth: uniform where the posterior is right), and `sds` of the posteriors. `mechanism` holds the
    probability given to each mechanism, and `truth` the index of the true one.
    """

    ranks: dict[str, np.ndarray]
    sds: dict[str, np.ndarray]
    mechanism: np.ndarray
    truth: np.ndarray
    num_simulations: int

    def coverage(self, name: str, level: float = 0.9) -> float:
        """The share of truths inside the central interval of a level."""
        return float(np.mean(self._inside(name, level)))

    def coverage_by_tercile(self, name: str, level: float = 0.9) -> list[float]:
        """The same within the thirds of simulations of small, middle and large posterior sd."""
        inside = self._inside(name, level)
        order = np.argsort(self.sds[name], kind="stable")
        return [float(np.mean(inside[third])) for third in np.array_split(order, 3)]

    def reliability(self, index: int = -1, num_bins: int = 10) -> np.ndarray:
        """Mean predicted probability of a mechanism, its frequency and the count, by equal bins."""
        order = np.argsort(self.mechanism[:, index], kind="stable")
        happened = self.truth == range(self.mechanism.shape[1])[index]
        rows = [
            (self.mechanism[part, index].mean(), happened[part].mean(), part.size)
            for part in np.array_split(order, num_bins)
        ]
        return np.array(rows)

    def summary(self) -> dict[str, dict]:
        """What a report shows, by quantity; `standard_error` is that of an exact 90 % interval."""
        return {
            name: {
                "coverage_90": self.coverage(name),
                "coverage_50": self.coverage(name, 0.5),
                "coverage_90_by_sd_tercile": self.coverage_by_tercile(name),
                "standard_error": float(np.sqrt(0.09 / ranks.size)),
                "num_simulations": int(ranks.size),
            }
            for name, ranks in self.ranks.items()
            if ranks.size
        }

    def _inside(self, name: str, level: float) -> np.ndarray:
        return np.abs(self.ranks[name] - 0.5) < level / 2


def calibrate(
    predictor: Predictor,
    stream: SimulationStream,
    key: PRNGKey,
    num_simulations: int = 10_000,
) -> Calibration:
    """Judges a predictor on simulations from the held-out root of a stream.

    Posteriors of parameters are those within the simulation's own mechanism; forecasts and
    functions of the latent course are judged by their quantiles. Raises `CannotGive` where a head
    has neither draws nor quantiles.
    """
    held_out, judge = stream.held_out(), _judge(predictor)
    period = predictor.study.simulator.mechanism_table.size
    block = -(-min(num_simulations, BLOCK) // period) * period
    ranks: dict[str, list] = {}
    sds: dict[str, list] = {}
    probabilities, truths, seen = [], [], 0
    for start in range(0, num_simulations, block):
        batch = held_out.take(block, start)
        parts, mechanism = jax.device_get(judge(batch, jax.random.fold_in(key, start)))
        valid = np.asarray(batch.valid)
        for part in parts:
            for name, (rank, sd, counted) in part.items():
                ranks.setdefault(name, []).append(rank[counted])
                sds.setdefault(name, []).append(sd[counted])
        probabilities.append(mechanism[valid])
        truths.append(np.asarray(batch.mechanism)[valid])
        seen += int(valid.sum())
    if not seen:
        raise ValueError("No held-out simulation is finite; check the equations and priors.")
    return Calibration(
        {name: np.concatenate(parts) for name, parts in ranks.items()},
        {name: np.concatenate(parts) for name, parts in sds.items()},
        np.concatenate(probabilities),
        np.concatenate(truths),
        seen,
    )


def _judge(predictor: Predictor) -> Callable:
    study = predictor.study
    table = study.simulator.mechanism_table

    @jax.jit
    def judge(batch: Simulation, key: PRNGKey):
        _, blocks = predictor.predict(batch.example.inputs)
        size = batch.valid.shape[0]
        labels = table[np.arange(size) % table.size]
        parts = []
        for index, mechanism in enumerate(study.mechanisms):
            if "parameters" in blocks:
                (places,) = np.nonzero(labels == index)
                made, drawn = jax.tree.map(
                    lambda leaf, places=places: leaf[places], (blocks, batch)
                )
                keys = jax.random.split(jax.random.fold_in(key, index), places.size)
                parts.append(_parameters(predictor, mechanism, index, made, drawn, keys))
        for block, spec in study.specs.items():
            if spec.kind not in ("parameters", "mechanism"):
                target = batch.example.targets[block]
                parts.append(_by_levels(spec.names, blocks[block], target, batch.valid))
        if "mechanism" in blocks:
            probabilities = jax.vmap(lambda one: one.mean())(blocks["mechanism"])
        else:
            probabilities = jnp.ones((size, len(study.mechanisms)))
        return parts, probabilities

    return judge


def _parameters(
    predictor: Predictor,
    mechanism: str,
    index: int,
    blocks: dict,
    batch: Simulation,
    keys: PRNGKey,
) -> Judged:
    """Parameters and derived quantities, for simulations of one mechanism."""
    study, target = predictor.study, batch.example.targets["parameters"]
    predictive = jax.vmap(lambda one: one.select(index))(blocks["parameters"])

    def one(predictive: AbstractPredictive, target: jax.Array, theta: Theta, key: PRNGKey):
        known = {name: theta[name] for name in study.known}
        draws = predictive.sample(key, NUM_DRAWS)
        drawn = jax.vmap(lambda row: natural(study, mechanism, row, known))(draws)
        truth = natural(study, mechanism, target, known)
        ranks = {name: _rank(drawn[name], truth[name]) for name in truth if truth[name].ndim == 0}
        return {name: (rank, jnp.std(drawn[name])) for name, rank in ranks.items()}

    try:
        judged = jax.vmap(one)(predictive, target.values, batch.theta, keys)
    except CannotGive:  # no density, so no draws; the maps to the real line leave ranks unchanged
        spec = study.specs["parameters"]
        here = [
            name for name, exists in zip(spec.names, spec.present[index], strict=True) if exists
        ]
        judged = _by_levels(spec.names, predictive, target, batch.valid)
        return {name: judged[name] for name in here}
    return {name: (rank, sd, batch.valid) for name, (rank, sd) in judged.items()}


def _by_levels(
    names: tuple[str, ...],
    predictive: AbstractPredictive,
    target: Target,
    valid: jax.Array,
) -> Judged:
    """Each component by itself, from quantiles alone: the level at which the truth stands."""
    low, high = LEVELS[0], LEVELS[-1]

    def one(predictive: AbstractPredictive, values: jax.Array):
        quantiles = predictive.quantile(LEVELS)
        below = jnp.sum(quantiles < values, axis=0)
        level = low + (below - 0.5) * (high - low) / (LEVELS.size - 1)
        rank = jnp.where(below == 0, low / 2, level)
        rank = jnp.where(below == LEVELS.size, (1 + high) / 2, rank)
        return rank, (quantiles[_UPPER] - quantiles[_LOWER]) / 2

    ranks, sds = jax.vmap(one)(predictive, target.values)
    counted = target.mask & valid[:, None]
    return {
        name: (ranks[:, column], sds[:, column], counted[:, column])
        for column, name in enumerate(names)
    }


def _rank(draws: jax.Array, truth: jax.Array) -> jax.Array:
    # The middle of the slot between draws, so that slots are symmetric about one half.
    return (jnp.sum(draws < truth) + 0.5) / (draws.shape[0] + 1)
