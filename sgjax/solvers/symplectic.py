"""Symplectic steps: `forces -> motion` without friction, whose energy does not drift."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from sgjax.solvers._base import AbstractSubSteps, GridSteps, depends, repeat

SymplecticMethod: TypeAlias = Literal["verlet", "yoshida4"]


class Splitting(NamedTuple):
    """Kicks of the momenta around drifts of the positions, in shares of the step."""

    order: int
    kicks: tuple[float, ...]
    drifts: tuple[float, ...]


def _compose(order: int, shares: tuple[float, ...]) -> Splitting:
    """Verlet steps of these lengths, one after the other, neighbouring kicks in one."""
    ends = (0.0, *shares, 0.0)
    kicks = tuple((a + b) / 2 for a, b in itertools.pairwise(ends))
    return Splitting(order, kicks, shares)


_OUTER = 1 / (2 - 2 ** (1 / 3))

SPLITTINGS: dict[str, Splitting] = {
    "verlet": _compose(2, (1.0,)),
    "yoshida4": _compose(4, (_OUTER, 1 - 2 * _OUTER, _OUTER)),
}


class SymplecticSubSteps(AbstractSubSteps):
    """`num_substeps` equal steps of a splitting as one step of diffrax; the state a NamedTuple.

    The force at the end of a step opens the next: velocity Verlet evaluates one force per sub-step,
    Yoshida's method three.
    """

    num_substeps: int
    method: SymplecticMethod = eqx.field(static=True)
    positions: tuple[str, ...] = eqx.field(static=True)

    def order(self, terms):
        del terms
        return SPLITTINGS[self.method].order

    def init(self, terms, t0, t1, y0, args):
        del t1
        return self._forces(terms, t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        h = (t1 - t0) / self.num_substeps
        splitting = SPLITTINGS[self.method]

        def substep(index, carry: tuple[Any, dict[str, Any]]):
            state, forces = carry
            t = t0 + index * h
            for kick, drift in zip(splitting.kicks, splitting.drifts, strict=False):
                state = _moved(state, forces, kick * h)
                slopes = terms.vf(t, state, args)
                velocities = {name: getattr(slopes, name) for name in self.positions}
                state = _moved(state, velocities, drift * h)
                t = t + drift * h
                forces = self._forces(terms, t, state, args)
            return _moved(state, forces, splitting.kicks[-1] * h), forces

        y1, forces = repeat(substep, (y0, solver_state), self.num_substeps)
        return y1, None, dict(y0=y0, y1=y1), forces, diffrax.RESULTS.successful

    def _forces(self, terms, t, state: Any, args) -> dict[str, Any]:
        # The compiler leaves out the rates that are not asked for.
        slopes = terms.vf(t, state, args)
        return {name: getattr(slopes, name) for name in momenta(state, self.positions)}


class SymplecticSteps(GridSteps):
    r"""Fixed steps for mechanics without friction, whose energy error stays bounded for ever.

    For $\dot q = g(p)$, $\dot p = f(q, t)$: positions drift at the velocities, momenta are kicked
    by the forces, each while the other stands still. `positions` names the fields of the state
    (a NamedTuple) that are positions; the other fields are momenta or velocities. `method` is
    "verlet" (velocity Verlet, order 2; Verlet, 1967) or "yoshida4" (order 4, three forces per
    sub-step; Yoshida, 1990).

    Raises `ValueError` where the state has no such fields, or where the equations are not of that
    form (friction, magnetic fields, a moving frame): then `FixedSteps` serves.
    """

    positions: tuple[str, ...] = eqx.field(static=True)
    num_substeps: int = eqx.field(static=True, default=4)
    method: SymplecticMethod = eqx.field(static=True, default="verlet")

    def __check_init__(self):
        if self.method not in SPLITTINGS:
            raise ValueError(f"`method` must be one of {sorted(SPLITTINGS)}; got {self.method!r}.")

    def substeps(self, vector_field, state, args):
        _check_form(vector_field, state, args, self.positions)
        return SymplecticSubSteps(self.num_substeps, self.method, self.positions)


def momenta(state: Any, positions: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of a state that are not positions."""
    return tuple(name for name in state._fields if name not in positions)


def _moved(state: Any, slopes: dict[str, Any], h) -> Any:
    move = lambda leaf, slope: leaf + jnp.asarray(h, leaf.dtype) * slope
    moved = {name: jax.tree.map(move, getattr(state, name), slopes[name]) for name in slopes}
    return state._replace(**moved)


def _check_form(vector_field, state: Any, args: PyTree, positions: tuple[str, ...]) -> None:
    fields = getattr(state, "_fields", ())
    absent = [name for name in positions if name not in fields]
    if absent or not positions or len(positions) == len(fields):
        raise ValueError(
            f"`positions` {list(positions)} must name some but not all fields of the state, which "
            f"has {list(fields)}."
        )
    others = momenta(state, positions)

    def rates(names: tuple[str, ...]) -> Callable:
        def rate(t, q, p):
            full = state._replace(**dict(zip((*positions, *others), (*q, *p), strict=True)))
            slopes = vector_field(t, full, args)
            return [getattr(slopes, name) for name in names]

        return rate

    given = (
        jnp.zeros((), jnp.result_type(float)),
        [getattr(state, name) for name in positions],
        [getattr(state, name) for name in others],
    )
    time, own, _ = depends(rates(positions), given)
    _, _, friction = depends(rates(others), given)
    if time or own or friction:
        faults = (
            (time, positions, ["the time"]),
            (own, positions, positions),
            (friction, others, others),
        )
        found = "; ".join(
            f"the rate of {', '.join(of)} depends on {', '.join(on)}"
            for bad, of, on in faults
            if bad
        )
        raise ValueError(
            "Symplectic steps need velocities that depend on the momenta alone and forces that "
            f"depend on positions and time alone, but {found}. Use `FixedSteps` for this system."
        )
