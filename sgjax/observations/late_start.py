"""A record that starts late."""

import equinox as eqx
import jax
import jax.numpy as jnp

from sgjax._types import Prior
from sgjax.observations._base import AbstractMissingness


class LateStart(AbstractMissingness):
    r"""The first $L$ times are lost in all channels, $L$ uniform on 0 to `max_late`.

    As where surveillance begins only once an outbreak has been noticed. The times keep their
    values: nothing is shifted. For a record that ends early see `VaryingLength`.

    **Good values:** up to a third of the record.

    Source: Little and Rubin (2002).
    """

    max_late: int = eqx.field(default=5, static=True)
    prior: Prior = eqx.field(default_factory=dict)

    def __check_init__(self):
        if self.max_late < 0:
            raise ValueError(f"`max_late` is {self.max_late}; it must be 0 times or more.")

    def keep(self, key, theta, signal):
        num_times = signal.values.shape[0]
        if self.max_late >= num_times:
            raise ValueError(
                f"A start up to {self.max_late} times late leaves nothing of {num_times}; "
                "lower `max_late`."
            )
        late = jax.random.randint(key, (), 0, self.max_late + 1, jnp.int32)
        kept = jnp.arange(num_times) >= late
        return jnp.broadcast_to(kept[:, None], signal.values.shape)
