"""The Ornstein-Uhlenbeck process: noise that is pulled back to a mean."""

from typing import NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._sde import AbstractSDESimulator


class OrnsteinUhlenbeckState(NamedTuple):
    """The value."""

    value: Array


class OrnsteinUhlenbeck(AbstractSDESimulator):
    r"""A random walk on a spring: a particle's velocity, an interest rate, a trait.

    $$dx = \kappa (\mu - x)\,dt + s\,dW$$

    Reversion rate $\kappa$ per unit of time, mean $\mu$ in the unit of $x$, noise $s$ in that unit
    per square root of time. The channel is $x$. The noise does not depend on $x$, so Itô's and
    Stratonovich's senses agree.

    **Expected behaviour:** Gaussian at all times, with mean $\mu + (x_0 - \mu) e^{-\kappa t}$ and
    variance $s^2 (1 - e^{-2 \kappa t}) / (2 \kappa)$; stationary after a few $1/\kappa$, with
    autocorrelation $e^{-\kappa |\Delta t|}$.

    **Good values:** $\kappa = 0.5$, $\mu = 0$, $s = 1$: a stationary standard deviation of 1.

    Source: Uhlenbeck and Ornstein (1930).
    """

    initial_value: float = 0.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "reversion": dist.LogNormal(-0.7, 0.5),
            "mean": dist.Normal(0.0, 1.0),
            "noise": dist.LogNormal(0.0, 0.5),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 51))
    t0: float = 0.0
    num_substeps: int = 32

    channels = ("value",)

    def initial_state(self, theta):
        return OrnsteinUhlenbeckState(self.quantity(theta, "initial_value"))

    def drift(self, t, state, theta):
        return OrnsteinUhlenbeckState(theta["reversion"] * (theta["mean"] - state.value))

    def diffusion(self, t, state, theta):
        return OrnsteinUhlenbeckState(theta["noise"])

    def readout(self, trajectory, theta):
        return trajectory.value[:, None]
