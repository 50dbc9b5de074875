r"""Profile likelihood of many series at once: what the data alone say of one parameter.

$$\ell_p(\psi) = \max_\lambda \log p(x \mid \psi, \lambda), \qquad
\{\psi : 2 (\hat\ell - \ell_p(\psi)) \le \chi^2_1\}$$

with $\lambda$ all other parameters. The set is a confidence interval; a profile that stays within
it up to an end of the range leaves the parameter open on that side (practically not identifiable),
a flat one says nothing of it at all (structurally). Source: Raue et al. (2009).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from scipy import stats

from sgjax._tables import as_text
from sgjax._types import Prior, PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.priors import sample_prior
from sgjax.references._climb import LANES, Problem, best_draws, climb, lanes_for, repeated
from sgjax.references.bounds import Bounds, check_bounds
from sgjax.references.fit import AGREEING, check_records
from sgjax.references.likelihood import log_joint
from sgjax.stream import Same
from sgjax.study import Study

DECADE = 10.0
"""A positive range that spans more is cut evenly on the log scale."""

SHARPENINGS = 3
"""Times that the ends of an interval are computed anew, each where the last profile puts them."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """The profile log likelihood of one parameter for each of many series."""

    mechanism: str
    name: str
    values: Float[np.ndarray, " grid"]
    """Where the profile was computed for all series, in the parameter's own units."""
    log_likelihood: Float[np.ndarray, "series grid"]
    """Maximised over all other parameters; -inf where nothing explains the series."""
    converged: Bool[np.ndarray, "series grid"]
    """Whether the best start of each met the tolerance."""
    maximum: Float[np.ndarray, " series"]
    """The largest value that was found."""
    estimate: Float[np.ndarray, " series"]
    """Where it is."""
    low: Float[np.ndarray, " series"]
    """The lower end of the interval, -inf where it lies beyond `values`."""
    high: Float[np.ndarray, " series"]
    """The upper end, inf where it lies beyond `values`."""
    level: float

    @property
    def flat(self) -> Bool[np.ndarray, " series"]:
        """Whether no value is worse than the best by more than two starts of one maximum are."""
        return self.maximum - self.log_likelihood.min(axis=1) <= AGREEING

    @property
    def verdict(self) -> np.ndarray:
        """By series: "identified", "open above", "open below", "open on both sides" or "flat".

        Open within the range of `values`, at the profile's level of confidence.
        """
        below, above = np.isinf(self.low), np.isinf(self.high)
        words = np.select(
            [self.flat, below & above, below, above],
            ["flat", "open on both sides", "open below", "open above"],
            "identified",
        )
        return words

    def table(self) -> list[dict[str, Any]]:
        """One row per series, in plain numbers."""
        return [
            {
                "series": index,
                "estimate": float(self.estimate[index]),
                "low": float(self.low[index]),
                "high": float(self.high[index]),
                "verdict": str(self.verdict[index]),
                "drop over the range": float(
                    self.maximum[index] - self.log_likelihood[index].min()
                ),
            }
            for index in range(self.maximum.size)
        ]

    def __str__(self) -> str:
        title = f"Profile of {self.name} within {self.mechanism}, {self.level:.0%} intervals"
        return as_text(self.table(), title)


def profile_likelihood(
    study: Study,
    mechanism: str,
    observed: Observed,
    name: str,
    key: PRNGKey,
    *,
    values: int | ArrayLike = 25,
    bounds: Bounds = "prior",
    known: Theta | None = None,
    level: float = 0.95,
    starts: int = 4,
    tolerance: float = 1e-3,
    max_steps: int = 192,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """The profile of parameter `name` for many series: all values of all of them at once.

    Each value is held while all others are fitted as in `fit`, then again from where the
    neighbouring values ended, so that one bad start shows nowhere. The ends of the intervals are
    found between values.

    **Arguments:** `observed`, with the series leading, or one series alone; `values` of the
    parameter, increasing, or how many: over its bounds, else over the prior's central 99.9 %
    (three times as far with `bounds="wide"`), evenly, on the log scale where that spans more than
    a factor of ten; `bounds`, where the others may be (see `Bounds`); `known`, the values of the
    study's known parameters; `level` of confidence; `starts` of each fit, its `tolerance` in log
    likelihood and its `max_steps`; `progress` hears how many optimisations of a round are done, and
    of how many.

    Raises `ValueError` as `fit` does, and where the parameter is not one unknown number of the
    mechanism, or `values` are fewer than 3, do not increase or are not finite.
    """
    if observed.values.ndim == 2:
        observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observed)
    joint = log_joint(study, mechanism, jax.tree.map(lambda leaf: leaf[0], observed), known)
    _check(joint.shapes, mechanism, name, level, starts)
    check_bounds(joint.prior, bounds)
    check_records(observed)
    keys = jax.random.split(key)
    grid = _grid(joint.prior, name, values, bounds, keys[0])
    frozen = tuple(sorted(bounds.items())) if isinstance(bounds, Mapping) else bounds
    problem = Problem(Same(study), mechanism, frozen)
    limits, others = (tolerance, max_steps), len(joint.shapes) > 1
    ascent = _Ascent(problem, name, observed, joint.known, limits, progress, others)
    found = ascent.neighbours(grid, ascent.from_prior(grid, keys[1], starts))
    curve = _Curve(grid, found, float(stats.chi2.ppf(level, 1)) / 2, _scale(grid))
    for _ in range(SHARPENINGS):
        curve.sharpen(ascent)
    return Profile(
        mechanism, name, grid, -found.losses, found.converged, curve.maximum, curve.estimate,
        *curve.interval(), level,
    )  # fmt: skip


def _check(shapes: dict, mechanism: str, name: str, level: float, starts: int) -> None:
    if name not in shapes:
        raise ValueError(f"{mechanism} has no unknown {name!r}; its unknowns are {list(shapes)}.")
    if shapes[name] != ():
        raise ValueError(f"{name!r} has shape {shapes[name]}; only single numbers have profiles.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level}.")
    if starts < 1:
        raise ValueError(f"`starts` must be at least 1; got {starts}.")


def _grid(
    prior: Prior, name: str, values: Any, bounds: Bounds, key: PRNGKey
) -> Float[np.ndarray, " grid"]:
    """The values to hold, as asked for or evenly over the range."""
    if not isinstance(values, int):
        grid = np.asarray(values, np.float64)
        if grid.ndim != 1 or grid.size < 3 or not np.all(np.isfinite(grid)):
            raise ValueError("`values` must be at least 3 finite numbers, or how many to take.")
        if np.any(np.diff(grid) <= 0):
            raise ValueError("`values` must increase.")
        return grid
    if values < 3:
        raise ValueError(f"`values` must be at least 3; got {values}.")
    low, high = _range(prior, name, bounds, key)
    if low > 0 and high / low > DECADE:
        return np.geomspace(low, high, values)
    return np.linspace(low, high, values)


def _range(prior: Prior, name: str, bounds: Bounds, key: PRNGKey) -> tuple[float, float]:
    if not isinstance(bounds, str) and name in bounds:
        return bounds[name]
    draw = lambda key: sample_prior(key, prior)[name]
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(key, 4096)), np.float64)
    low, high = np.quantile(draws, [0.0005, 0.9995])
    support: Any = getattr(prior[name], "support", None)
    ends = [getattr(support, f"{side}_bound", None) for side in ("lower", "upper")]
    if None not in ends:
        low, high = map(float, ends)  # pyright: ignore[reportArgumentType]
    if bounds != "wide":
        return float(low), float(high)
    if draws.min() > 0 and low > 0:
        return float(low * low / high), float(high * high / low)
    return float(2 * low - high), float(2 * high - low)


