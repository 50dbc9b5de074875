"""A block of consecutive times missing."""

import equinox as eqx
import jax
import jax.numpy as jnp

from sgjax._types import Prior
from sgjax.observations._base import AbstractMissingness


class MissingBlock(AbstractMissingness):
    r"""One gap: a run of consecutive times is lost in all channels.

    Its length is uniform from `min_length` to `max_length` times, its place uniform among those
    inside the record. Two of these in a chain make two gaps, which may overlap.

    **Good values:** 0 to 6 times; a gap of 2 to 6 weeks is typical of weekly surveillance.

    Source: Little and Rubin (2002).
    """

    min_length: int = eqx.field(default=0, static=True)
    max_length: int = eqx.field(default=5, static=True)
    prior: Prior = eqx.field(default_factory=dict)

    def __check_init__(self):
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"A gap of {self.min_length} to {self.max_length} times; needed is "
                "0 <= min_length <= max_length."
            )

    def keep(self, key, theta, signal):
        num_times = signal.values.shape[0]
        if self.max_length > num_times:
            raise ValueError(
                f"A gap of up to {self.max_length} times exceeds the record's {num_times}; "
                "lower `max_length`."
            )
        key_length, key_start = jax.random.split(key)
        length = jax.random.randint(key_length, (), self.min_length, self.max_length + 1, jnp.int32)
        start = jax.random.randint(key_start, (), 0, num_times - length + 1, jnp.int32)
        index = jnp.arange(num_times)
        outside = (index < start) | (index >= start + length)
        return jnp.broadcast_to(outside[:, None], signal.values.shape)
