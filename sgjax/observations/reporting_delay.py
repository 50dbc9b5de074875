"""Reporting delay: a convolution with the distribution of delays."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from sgjax._types import Prior, Theta
from sgjax.observations._base import AbstractTransform


class ReportingDelay(AbstractTransform):
    r"""Events are reported $d$ steps late with weight $w_d$: $y_t = \sum_d w_d \mu_{t-d}$.

    The delay has a gamma density $g$ with mean `delay_mean`, in steps of the grid, and shape
    `delay_shape`; $w_d \propto g(d + 1/2)$ for $d = 0 \dots D$, `max_delay`, with sum 1. The
    `ts` must be evenly spaced, one step a day say, and the signal a count per step.

    What would be reported after the last time is lost, as in any record that is still filling up;
    before the first time the signal is taken as zero. A signal that ends $D$ steps before the
    record keeps its sum. Place this stage before any that loses values.

    **Good values:** `delay_mean` of 1.5 to 5 days for cases, 7 to 20 for deaths (then
    `max_delay` about 60); `delay_shape` 1 (exponential) to 5; `max_delay` four means or more.

    Source: Lawless (1994).
    """

    delay_mean: ArrayLike = 4.0
    delay_shape: ArrayLike = 2.0
    max_delay: int = eqx.field(default=20, static=True)
    prior: Prior = eqx.field(default_factory=lambda: {"delay_mean": dist.Uniform(1.0, 6.0)})

    def __check_init__(self):
        if self.max_delay < 0:
            raise ValueError(f"`max_delay` is {self.max_delay}; it must be 0 steps or more.")

    def weights(self, theta: Theta) -> Float[Array, " delays"]:
        """The share reported after 0, 1, ... `max_delay` steps."""
        shape = self.quantity(theta, "delay_shape")
        delays = jnp.arange(self.max_delay + 1) + 0.5
        # In logarithms, so that a mean far below one step leaves no 0 / 0.
        log_density = (shape - 1) * jnp.log(delays)
        return jax.nn.softmax(log_density - delays * shape / self.quantity(theta, "delay_mean"))

    def transform(self, theta, signal):
        num_times = signal.values.shape[0]
        weights = self.weights(theta).astype(signal.values.dtype)
        reported = jnp.zeros_like(signal.values)
        # Shifted sums fuse into one pass; a convolution or a matrix for each simulation does not.
        for delay in range(min(self.max_delay + 1, num_times)):
            late = jnp.pad(signal.values[: num_times - delay], ((delay, 0), (0, 0)))
            reported = reported + weights[delay] * late
        return signal.with_values(reported)
