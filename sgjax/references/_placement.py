"""Where a posterior lies: log density -> centre, axes and sides of a box that holds it."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from sgjax._types import PRNGKey
from sgjax.priors import log_prior_unconstrained
from sgjax.references.likelihood import BATCH, LogJoint, compiled, in_batches

LogDensity: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Vectors to log densities, both NumPy in float64."""

_ROUNDS = 40
_FREEDOM = 5
_DEPTH = 20.0
_COARSE = {1: 256, 2: 40, 3: 24, 4: 15}


class Frame(NamedTuple):
    """An oblique box: the points `centre + axes @ z` with `low <= z <= high`."""

    centre: Float[np.ndarray, " size"]
    axes: Float[np.ndarray, "size size"]
    low: Float[np.ndarray, " size"]
    high: Float[np.ndarray, " size"]


class Grid(NamedTuple):
    """A tensor grid with equal spacing in `z`, and its log density in float64."""

    centre: Float[np.ndarray, " size"]
    axes: Float[np.ndarray, "size size"]
    ticks: tuple[np.ndarray, ...]
    density: np.ndarray

    @property
    def vectors(self) -> Float[np.ndarray, "points size"]:
        """The points of finite density."""
        here = np.isfinite(self.density).ravel()
        return grid_vectors(self.centre, self.axes, self.ticks)[here]

    @property
    def size(self) -> int:
        """How many points were evaluated and have a finite density."""
        return int(np.isfinite(self.density).sum())

    @property
    def log_evidence(self) -> float:
        """The log of the integral by the trapezoid rule (border weights of 1: it is empty)."""
        peak = self.density.max()
        steps = [np.log(tick[1] - tick[0]) for tick in self.ticks]
        volume = np.linalg.slogdet(self.axes)[1] + sum(steps)
        return float(peak + np.log(np.exp(self.density - peak).sum()) + volume)

    @property
    def weights(self) -> np.ndarray:
        """The share of each point in the integral, in the shape of the grid."""
        weights = np.exp(self.density - self.density.max())
        return weights / weights.sum()

    @property
    def border_mass(self) -> float:
        """The share of the outermost points."""
        inner = self.weights[tuple(slice(1, -1) for _ in self.ticks)]
        return float(1 - inner.sum())

    def holds(self, vectors: Float[np.ndarray, "points size"]) -> np.ndarray:
        """Which vectors lie inside the box."""
        z = np.linalg.solve(self.axes, (vectors - self.centre).T).T
        low, high = np.array([(tick[0], tick[-1]) for tick in self.ticks]).T
        return np.all((z >= low) & (z <= high), axis=1)


def grid_vectors(centre: np.ndarray, axes: np.ndarray, ticks: tuple[np.ndarray, ...]) -> np.ndarray:
    """Every point of a tensor grid, the last direction fastest."""
    mesh = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, len(ticks))
    return centre + mesh @ axes.T


def log_density(joint: LogJoint) -> LogDensity:
    """The log joint density over NumPy vectors, compiled once for all records of a study."""
    program = compiled(joint, LogJoint.batch)
    return lambda vectors: in_batches(program, vectors)


def prior_draws(
    joint: LogJoint, density: LogDensity
) -> tuple[np.ndarray, Float[np.ndarray, " draws"]]:
    """Draws of the prior as unconstrained vectors, and the log likelihood of each.

    Raises `ValueError` where no draw explains the record at all.
    """
    keys = jax.random.split(jax.random.key(0), BATCH)
    draws, prior = compiled(joint, _draw)(keys)
    vectors = np.asarray(draws, np.float64)
    likelihood = density(vectors) - np.asarray(prior, np.float64)
    if not np.any(np.isfinite(likelihood)):
        raise ValueError(
            f"None of {BATCH} draws of the prior gives the record a finite density; check that "
            "prior, observation model and data speak of the same quantity."
        )
    return vectors, likelihood


def _draw(joint: LogJoint, keys: PRNGKey) -> tuple[Array, Array]:
    vectors = jax.vmap(joint.start)(keys)
    density = jax.vmap(lambda point: log_prior_unconstrained(joint.prior, point))
    return vectors, density(joint.split(vectors))


def locate(
    density: LogDensity, vectors: np.ndarray, log_weights: np.ndarray
) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, "size size"]]:
    """Mean and covariance of a posterior by adaptive importance sampling from weighted draws.

    Weights are raised to a power that keeps a fortieth of the draws alive; once that power is 1,
    the proposal has arrived, and two more rounds make the moments sharp. Source: Koblents and
    Miguez (2015). Raises `ValueError` where it never arrives.
    """
    random = np.random.default_rng(0)
    size, arrivals = vectors.shape[1], 0
    for _ in range(_ROUNDS):
        weights, power = _tempered(log_weights, len(vectors) / 40)
        mean = weights @ vectors
        covariance = (vectors - mean).T @ ((vectors - mean) * weights[:, None])
        arrivals = arrivals + 1 if power == 1.0 else 0
        if arrivals == 3:
            return mean, covariance
        root = np.linalg.cholesky(covariance)
        normal = random.standard_normal((BATCH, size))
        stretch = np.sqrt(_FREEDOM / random.chisquare(_FREEDOM, (BATCH, 1)))
        standard = normal * stretch
        vectors = mean + standard @ root.T
        log_t = -0.5 * (_FREEDOM + size) * np.log1p((standard**2).sum(axis=1) / _FREEDOM)
        log_weights = density(vectors) - log_t
    raise ValueError(
        f"The posterior was not found in {_ROUNDS} rounds of adaptive sampling: it is far narrower "
        "than the prior, or has several modes. Use `nuts_posterior`, or a tighter prior."
    )


