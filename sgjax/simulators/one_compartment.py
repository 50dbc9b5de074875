"""One compartment: a drug taken by mouth, and eliminated by an enzyme that saturates."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class OneCompartmentState(NamedTuple):
    """Milligrams of the drug."""

    gut: Array
    body: Array
    eliminated: Array


class OneCompartment(AbstractODESimulator):
    r"""A dose by mouth: first-order absorption, Michaelis-Menten elimination.

    $$\dot G = -k_a G, \quad \dot B = k_a G - \frac{v C}{K + C}, \quad
      \dot X = \frac{v C}{K + C}, \quad C = B / V$$

    Absorption rate $k_a$ per hour, greatest elimination $v$ in mg per hour, Michaelis constant $K$
    in mg per litre, volume $V$ in litres, dose in mg. The channel is the concentration, $C$.

    **Expected behaviour:** rises while more is absorbed than eliminated; far above $K$ it falls in
    a straight line of slope $-v/V$, far below in an exponential of rate $v / (K V)$;
    $G + B + X$ is the dose throughout.

    **Good values:** phenytoin: $k_a = 1$, $v = 20$, $K = 5$, $V = 45$ with a dose of 300 mg, about
    5 mg per litre at the peak.

    Source: Wagner (1973).
    """

    dose: float = 300.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "absorption_rate": dist.LogNormal(0.0, 0.4),
            "elimination": dist.LogNormal(3.0, 0.3),
            "michaelis_constant": dist.LogNormal(1.6, 0.4),
            "volume": dist.LogNormal(3.8, 0.2),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 49))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("concentration",)

    def initial_state(self, theta):
        return OneCompartmentState(self.quantity(theta, "dose"), jnp.zeros(()), jnp.zeros(()))

    def vector_field(self, t, state, theta):
        concentration = state.body / theta["volume"]
        absorption = theta["absorption_rate"] * state.gut
        saturation = concentration / (theta["michaelis_constant"] + concentration)
        elimination = theta["elimination"] * saturation
        return OneCompartmentState(-absorption, absorption - elimination, elimination)

    def readout(self, trajectory, theta):
        return (trajectory.body / theta["volume"])[:, None]

    def conserved(self, state, theta):
        return state.gut + state.body + state.eliminated
