"""Adaptive steps, each simulation its own; explicit, or implicit for stiff systems."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from sgjax._types import Times
from sgjax.solvers._base import Steps, adjoint, complex_states


class AdaptiveSteps(Steps):
    """Adaptive steps, each simulation its own; with `implicit=True` a solver for stiff systems.

    Explicit: Tsit5 (Tsitouras, 2011); implicit: Kvaerno5 (Kvaerno, 2004), both under a PID
    controller. `absolute_tolerance` must lie below the smallest state that matters: an outbreak
    that starts at a millionth of the population is lost in a tolerance of 1e-6. A simulation that
    needs more than `max_steps` steps comes back non-finite and is counted as invalid. For
    ensembles, `LaneSteps` are many times faster, but have no reverse-mode derivatives.
    """

    together = False
    relative_tolerance: float = eqx.field(static=True, default=1e-4)
    absolute_tolerance: float = eqx.field(static=True, default=1e-6)
    implicit: bool = eqx.field(static=True, default=False)
    max_steps: int = eqx.field(static=True, default=4096)

    def __check_init__(self):
        if not (self.relative_tolerance > 0 and self.absolute_tolerance > 0):
            raise ValueError("Tolerances must be positive.")

    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        with complex_states():
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(vector_field),
                diffrax.Kvaerno5() if self.implicit else diffrax.Tsit5(),
                t0=t0,
                t1=ts[-1] if ts[-1] > t0 else t0 + 1.0,
                dt0=None,
                y0=state,
                args=args,
                stepsize_controller=diffrax.PIDController(
                    rtol=self.relative_tolerance, atol=self.absolute_tolerance
                ),
                saveat=diffrax.SaveAt(ts=jnp.asarray(ts, jnp.result_type(float))),
                max_steps=self.max_steps,
                adjoint=adjoint(),
                throw=False,
            )
        ok = solution.result == diffrax.RESULTS.successful
        return jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.nan), solution.ys)