def _tempered(log_weights: np.ndarray, target: float) -> tuple[np.ndarray, float]:
    """Normalised weights at the largest power up to 1 whose effective number reaches `target`."""
    shifted = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    shifted = shifted - shifted.max()

    def normalised(power: float) -> np.ndarray:
        weights = np.exp(power * shifted)
        return weights / weights.sum()

    low, power = 0.0, 1.0
    if 1 / np.sum(normalised(1.0) ** 2) < target:
        for _ in range(30):
            middle = (low + power) / 2
            if 1 / np.sum(normalised(middle) ** 2) < target:
                power = middle
            else:
                low = middle
    return normalised(power), power


def place(density: LogDensity, vectors: np.ndarray, log_weights: np.ndarray, drop: float) -> Frame:
    """A box along the posterior's own directions, so wide that each marginal falls by `drop`.

    Raises `ValueError` where the posterior is not found or does not end.
    """
    centre, covariance = locate(density, vectors, log_weights)
    size = len(centre)
    frame = Frame(centre, np.linalg.cholesky(covariance), np.full(size, -6.0), np.full(size, 6.0))
    for _ in range(_ROUNDS):
        frame, settled = _moved_sides(full_grid(density, frame, _COARSE[size]), drop)
        if settled:
            return frame
    raise ValueError(
        "The posterior does not end in some direction: a parameter is unbounded by prior and data."
    )


def _moved_sides(grid: Grid, drop: float) -> tuple[Frame, bool]:
    """The box with each side at the marginal drop, or further out where it lies beyond the grid;
    and whether all lay within."""
    weights, settled = grid.weights, True
    low, high = np.zeros(len(grid.ticks)), np.zeros(len(grid.ticks))
    for axis, ticks in enumerate(grid.ticks):
        marginal = weights.sum(axis=tuple(other for other in range(low.size) if other != axis))
        inside = np.flatnonzero(marginal > np.exp(-drop) * marginal.max())
        width, step = ticks[-1] - ticks[0], ticks[1] - ticks[0]
        grow_low, grow_high = inside[0] == 0, inside[-1] == len(ticks) - 1
        settled &= not (grow_low or grow_high)
        low[axis] = ticks[0] - width / 3 if grow_low else ticks[inside[0]] - step
        high[axis] = ticks[-1] + width / 3 if grow_high else ticks[inside[-1]] + step
    return Frame(grid.centre, grid.axes, low, high), settled


def full_grid(density: LogDensity, frame: Frame, points: float) -> Grid:
    """A grid with the same spacing in every direction, some `points ** size` points in all."""
    centre, axes, low, high = frame
    spacing = float(np.prod(high - low) ** (1 / len(low))) / points
    ticks = tuple(
        a + spacing * np.arange(max(3, int(np.ceil((b - a) / spacing)) + 1))
        for a, b in zip(low, high, strict=True)
    )
    values = density(grid_vectors(centre, axes, ticks))
    return Grid(centre, axes, ticks, values.reshape([len(tick) for tick in ticks]))


def fine_grid(density: LogDensity, frame: Frame, points: float) -> Grid:
    """As `full_grid`, but skipping the empty corners, which a grid of half the points finds."""
    return refined(density, full_grid(density, frame, points / 2))


def refined(density: LogDensity, grid: Grid) -> Grid:
    """The grid at half the spacing; new points are evaluated only where the old ones, or their
    neighbours, lie within `_DEPTH` of the peak, and are `-inf` elsewhere."""
    near = grid.density > grid.density.max() - _DEPTH
    for axis in range(near.ndim):
        padded = np.pad(near, [(int(other == axis),) * 2 for other in range(near.ndim)])
        count = near.shape[axis]
        near = padded.take(range(count), axis) | near | padded.take(range(2, count + 2), axis)
        near = np.repeat(near, 2, axis).take(range(2 * count - 1), axis)
    values = np.full(near.shape, -np.inf)
    even = (slice(None, None, 2),) * near.ndim
    values[even] = grid.density
    near[even] = False
    ticks = tuple(
        tick[0] + (tick[1] - tick[0]) / 2 * np.arange(2 * len(tick) - 1) for tick in grid.ticks
    )
    z = np.stack(
        [tick[index] for tick, index in zip(ticks, np.nonzero(near), strict=True)], axis=-1
    )
    values[near] = density(grid.centre + z @ grid.axes.T)
    return Grid(grid.centre, grid.axes, ticks, values)
