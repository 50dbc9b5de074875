"""Calibration on held-out simulations: `predictor, stream -> ranks of the truth, coverage`."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sgjax._types import PRNGKey, Theta
from sgjax.predictors import ByMechanism, Predictor, natural
from sgjax.stream import SimulationStream
from sgjax.study import Simulation

BLOCK = 1024
"""Simulations judged at once."""

NUM_DRAWS = 999
"""Posterior draws per simulation: the central 50 % and 90 % then hold whole numbers of ranks."""


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

    Each posterior is that within the simulation's own mechanism. Raises `CannotGive` where the
    predictor's head cannot be sampled.
    """
    held_out, judge = stream.held_out(), _judge(predictor)
    period = predictor.study.simulator.mechanism_table.size
    block = -(-min(num_simulations, BLOCK) // period) * period
    ranks: dict[str, list] = {}
    sds: dict[str, list] = {}
    probabilities, truths, seen = [], [], 0
    for start in range(0, num_simulations, block):
        batch = held_out.take(block, start)
        by_mechanism, mechanism = jax.device_get(judge(batch, jax.random.fold_in(key, start)))
        valid = np.asarray(batch.valid)
        for part in by_mechanism:
            for name, (rank, sd) in part["quantities"].items():
                ranks.setdefault(name, []).append(rank[part["valid"]])
                sds.setdefault(name, []).append(sd[part["valid"]])
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
            (places,) = np.nonzero(labels == index)
            keys = jax.random.split(jax.random.fold_in(key, index), places.size)
            quantities = _quantities(predictor, mechanism, index, blocks, batch, places, keys)
            parts.append({"valid": batch.valid[places], "quantities": quantities})
        if "mechanism" in blocks:
            probabilities = jax.vmap(lambda one: one.mean())(blocks["mechanism"])
        else:
            probabilities = jnp.ones((size, len(study.mechanisms)))
        return parts, probabilities

    return judge


def _quantities(
    predictor: Predictor,
    mechanism: str,
    index: int,
    blocks: dict,
    batch: Simulation,
    places: np.ndarray,
    keys: PRNGKey,
) -> dict[str, tuple]:
    """By quantity: the rank of the truth among draws, and their sd, for places of one mechanism."""
    if "parameters" not in blocks:
        return {}
    study = predictor.study
    predictive, targets, theta = jax.tree.map(
        lambda leaf: leaf[places], (blocks["parameters"], batch.example.targets, batch.theta)
    )

    def one(predictive: ByMechanism, target: jax.Array, theta: Theta, key: PRNGKey):
        known = {name: theta[name] for name in study.known}
        draws = predictive.select(index).sample(key, NUM_DRAWS)
        drawn = jax.vmap(lambda row: natural(study, mechanism, row, known))(draws)
        truth = natural(study, mechanism, target, known)
        ranks = {name: _rank(drawn[name], truth[name]) for name in truth if truth[name].ndim == 0}
        return {name: (rank, jnp.std(drawn[name])) for name, rank in ranks.items()}

    return jax.vmap(one)(predictive, targets["parameters"].values, theta, keys)


def _rank(draws: jax.Array, truth: jax.Array) -> jax.Array:
    # The middle of the slot between draws, so that slots are symmetric about one half.
    return (jnp.sum(draws < truth) + 0.5) / (draws.shape[0] + 1)
