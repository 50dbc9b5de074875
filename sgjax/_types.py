"""Array aliases that more than one module uses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key, UInt32

PRNGKey: TypeAlias = Key[Array, "..."]
"""A key, as made by `jax.random.key`, or an array of keys."""

SimulationId: TypeAlias = UInt32[Array, "2"]
"""A 64-bit number as two words, high and low."""

Theta: TypeAlias = dict[str, Any]
"""The parameters of one simulation (or of many, the batch leading): an array by name."""

Times: TypeAlias = Float[np.ndarray, " times"]
"""Observation times: static, so NumPy."""

Prior: TypeAlias = Mapping[str, dist.Distribution | Callable[[Theta], dist.Distribution]]
"""A prior: by name, a distribution or a function of the parameters named before it."""


def as_times(ts: Sequence[float] | np.ndarray | range) -> Times:
    """Observation times as a float64 vector; raises `ValueError` where they do not increase."""
    times = np.asarray(list(ts) if isinstance(ts, range) else ts, dtype=np.float64)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"`ts` must be a non-empty vector of times; it has shape {times.shape}.")
    if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0):
        raise ValueError(f"`ts` must be finite and strictly increasing; got {times}.")
    return times