def _scale(grid: np.ndarray) -> tuple[Callable, Callable]:
    """To the scale on which lines and parabolas are drawn, and back."""
    if grid[0] > 0 and grid[-1] / grid[0] > DECADE:
        return np.log, np.exp
    return np.positive, np.positive


@dataclasses.dataclass
class _Found:
    """Maxima by series and value."""

    vectors: Float[np.ndarray, "series grid size"]
    losses: Float[np.ndarray, "series grid"]
    converged: Bool[np.ndarray, "series grid"]


@dataclasses.dataclass
class _Ascent:
    """Maxima over all parameters but one, which is held."""

    problem: Problem
    name: str
    observed: Observed
    known: Theta
    limits: tuple[float, int]
    progress: Callable[[int, int], None] | None
    others: bool
    """Whether there are other parameters at all."""
    lanes: int = LANES
    """Of each program, so that one is compiled for all rounds."""

    def from_prior(
        self, grid: np.ndarray, key: PRNGKey, starts: int
    ) -> Float[np.ndarray, "series grid starts size"]:
        """Starts among draws of the others' prior given each value."""
        count = self.observed.values.shape[0]
        if not self.others:
            return np.zeros((count, grid.size, 1, 0), np.float32)
        given = [self.known | self._held(np.asarray(value)) for value in grid]
        begin = [best_draws(self.problem, self.observed, each, key, starts) for each in given]
        self.lanes = lanes_for(count * grid.size * starts)
        return np.stack(begin, axis=1)

    def neighbours(
        self, grid: np.ndarray, begin: Float[np.ndarray, "series grid starts size"]
    ) -> _Found:
        """Maxima at each value, once from the starts and once from where its neighbours ended."""
        held = np.broadcast_to(grid, begin.shape[:2])
        found = self(held, begin)
        if self.others:
            beside = np.clip(np.arange(grid.size)[:, None] + [-1, 1], 0, grid.size - 1)
            again = self(held, found.vectors[:, beside])
            better = again.losses < found.losses
            found = _Found(
                np.where(better[..., None], again.vectors, found.vectors),
                np.where(better, again.losses, found.losses),
                np.where(better, again.converged, found.converged),
            )
        return found

    def __call__(
        self,
        held: Float[np.ndarray, "series places"],
        begin: Float[np.ndarray, "series places starts size"],
    ) -> _Found:
        """The best end of all starts of each place."""
        shape, size = begin.shape[:3], begin.shape[3]
        lanes = int(np.prod(shape))
        series = np.repeat(np.arange(shape[0]), lanes // shape[0])
        known = repeated(self.known, lanes) | self._held(np.repeat(held.ravel(), shape[2]))
        if self.others:
            vectors, losses, converged = climb(
                self.problem, self.observed, known, (begin.reshape(lanes, size), series),
                self.limits, self.progress, self.lanes,
            )  # fmt: skip
        else:
            records = jax.tree.map(lambda leaf: jnp.asarray(leaf)[series], self.observed)
            losses = np.asarray(self.problem.program(_alone)(known, records))
            vectors, converged = np.zeros((lanes, 0), np.float32), np.isfinite(losses)
        losses = losses.reshape(shape)
        best = np.argmin(losses, axis=2)[..., None]
        take = lambda leaf: np.take_along_axis(leaf.reshape(shape), best, axis=2)[..., 0]
        vectors = np.take_along_axis(vectors.reshape(*shape, size), best[..., None], axis=2)
        return _Found(vectors[:, :, 0], take(losses), take(converged))

    def _held(self, values: np.ndarray) -> Theta:
        return {self.name: jnp.asarray(values, jnp.result_type(float))}


def _alone(problem: Problem, known: Theta, observed: Observed) -> Array:
    return problem.loss(jnp.zeros((observed.values.shape[0], 0)), observed, known)


class _Curve:
    r"""A profile that grows finer at its top and at the ends of its interval.

    Ends are where $\sqrt{2 (\hat\ell - \ell_p)}$ reaches the level's own root. It is straight for a
    normal likelihood, so that a line between two values finds the place (Bates and Watts, 1988).
    """

    def __init__(
        self, grid: np.ndarray, found: _Found, drop: float, scale: tuple[Callable, Callable]
    ):
        self.drop, self.forward, self.back = drop, *scale
        self.values = np.tile(np.asarray(self.forward(grid)), (len(found.losses), 1))
        self.losses, self.vectors = found.losses, found.vectors
        self.rows = np.arange(len(self.losses))

    @property
    def best(self) -> Int[np.ndarray, " series"]:
        """By series, which value is the best."""
        return np.argmin(self.losses, axis=1)

    @property
    def maximum(self) -> Float[np.ndarray, " series"]:
        return -self.losses[self.rows, self.best]

    @property
    def estimate(self) -> Float[np.ndarray, " series"]:
        return self.back(self.values[self.rows, self.best])

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ends, infinite where the range ends before."""
        ends = (self._end(-1), self._end(1))
        return tuple(  # pyright: ignore[reportReturnType]
            np.where(found, self.back(place), side * np.inf)
            for (place, _, found), side in zip(ends, (-1, 1), strict=True)
        )

    def sharpen(self, ascent: _Ascent) -> None:
        """Computes the profile where its ends and its top seem to be."""
        parts = [self._end(-1)[:2], self._end(1)[:2], self._top()]
        places = np.stack([place for place, _ in parts], axis=1)
        beside = np.stack([index for _, index in parts], axis=1)
        begin = self.vectors[self.rows[:, None, None], beside]
        found = ascent(self.back(places), begin)
        values = np.concatenate([self.values, places], axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        self.values = np.take_along_axis(values, order, axis=1)
        losses = np.concatenate([self.losses, found.losses], axis=1)
        self.losses = np.take_along_axis(losses, order, axis=1)
        vectors = np.concatenate([self.vectors, found.vectors], axis=1)
        self.vectors = np.take_along_axis(vectors, order[..., None], axis=1)

    def _end(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """On one side the place of the end, the two values beside it, and whether there is one."""
        excess = self.losses - self.losses.min(axis=1, keepdims=True)
        places = np.arange(self.values.shape[1])
        beyond = (excess > self.drop) & (side * (places - self.best[:, None]) > 0)
        first = np.argmax(beyond[:, ::side], axis=1)
        there = beyond.any(axis=1)
        outer = np.where(there, first if side > 0 else places[-1] - first, places[::side][-1])
        inner = np.where(there, outer - side, outer)
        roots = np.sqrt(np.stack([excess[self.rows, inner], excess[self.rows, outer]]))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (np.sqrt(self.drop) - roots[0]) / (roots[1] - roots[0])
        share = np.where(there & np.isfinite(roots[1]), share, 0.5)  # a cliff has no slope
        near, far = self.values[self.rows, inner], self.values[self.rows, outer]
        place = np.where(there, near + share * (far - near), far)
        return place, np.stack([inner, outer], axis=1), there

    def _top(self) -> tuple[np.ndarray, np.ndarray]:
        """The top of the parabola through the best value and its neighbours, and those two."""
        last = self.values.shape[1] - 1
        beside = np.clip(self.best[:, None] + [-1, 0, 1], 0, last).astype(int)
        x = np.take_along_axis(self.values, beside, axis=1)
        y = np.take_along_axis(self.losses, beside, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            slopes = np.diff(y, axis=1) / np.diff(x, axis=1)
            bend = (slopes[:, 1] - slopes[:, 0]) / (x[:, 2] - x[:, 0])
            top = (x[:, 0] + x[:, 1]) / 2 - slopes[:, 0] / (2 * bend)
        usable = np.isfinite(top) & (bend > 0)
        return np.clip(np.where(usable, top, x[:, 1]), x[:, 0], x[:, 2]), beside[:, ::2]
