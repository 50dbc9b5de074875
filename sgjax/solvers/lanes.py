"""Adaptive steps for ensembles: lanes that take the next simulation as soon as one is done.

Mapped over a batch, an adaptive solve lasts as long as its slowest member, and one that never ends
holds up all. Here a fixed number of lanes step together, each at its own time with its own step; a
lane that reaches the last time, or gives up, starts the next simulation of the batch.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from sgjax._types import Times
from sgjax.solvers._base import Steps
from sgjax.solvers.rosenbrock import rodas4

_TABLEAU = diffrax.Tsit5.tableau
_NODES = (0.0, *map(float, _TABLEAU.c))
_ROWS = ((), *(tuple(map(float, row)) for row in _TABLEAU.a_lower))
_ERROR = tuple(map(float, _TABLEAU.b_error))

SAFETY, SMALLEST_FACTOR, LARGEST_FACTOR = 0.9, 0.2, 10.0
"""Of the step controller: how a step follows from the error of the last (Hairer et al., 1993)."""


NO_REVERSE = (
    "LaneSteps have no reverse-mode derivatives (jax.grad, jax.vjp, NUTS): use forward mode "
    "(jax.jvp, jax.jacfwd), or give the simulator `AdaptiveSteps` or `FixedSteps`."
)


class Starts(NamedTuple):
    """What a lane needs to begin a simulation; the batch leads."""

    state: PyTree
    slope: PyTree
    step: Float[Array, " batch"]
    args: PyTree


class Lanes(NamedTuple):
    """What the lanes are doing."""

    simulation: Int[Array, " lanes"]
    """Which simulation of the batch; the size of the batch where a lane is idle."""
    t: Float[Array, " lanes"]
    lost: Float[Array, " lanes"]
    """What rounding cut off the time, whose last digit is longer than some steps (Kahan, 1965)."""
    step: Float[Array, " lanes"]
    steps: Int[Array, " lanes"]
    saved: Int[Array, " lanes"]
    """How many of the times have been reached."""
    state: PyTree
    slope: PyTree
    args: PyTree
    next: Int[Array, ""]
    """The first simulation that has not begun."""


class LaneSteps(Steps):
    """Adaptive steps in lanes, each simulation at its own pace; `implicit=True` for stiff systems.

    Explicit: Tsit5 (Tsitouras, 2011); implicit: Rodas4 (Hairer and Wanner, 1996), whose Jacobians
    are those of automatic differentiation, dense, one a simulation.

    For ensembles whose members need steps of very different lengths. Every step lands on the next
    saved time at the latest. A simulation that needs more than `max_steps` steps comes back
    non-finite and is counted as invalid; it holds up its lane only. `absolute_tolerance` must lie
    below the smallest state that matters. Derivatives are forward-mode only: `AdaptiveSteps` also
    has reverse-mode ones, and `FixedSteps` fast ones.
    """

    together = True
    relative_tolerance: float = eqx.field(static=True, default=1e-4)
    absolute_tolerance: float = eqx.field(static=True, default=1e-6)
    num_lanes: int | None = eqx.field(static=True, default=None)
    """By default an eighth of the batch, at least 256."""
    max_steps: int = eqx.field(static=True, default=4096)
    implicit: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not (self.relative_tolerance > 0 and self.absolute_tolerance > 0):
            raise ValueError("Tolerances must be positive.")
        if self.max_steps < 1 or (self.num_lanes is not None and self.num_lanes < 1):
            raise ValueError("`num_lanes` and `max_steps` must be at least 1.")

    def solve(self, vector_field, state: PyTree, t0: float, ts: Times, args: PyTree) -> PyTree:
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(state)):
            raise ValueError("Lanes need real states: keep real and imaginary parts apart.")
        size = _size(state)
        at_start = int(ts[0] == t0)
        if at_start == ts.size:
            return jax.tree.map(lambda leaf: leaf[None], state)
        real = jnp.result_type(float)
        times, starts = jnp.asarray(ts, real), self._starts(vector_field, state, t0, ts, args)
        width = sum(leaf[0].size for leaf in jax.tree.leaves(state))
        # A row per time and simulation, NaN until it is reached.
        out = jnp.full((ts.size * size, width), jnp.nan, real)
        if at_start:
            out = out.at[:size].set(_packed(state))
        lanes = min(self.num_lanes or max(256, size // 8), size)
        idle = jnp.zeros(lanes, jnp.int32)
        lanes_idle = Lanes(
            simulation=idle + size,
            t=jnp.full(lanes, t0, real),
            lost=jnp.zeros(lanes, real),
            step=jnp.ones(lanes, real),
            steps=idle,
            saved=idle,
            state=jax.tree.map(lambda leaf: leaf[:lanes], starts.state),
            slope=jax.tree.map(lambda leaf: leaf[:lanes], starts.slope),
            args=jax.tree.map(lambda leaf: leaf[:lanes], starts.args),
            next=jnp.zeros((), jnp.int32),
        )

        def refill(now: Lanes) -> Lanes:
            return _refill(now, starts, size, t0, at_start)

        def advance(carry: tuple[Lanes, Array]) -> tuple[Lanes, Array]:
            return self._advance(vector_field, *carry, times, size)

        def advance_and_refill(carry: tuple[Lanes, Array]) -> tuple[Lanes, Array]:
            now, out = advance(carry)
            # Not one by one: filling lanes costs as much as a step of all of them.
            wanted = (_idle(now, size) * 16 >= lanes) & (now.next < size)
            return jax.lax.cond(wanted, refill, lambda now: now, now), out

        # The last few simulations go on by themselves: a full set of lanes would wait for the
        # slowest of the batch.
        few = min(max(16, lanes // 256 * 16), lanes)
        many = lambda carry: (_idle(carry[0], size) < lanes - few) | (carry[0].next < size)
        some = lambda carry: jnp.any(carry[0].simulation < size)
        now, out = jax.lax.while_loop(many, advance_and_refill, (refill(lanes_idle), out))
        _, rows = jax.lax.while_loop(some, advance, (_gathered(now, size, few), out))
        rows = eqxi.nondifferentiable_backward(rows, msg=NO_REVERSE)
        return _unpacked(rows.reshape(ts.size, size, width), state)

    def _starts(self, vector_field, state, t0: float, ts: Times, args) -> Starts:
        slope = vector_field(jnp.full(_size(state), t0, jnp.result_type(float)), state, args)
        # A hundredth of the time in which the state would change by itself (Hairer et al., 1993).
        scale = self._scale(state, state)
        speed = _norm(slope, scale)
        span = float(ts[-1] - t0)
        guess = 0.01 * jnp.maximum(_norm(state, scale), 1e-5) / jnp.maximum(speed, 1e-30)
        step = jax.lax.stop_gradient(jnp.clip(guess, 1e-6 * span, span))
        return Starts(state, slope, step, args)

    def _scale(self, a: PyTree, b: PyTree) -> PyTree:
        return jax.tree.map(
            lambda a, b: (
                self.absolute_tolerance
                + self.relative_tolerance * jnp.maximum(jnp.abs(a), jnp.abs(b))
            ),
            a,
            b,
        )

    def _advance(
        self, vector_field, now: Lanes, out: Array, times: Array, size: int
    ) -> tuple[Lanes, Array]:
        """One attempted step of every lane."""
        target = times[jnp.minimum(now.saved, times.size - 1)]
        left = target - now.t - now.lost
        # A step that would leave a crumb before the saved time takes it along.
        lands = now.step >= left * (1 - 1e-3)
        h = jnp.where(lands, left, now.step)
        # Each with the power of the step that its error estimate goes with.
        attempt, order = (_rodas4, 4) if self.implicit else (_tsit5, 5)
        state, error, slope = attempt(vector_field, now, h)
        # Derivatives are those of the steps taken: the choice of steps has none of its own.
        norm = jax.lax.stop_gradient(_norm(error, self._scale(now.state, state)))
        accepted = norm <= 1
        factor = SAFETY * jnp.maximum(norm, 1e-10) ** (-1 / order)
        factor = jnp.clip(factor, SMALLEST_FACTOR, jnp.where(accepted, LARGEST_FACTOR, 1.0))
        proposed = h * jnp.where(jnp.isfinite(norm), factor, SMALLEST_FACTOR)
        # What was cut short to land says nothing against the longer step.
        step = jnp.where(accepted & lands, jnp.maximum(now.step, proposed), proposed)
        t = now.t + (h + now.lost)
        lost = jnp.where(lands, 0.0, h + now.lost - (t - now.t))
        keep = lambda new, old: jnp.where(_beside(accepted, new), new, old)
        reached = accepted & lands & (now.simulation < size)
        row = jnp.where(reached, now.saved * size + now.simulation, times.size * size)
        saved = now.saved + reached
        steps = now.steps + 1
        shortest = jnp.finfo(t.dtype).eps ** 2 * jnp.abs(target)
        stuck = (steps >= self.max_steps) | (step <= shortest)
        over = (saved == times.size) | stuck
        now = now._replace(
            simulation=jnp.where(over, size, now.simulation),
            t=keep(jnp.where(lands, target, t), now.t),
            lost=keep(lost, now.lost),
            step=step,
            steps=steps,
            saved=saved,
            state=jax.tree.map(keep, state, now.state),
            slope=jax.tree.map(keep, slope, now.slope),
        )
        return now, out.at[row].set(_packed(state), mode="drop")


def _idle(now: Lanes, size: int) -> Int[Array, ""]:
    return jnp.sum(now.simulation == size)


def _gathered(now: Lanes, size: int, few: int) -> Lanes:
    """The lanes at work, which are no more than `few`, in as many lanes."""
    first = jnp.argsort(now.simulation == size, stable=True)[:few]
    kept = {name: value for name, value in now._asdict().items() if name != "next"}
    return now._replace(**jax.tree.map(lambda leaf: leaf[first], kept))


def _refill(now: Lanes, starts: Starts, size: int, t0: float, at_start: int) -> Lanes:
    """Idle lanes take the next simulations, in order."""
    idle = now.simulation == size
    candidate = now.next + jnp.cumsum(idle) - 1
    begins = idle & (candidate < size)
    chosen = jnp.minimum(candidate, size - 1)

    def pick(all_of: Array, current: Array) -> Array:
        return jnp.where(_beside(begins, current), all_of[chosen], current)

    return now._replace(
        simulation=jnp.where(begins, candidate, now.simulation).astype(jnp.int32),
        t=jnp.where(begins, t0, now.t),
        lost=jnp.where(begins, 0.0, now.lost),
        step=pick(starts.step, now.step),
        steps=jnp.where(begins, 0, now.steps),
        saved=jnp.where(begins, at_start, now.saved),
        state=jax.tree.map(pick, starts.state, now.state),
        slope=jax.tree.map(pick, starts.slope, now.slope),
        args=jax.tree.map(pick, starts.args, now.args),
        next=(now.next + jnp.sum(begins)).astype(jnp.int32),
    )


def _tsit5(vector_field, now: Lanes, h: Array) -> tuple[PyTree, PyTree, PyTree]:
    """The state after `h`, its error estimate, and the slope there, which opens the next step."""
    slopes, state = [now.slope], now.state
    for node, row in zip(_NODES[1:], _ROWS[1:], strict=True):
        increment = _weighted(h, row, slopes)
        state = jax.tree.map(lambda y, dy: y + dy, now.state, increment)
        slopes.append(vector_field(now.t + node * h, state, now.args))
    return state, _weighted(h, _ERROR, slopes), slopes[-1]


def _rodas4(vector_field, now: Lanes, h: Array) -> tuple[PyTree, PyTree, PyTree]:
    """As `_tsit5`, but that the next step finds its slope itself."""
    return *rodas4(vector_field, now.t, h, now.state, now.args), now.slope


def _weighted(h: Array, factors: tuple[float, ...], slopes: list[PyTree]) -> PyTree:
    def leaf(*values: Array) -> Array:
        return _beside(h, values[0]) * sum(
            factor * value for factor, value in zip(factors, values, strict=True) if factor
        )

    return jax.tree.map(leaf, *slopes)


def _beside(lanes: Array, like: Array) -> Array:
    """A number per lane, with axes to stand beside a leaf of the state."""
    return lanes.reshape(lanes.shape + (1,) * (like.ndim - 1))


def _norm(values: PyTree, scale: PyTree) -> Float[Array, " lanes"]:
    """Per lane, the root mean square in units of the scale; NaN counts as infinite."""
    ratios = _packed(jax.tree.map(lambda value, scale: jnp.square(value / scale), values, scale))
    found = jnp.sqrt(jnp.mean(ratios, axis=1))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def _size(state: PyTree) -> int:
    return jax.tree.leaves(state)[0].shape[0]


def _packed(state: PyTree) -> Float[Array, "lanes width"]:
    return jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(state)], axis=1
    )


def _unpacked(rows: Float[Array, "times batch width"], like: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf[0].size for leaf in leaves])
    parts = jnp.split(rows, ends[:-1], axis=2)
    return jax.tree.unflatten(
        structure,
        [
            part.reshape(rows.shape[:2] + leaf.shape[1:])
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )
