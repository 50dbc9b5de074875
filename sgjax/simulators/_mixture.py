"""A prior over mechanisms: each simulation has one, a pure function of its number."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np

from sgjax._types import Times
from sgjax.simulators._base import AbstractSimulator


class MechanismMixture(eqx.Module):
    """Several mechanisms that see the world at the same times through the same channels.

    Simulation `i` has mechanism `mechanism_table[i mod P]`, P a power of two, so the mechanisms of
    a batch are known when it is compiled and each simulation costs only its own. The shares of the
    table *are* the prior over mechanisms; `probabilities` gives them.

    **Arguments:** `mechanisms` by name; `probabilities` (equal by default), rounded to multiples of
    `1 / table_size`. Raises `ValueError` where times or channels differ, or a mechanism would get
    no place in the table.
    """

    mechanisms: dict[str, AbstractSimulator]
    mechanism_table: np.ndarray

    def __init__(
        self,
        mechanisms: Mapping[str, AbstractSimulator],
        probabilities: Sequence[float] | None = None,
        table_size: int = 64,
    ):
        self.mechanisms = dict(mechanisms)
        _check_alike(self.mechanisms)
        shares = [1.0] * len(self.mechanisms) if probabilities is None else list(probabilities)
        self.mechanism_table = _table(self.mechanisms, shares, table_size)

    @property
    def ts(self) -> Times:
        """The observation times, common to all mechanisms."""
        return next(iter(self.mechanisms.values())).ts

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels, common to all mechanisms."""
        return next(iter(self.mechanisms.values())).channels

    @property
    def probabilities(self) -> dict[str, float]:
        """The prior over mechanisms, exactly as simulated."""
        counts = np.bincount(self.mechanism_table, minlength=len(self.mechanisms))
        shares = counts / self.mechanism_table.size
        return dict(zip(self.mechanisms, map(float, shares), strict=True))


def replace_mechanisms(
    simulator: AbstractSimulator | MechanismMixture, mechanisms: Mapping[str, Any]
) -> Any:
    """The simulator or mixture with other mechanisms under the same names."""
    if isinstance(simulator, MechanismMixture):
        shares = list(simulator.probabilities.values())
        return MechanismMixture(mechanisms, shares, simulator.mechanism_table.size)
    (alone,) = mechanisms.values()
    return alone


def _check_alike(mechanisms: dict[str, AbstractSimulator]) -> None:
    if not mechanisms:
        raise ValueError("A mixture needs at least one mechanism.")
    first = next(iter(mechanisms.values()))
    for name, simulator in mechanisms.items():
        if not np.array_equal(simulator.ts, first.ts):
            raise ValueError(f"{name} has other times than the first mechanism; give all one `ts`.")
        if len(simulator.channels) != len(first.channels):
            raise ValueError(
                f"{name} has the channels {simulator.channels}, the first mechanism "
                f"{first.channels}; a mixture needs as many in each."
            )


def _table(mechanisms: dict, shares: Sequence[float], size: int) -> np.ndarray:
    weights = np.asarray(shares, float)
    if size < 1 or size & (size - 1):
        raise ValueError(f"`table_size` must be a power of two; got {size}.")
    if weights.shape != (len(mechanisms),) or np.any(weights <= 0):
        raise ValueError(
            f"`probabilities` must be {len(mechanisms)} positive numbers; got {shares}."
        )
    ideal = size * weights / weights.sum()
    counts = np.floor(ideal).astype(int)
    # The places left over go to the largest remainders.
    for index in np.argsort(counts - ideal, kind="stable")[: size - counts.sum()]:
        counts[index] += 1
    if np.any(counts == 0):
        raise ValueError(
            f"With `table_size` {size} the probabilities {weights / weights.sum()} leave a "
            "mechanism without a place; take a larger power of two."
        )
    # Spread each mechanism evenly, so that any aligned part of a batch has nearly its share.
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    labels = np.repeat(np.arange(counts.size), counts)
    return labels[np.argsort(places, kind="stable")].astype(np.int32)
