"""A sparse record: only some of the times are sampled."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from sgjax._types import Prior
from sgjax.observations._base import AbstractMissingness


class Subsample(AbstractMissingness):
    r"""Every `every`-th time from index `first` on is kept, or those of `indices` where given.

    A mask, without chance: the record keeps its length, so records of one shape can be sampled in
    different ways. It picks values and does not add them up.

    **Good values:** `every=7` for a weekly visit to a daily process.

    Source: Little and Rubin (2002).
    """

    every: int = eqx.field(default=2, static=True)
    first: int = eqx.field(default=0, static=True)
    indices: tuple[int, ...] | None = eqx.field(default=None, static=True)
    prior: Prior = eqx.field(default_factory=dict)

    def __check_init__(self):
        if self.every < 1 or self.first < 0:
            raise ValueError(
                f"`every` is {self.every} and `first` {self.first}; needed are every >= 1 and "
                "first >= 0."
            )

    def keep(self, key, theta, signal):
        num_times = signal.values.shape[0]
        indices = range(self.first, num_times, self.every) if self.indices is None else self.indices
        outside = [index for index in indices if not 0 <= index < num_times]
        if outside or not len(indices):
            raise ValueError(
                f"A record of {num_times} times has indices 0 to {num_times - 1}; asked for are "
                f"{outside or 'none of them'}."
            )
        kept = np.zeros(num_times, bool)
        kept[list(indices)] = True
        return jnp.broadcast_to(jnp.asarray(kept)[:, None], signal.values.shape)
