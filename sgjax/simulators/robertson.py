"""Robertson's reaction: three rates, nine orders of magnitude apart."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import LaneSteps, Steps


class RobertsonState(NamedTuple):
    """Concentrations, as shares of the start."""

    A: Array
    B: Array
    C: Array


class Robertson(AbstractODESimulator):
    r"""An autocatalytic reaction, the standard test of a stiff solver.

    $$\dot A = -k_1 A + k_3 B C, \quad \dot B = k_1 A - k_2 B^2 - k_3 B C, \quad
      \dot C = k_2 B^2$$

    Rates per second, concentrations as shares. The channels are $A$, $B$ and $C$.

    **Expected behaviour:** $B$ rises to some 4e-5 within milliseconds and stays slaved to $A$,
    which turns into $C$ over hours; $A + B + C = 1$. Stiff: explicit steps would have to be shorter
    than a millisecond, so the solver is implicit and adaptive. It leaves $A$ and $C$ right to 1e-5
    of their largest value and each $B$ to 1e-4, although in float32 the rates cancel to the seventh
    digit. Derivatives are forward-mode only; `AdaptiveSteps(implicit=True)` has reverse-mode ones.

    **Good values:** $k_1 = 0.04$, $k_2 = 3 \cdot 10^7$, $k_3 = 10^4$: $A = 0.7158$ at 40 s.

    Source: Robertson (1966).
    """

    initial_A: float = 1.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "k1": dist.LogNormal(-3.2, 0.3),
            "k2": dist.LogNormal(17.2, 0.3),
            "k3": dist.LogNormal(9.2, 0.3),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: np.geomspace(0.4, 4e4, 26))
    t0: float = 0.0
    solver: Steps = LaneSteps(implicit=True)

    channels = ("A", "B", "C")

    def initial_state(self, theta):
        return RobertsonState(self.quantity(theta, "initial_A"), jnp.zeros(()), jnp.zeros(()))

    def vector_field(self, t, state, theta):
        first = theta["k1"] * state.A
        second = theta["k2"] * state.B * state.B
        third = theta["k3"] * state.B * state.C
        return RobertsonState(third - first, first - second - third, second)

    def readout(self, trajectory, theta):
        return jnp.stack(trajectory, axis=-1)

    def conserved(self, state, theta):
        return state.A + state.B + state.C
