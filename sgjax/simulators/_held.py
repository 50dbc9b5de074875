"""Mechanisms that a held control drives: `(key, theta with a control a hold) -> Latent`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from sgjax._types import Theta
from sgjax.simulators._base import AbstractODESimulator

WHOLE = np.ones(1)
"""The end of a hold, in units of its length."""


class AbstractControlledSimulator(AbstractODESimulator):
    r"""A mechanism $\dot y = f(t, y, u_j; \theta)$ whose control $u_j$ is held between its times.

    Hold $j$ lasts from one time of `ts` (the first: from `t0`) to the next. The prior draws
    `control`, one entry a hold, [holds], or one row a hold, [holds, actions]. `vector_field` sees
    the parameters with `theta["control"]` that of the present hold alone: one number, or a vector
    of the actions. All other methods see every hold's.

    A control that is looked up by time is wrong by a whole hold at the end of a step, where the
    last stage of most methods lies, and costs the method its order. Here each hold is a solve of
    its own, from its start to its end, so that no step sees a jump; times may be uneven, and each
    hold has all of a fixed-step solver's `num_substeps`, however long it is. Any solver will do,
    but for `ExponentialSteps`, which want the linear part apart.
    """

    def __check_init__(self):
        if "control" not in self.prior:
            raise ValueError(
                f"{type(self).__name__} has no prior of `control`, what it is driven by in each "
                f"hold; {self._remedy()}."
            )
        shape = getattr(self.prior["control"], "event_shape", None)
        if shape is not None:  # else a function of other parameters, which is seen once it runs
            self._check_holds(shape)

    @property
    def num_holds(self) -> int:
        """How many controls there are, one for each gap between `t0` and the times."""
        return self.ts.size - int(self.ts[0] == self.t0)

    def parameters_at_start(self, theta: Theta) -> Theta:
        control = jnp.asarray(theta["control"])
        self._check_holds(control.shape)
        return theta | {"control": control[0]}

    def _trajectory(self, solver, field, state, thetas, axis):
        shape = list(jnp.shape(thetas["control"]))
        if axis is not None:
            del shape[axis]
        self._check_holds(tuple(shape))
        # Behind a leading batch the holds come second.
        controls = jnp.moveaxis(thetas["control"], 1 if axis == 0 else 0, 0)

        def hold(state: PyTree[Array], given: tuple[Array, Array, Array]) -> Any:
            start, length, control = given

            # In units of the hold, whose ends are then known when this is compiled.
            def slope(t: Array, state: PyTree[Array], thetas: Theta) -> PyTree[Array]:
                rates = field(start + length * t, state, thetas)
                return jax.tree.map(lambda rate: length * rate, rates)

            ends = solver.solve(slope, state, 0.0, WHOLE, thetas | {"control": control})
            end = jax.tree.map(lambda leaf: leaf[-1], ends)
            return end, end

        real = jnp.result_type(float)
        stops = np.concatenate([[self.t0], self.ts[self.ts.size - self.num_holds :]])
        times, lengths = jnp.asarray(stops[:-1], real), jnp.asarray(np.diff(stops), real)
        _, later = jax.lax.scan(hold, state, (times, lengths, controls))
        if self.num_holds == self.ts.size:
            return later
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), state, later)

    def _check_holds(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (1, 2) or shape[0] != self.num_holds:
            raise ValueError(
                f"{type(self).__name__} holds {self.num_holds} controls, from each time to the "
                f"next, but the shape of `control` is {shape}: {self._remedy()}, or change `ts`."
            )

    def _remedy(self) -> str:
        return (
            "give the prior one entry (or row) a hold, such as "
            f"Uniform(-1.0, 1.0).expand([{self.num_holds}]).to_event(1)"
        )
