"""FitzHugh-Nagumo: a nerve cell that fires."""

from typing import NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class FitzHughNagumoState(NamedTuple):
    """Membrane voltage and recovery, without unit."""

    voltage: Array
    recovery: Array


class FitzHughNagumo(AbstractODESimulator):
    r"""An excitable cell: fast voltage $v$, slow recovery $w$, constant input current $I$.

    $$\dot v = v - v^3 / 3 - w + I, \quad \dot w = (v + a - b w) / \tau$$

    Without units. The channel is the voltage, $v$.

    **Expected behaviour:** at rest for a small current; a train of spikes between about -2 and 2
    for currents of about 0.33 to 1.42 (at $a = 0.7$, $b = 0.8$, $\tau = 12.5$); steady above that.

    **Good values:** $a = 0.7$, $b = 0.8$, $\tau = 12.5$, $I = 0.5$: a spike every 40 units of time.

    Source: FitzHugh (1961); Nagumo, Arimoto and Yoshizawa (1962).
    """

    initial_voltage: float = -1.0
    initial_recovery: float = -0.5
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "current": dist.Uniform(0.0, 1.5),
            "a": dist.LogNormal(-0.36, 0.2),
            "b": dist.LogNormal(-0.22, 0.2),
            "tau": dist.LogNormal(2.5, 0.3),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1, 101))
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=4)

    channels = ("voltage",)

    def initial_state(self, theta):
        return FitzHughNagumoState(
            self.quantity(theta, "initial_voltage"), self.quantity(theta, "initial_recovery")
        )

    def vector_field(self, t, state, theta):
        v, w = state
        return FitzHughNagumoState(
            v - v * v * v / 3 - w + theta["current"],
            (v + theta["a"] - theta["b"] * w) / theta["tau"],
        )

    def readout(self, trajectory, theta):
        return trajectory.voltage[:, None]
