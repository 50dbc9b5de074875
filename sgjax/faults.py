"""Simulations that are not finite: how many, of which mechanisms, and where in the prior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import Theta
from sgjax.devices import AXIS
from sgjax.stream import SimulationStream
from sgjax.study import Simulation, Study

QUARTERS = 4


class Faults(NamedTuple):
    """How many simulations were not finite."""

    mechanisms: Float[Array, "*devices mechanisms"]
    quarters: dict[str, Float[Array, "*devices quarters"]]
    """By parameter, in each quarter of its draws, from the lowest to the highest."""


def count_faults(stream: SimulationStream, batches: Simulation) -> Faults:
    """Counts the faults of several batches on each device, which leads; nothing is exchanged.

    Quarters are those of the simulations that a device draws together: some thousands. Under `jit`.
    """

    def count(theta: Theta, mechanism: Array, valid: Array) -> Faults:
        flat = lambda leaf: leaf.reshape(valid.size, *leaf.shape[valid.ndim :])
        given = (jax.tree.map(flat, theta), flat(mechanism), flat(valid))
        shapes = jax.eval_shape(lambda: _count(stream.study, *given))
        none = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        # Sorting is left out where there is nothing to tell.
        found = jax.lax.cond(valid.all(), none, lambda: _count(stream.study, *given))
        return jax.tree.map(lambda leaf: leaf[None], found)

    given = (batches.theta, batches.mechanism, batches.valid)
    if stream.mesh is None:
        return count(*given)
    split = PartitionSpec(None, AXIS)
    return jax.shard_map(
        count, mesh=stream.mesh, in_specs=split, out_specs=PartitionSpec(AXIS), check_vma=False
    )(*given)


def describe_faults(study: Study, faults: Faults, simulations: int) -> dict[str, Any]:
    """How many of so many simulations were not finite, and their shares; empty where none was.

    `mechanisms`, by name, and `quarters`, by parameter, are shares of the simulations there.
    """
    counts = np.asarray(faults.mechanisms, np.float64)
    if not counts.sum():
        return {}
    probabilities = np.array(list(study.mechanism_probabilities.values()))
    drawn = simulations * probabilities
    quarters = {}
    for name, found in faults.quarters.items():
        each = simulations * probabilities[_has(study, name)].sum() / QUARTERS
        quarters[name] = (np.asarray(found, np.float64) / each).tolist()
    return {
        "count": int(counts.sum()),
        "mechanisms": dict(zip(study.mechanisms, (counts / drawn).tolist(), strict=True)),
        "quarters": quarters,
    }


def explain_faults(invalid: dict[str, Any], simulations: int) -> str:
    """Which mechanisms and parameters faults go with, from `describe_faults` of so many draws."""
    share = invalid["count"] / simulations
    # A difference between quarters that chance alone would not make, in standard errors.
    error = np.sqrt(2 * share * (1 - share) / (simulations / QUARTERS))
    spreads = {name: max(shares) - min(shares) for name, shares in invalid["quarters"].items()}
    worst = sorted(spreads, key=lambda name: -spreads[name])[:3]
    words = [_words(name, invalid["quarters"][name]) for name in worst if spreads[name] > 5 * error]
    parts = []
    if len(invalid["mechanisms"]) > 1:
        shares = (f"{name} {failed:.1%}" for name, failed in invalid["mechanisms"].items())
        parts.append(f"By mechanism fail: {', '.join(shares)}.")
    if words:
        parts.append(f"They go with {'; '.join(words)}: narrow those priors or refine the steps.")
    else:
        parts.append("Every parameter is affected; check the equations and the steps.")
    return " ".join(parts)


def _words(name: str, shares: list[float]) -> str:
    most = max(shares)
    where = "large" if shares[-1] == most else "small" if shares[0] == most else "middling"
    return f"{where} {name} (of its quarters {', '.join(f'{share:.0%}' for share in shares)} fail)"


def _count(
    study: Study, theta: Theta, mechanism: Int[Array, " draws"], valid: Bool[Array, " draws"]
) -> Faults:
    kinds = jnp.arange(len(study.mechanisms))
    counts = jnp.sum(~valid & (mechanism == kinds[:, None]), axis=1, dtype=jnp.float32)
    quarters = {}
    for name, values in theta.items():
        present = jnp.asarray(_has(study, name))[mechanism]
        values = values.reshape(valid.size, -1).mean(axis=1)
        # Those without the parameter come last, beyond the four quarters.
        order = jnp.argsort(jnp.where(present, values, jnp.inf))
        place = QUARTERS * jnp.arange(valid.size) // jnp.maximum(jnp.sum(present), 1)
        place = jnp.minimum(place, QUARTERS)
        found = jnp.zeros(QUARTERS + 1).at[place].add((~valid)[order].astype(jnp.float32))
        quarters[name] = found[:QUARTERS]
    return Faults(counts, quarters)


def _has(study: Study, name: str) -> np.ndarray:
    """Of each mechanism, whether it has the parameter."""
    return np.array([name in prior for prior in study.priors.values()])
