"""Michaelis-Menten kinetics, by mass action: an enzyme at work."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from sgjax._types import Prior, Times, as_times
from sgjax.simulators._base import AbstractODESimulator
from sgjax.solvers import FixedSteps, Steps


class MichaelisMentenState(NamedTuple):
    """Concentrations."""

    enzyme: Array
    substrate: Array
    complex: Array
    product: Array


class MichaelisMenten(AbstractODESimulator):
    r"""An enzyme binds its substrate, and lets go of substrate or product.

    $$E + S \rightleftharpoons C \rightarrow E + P$$
    $$\dot E = -b + u + c, \quad \dot S = -b + u, \quad \dot C = b - u - c, \quad \dot P = c$$

    with binding $b = k_b E S$, unbinding $u = k_u C$ and catalysis $c = k_c C$. Concentrations in
    micromol per litre, $k_b$ per second and micromol per litre, $k_u$ and $k_c$ per second. The
    channels are substrate and product.

    **Expected behaviour:** after a short start the product forms at
    $k_c E_0 S / (K_M + S)$ with $K_M = (k_u + k_c) / k_b$: linear while substrate abounds, then
    exponential; $E + C$ and $S + C + P$ stay as they are.

    **Good values:** $k_b = k_u = k_c = 1$, $E_0 = 1$, $S_0 = 10$.

    Source: Michaelis and Menten (1913); Briggs and Haldane (1925).
    """

    initial_enzyme: float = 1.0
    initial_substrate: float = 10.0
    prior: Prior = eqx.field(
        default_factory=lambda: {
            "binding": dist.LogNormal(0.0, 0.3),
            "unbinding": dist.LogNormal(0.0, 0.3),
            "catalysis": dist.LogNormal(0.0, 0.3),
        }
    )
    ts: Times = eqx.field(
        converter=as_times, default_factory=lambda: [0.5 * i for i in range(1, 41)]
    )
    t0: float = 0.0
    solver: Steps = FixedSteps(num_substeps=8)

    channels = ("substrate", "product")

    def initial_state(self, theta):
        return MichaelisMentenState(
            self.quantity(theta, "initial_enzyme"),
            self.quantity(theta, "initial_substrate"),
            jnp.zeros(()),
            jnp.zeros(()),
        )

    def vector_field(self, t, state, theta):
        binding = theta["binding"] * state.enzyme * state.substrate
        unbinding = theta["unbinding"] * state.complex
        catalysis = theta["catalysis"] * state.complex
        return MichaelisMentenState(
            unbinding + catalysis - binding,
            unbinding - binding,
            binding - unbinding - catalysis,
            catalysis,
        )

    def readout(self, trajectory, theta):
        return jnp.stack([trajectory.substrate, trajectory.product], axis=-1)

    def conserved(self, state, theta):
        return jnp.stack(
            [state.enzyme + state.complex, state.substrate + state.complex + state.product]
        )
