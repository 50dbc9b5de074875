"""A record of random length."""

import equinox as eqx
import jax
import jax.numpy as jnp

from sgjax._types import Prior
from sgjax.observations._base import AbstractMissingness


class VaryingLength(AbstractMissingness):
    r"""The first $L$ times are kept and all later ones lost, $L$ uniform on `min_length` to all.

    So one predictor learns from records of every length, as an outbreak unfolds.

    **Good values:** `min_length` of a few times, enough to tell growth from noise.

    Source: Radev et al. (2020), who vary the length between batches.
    """

    min_length: int = eqx.field(default=3, static=True)
    prior: Prior = eqx.field(default_factory=dict)

    def __check_init__(self):
        if self.min_length < 1:
            raise ValueError(f"`min_length` is {self.min_length}; it must be 1 time or more.")

    def keep(self, key, theta, signal):
        num_times = signal.values.shape[0]
        if self.min_length > num_times:
            raise ValueError(
                f"A length of {self.min_length} times or more exceeds the record's {num_times}; "
                "lower `min_length`."
            )
        length = jax.random.randint(key, (), self.min_length, num_times + 1, jnp.int32)
        kept = jnp.arange(num_times) < length
        return jnp.broadcast_to(kept[:, None], signal.values.shape)
