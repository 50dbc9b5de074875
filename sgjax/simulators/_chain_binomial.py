"""Populations of whole individuals: `(key, theta) -> Latent` by binomial draws in small steps."""

import abc
import math
from itertools import accumulate
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from sgjax import samplers
from sgjax._types import PRNGKey, Theta
from sgjax.simulators._stochastic import AbstractStochasticSimulator, places
from sgjax.solvers import repeat, step_grid, take_rows


class AbstractChainBinomialSimulator(AbstractStochasticSimulator):
    r"""Whole individuals that move between compartments at random: births, deaths, extinction.

    Each `transitions` entry, such as `"S -> I"`, names the compartments that individuals leave and
    enter (fields of the state); an empty side is the outside world. In a step of length $\tau$,
    with the rates $r_1 \ldots r_m$ of the exits from a compartment of $n$ individuals held,

    $$\sum_j D_j \sim \mathrm{Binomial}(n, 1 - e^{-\tau \sum_j r_j}),$$

    split among the exits in proportion to their rates (drawn as conditional binomials); from
    outside come Poisson$(\tau r)$. So counts stay whole and never fall below 0, and what the
    transitions conserve is conserved exactly. The initial state is rounded to whole numbers. A rate
    that is negative or nan makes the simulation invalid (nan).

    The steps approximate the jump process in continuous time (Gillespie, 2001) to first order in
    $\tau$: nobody makes two moves in one step, so a stay at rate $r$ lasts
    $\tau / (1 - e^{-r \tau})$, that is $1 / r + \tau / 2$, on average, and growth in a step is not
    compounded. Halve the step (`num_substeps`) until results no longer move.

    Draws carry no gradient: the derivative of a trajectory by any parameter is 0. Counts above
    $2^{24}$ need float64.

    Source: Bretó, He, Ionides and King (2009), there "Euler-multinomial".
    """

    transitions: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def rates(self, t: Array, state: Any, theta: Theta) -> tuple[Array, ...]:
        """The rate of each transition, in order: per unit of time and individual of the source.

        Where the source is the outside world, arrivals per unit of time.
        """

    def __check_init__(self):
        for transition in self.transitions:
            if len(transition.split("->")) != 2:
                raise ValueError(
                    f"A transition reads 'source -> target', one side empty for the outside world; "
                    f"got {transition!r}."
                )

    def _solve(self, keys: PRNGKey, state: PyTree[Array], thetas: Theta) -> PyTree[Array]:
        knots, kept = step_grid(self.t0, self.ts)
        start = jax.tree.map(jnp.round, state)
        if knots.size == 1:
            return jax.tree.map(lambda leaf: leaf[None], start)
        seeds, ends = samplers.seeds(keys), self._ends(start)
        still = [jnp.zeros_like(getattr(start, source or target)) for source, target in ends]

        def interval(state, inputs):
            t, step, number = inputs

            def leap(index, pending):
                # Moves are made one step after their draw. XLA would otherwise draw them twice,
                # once for the compartment that they leave and once for the one that they enter.
                state = _move(pending, ends)
                now = t + index * step
                rates = jax.vmap(self.rates, in_axes=(None, 0, 0))(now, state, thetas)
                moment = (number * self.num_substeps + index).astype(jnp.uint32)
                return state, _draw_moves(state, rates, step, ends, seeds, moment)

            state = _move(repeat(leap, (state, still), self.num_substeps), ends)
            return state, state

        real = jax.tree.leaves(start)[0].dtype
        steps = np.diff(knots) / self.num_substeps
        inputs = jnp.asarray(knots[:-1], real), jnp.asarray(steps, real), jnp.arange(steps.size)
        _, later = jax.lax.scan(interval, start, inputs)
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, later)
        return jax.tree.map(lambda leaf: take_rows(leaf, kept), whole)

    def _ends(self, state: Any) -> list[tuple[str, str]]:
        """Source and target of each transition."""
        ends = []
        for transition in self.transitions:
            source, target = (name.strip() for name in transition.split("->"))
            unknown = {source, target} - {"", *state._fields}
            if unknown or source == target:
                raise ValueError(
                    f"The transition {transition!r} must join two of the compartments "
                    f"{', '.join(state._fields)}, or one of them and the outside world (empty)."
                )
            ends.append((source, target))
        return ends


def _move(pending: tuple[Any, list[Array]], ends: list[tuple[str, str]]) -> Any:
    """The state after so many individuals have gone each way."""
    state, moves = pending
    counts = state._asdict()
    for (source, target), count in zip(ends, moves, strict=True):
        if source:
            counts[source] = counts[source] - count
        if target:
            counts[target] = counts[target] + count
    return type(state)(**counts)


def _draw_moves(
    state: Any,
    rates: tuple[Array, ...],
    step: Array,
    ends: list[tuple[str, str]],
    seeds: samplers.Seed,
    moment: Array,
) -> list[Array]:
    """How many individuals go each way in one step: numbers at the `moment` of the streams."""
    if len(rates) != len(ends):
        raise ValueError(f"`rates` gives {len(rates)} rates for {len(ends)} transitions.")
    shapes = [getattr(state, source or target).shape[1:] for source, target in ends]
    first, *later = accumulate(map(math.prod, shapes), initial=0)
    starts = [moment * later[-1] + offset for offset in (first, *later[:-1])]
    where = [places(seeds, start, shape) for start, shape in zip(starts, shapes, strict=True)]
    rates = tuple(jnp.where(rate >= 0, rate, jnp.nan) for rate in rates)
    moves: dict[int, Array] = {}
    for source in dict.fromkeys(source for source, _ in ends):
        exits = [j for j, end in enumerate(ends) if end[0] == source]
        if source:
            drawn = _leave(
                getattr(state, source), [rates[j] for j in exits], step, [where[j] for j in exits]
            )
        else:
            drawn = [samplers.poisson_at(*where[j], rates[j] * step) for j in exits]
        moves |= dict(zip(exits, drawn, strict=True))
    return [moves[j] for j in range(len(ends))]


def _leave(
    count: Array, rates: list[Array], step: Array, where: list[tuple[samplers.Seed, Array]]
) -> list[Array]:
    """How many of a compartment take each exit: how many leave, then who goes where."""
    sums = list(accumulate(reversed(rates), jnp.add))[::-1]  # of the rates from each exit on
    leaving = samplers.binomial_at(*where[-1], count, -jnp.expm1(-sums[0] * step))
    moves = []
    for rate, total, place in zip(rates[:-1], sums, where, strict=False):
        share = jnp.where(total == 0, 0, rate / total)
        moves.append(samplers.binomial_at(*place, leaving, share))
        leaving = leaving - moves[-1]
    return [*moves, leaving]
