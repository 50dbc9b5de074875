r"""Whether numbers in (0, 1) are uniform: `values -> p-values, bias, width`; simultaneous bands.

Ranks of the truth, probability integral transforms and TARP's shares are all uniform where a
posterior is right, so that one test serves them all. Bands hold the *whole* curve: of 32 bins each
inside its own 99 % band, one is outside in 22 % of right posteriors.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr, chdtrc, kolmogorov, ndtri

NUM_POINTS = 64
"""The distribution function is judged at the multiples of 1/64."""

NUM_SIMULATED = 10_000
"""Uniform samples that the null of the band is made of: p-values are multiples of about 1e-4."""

Shares = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Band:
    """Where the whole empirical distribution function of a uniform sample stays, at `points`."""

    points: Shares
    lower: Shares
    upper: Shares


@dataclasses.dataclass(frozen=True)
class Uniformity:
    r"""How far from uniform `num` values are.

    `p_value` is that of the simultaneous band; `ks_p` (Kolmogorov-Smirnov) and `chi_square_p` are
    two other tests of the same. `deviation` is the largest distance of the distribution function
    from the diagonal. With $z = \Phi^{-1}(u)$, `bias` $= -\overline z$ says how many of its own sds
    a posterior lies above the truth, and `width` $= 1 / \operatorname{sd}(z)$ how wide it is in
    units of the right width; exact for normal posteriors, a guide for others.
    """

    num: int
    p_value: float
    ks_p: float
    chi_square_p: float
    deviation: float
    bias: float
    width: float

    @property
    def words(self) -> str:
        """Which error of a posterior would look like this."""
        # Each in its own standard error, but for the same factor.
        shift = abs(self.bias) * self.width
        spread = abs(np.log(self.width)) * np.sqrt(2)
        if shift > spread:
            return f"too {'high' if self.bias > 0 else 'low'} by {abs(self.bias):.2f} sd"
        return f"too {'narrow' if self.width < 1 else 'wide'}: {self.width:.2f} of the right width"


def uniformity(values: Float[np.ndarray, " num"]) -> Uniformity:
    """Judges values that should be uniform on (0, 1) and independent.

    Raises `ValueError` for values outside it, or fewer than 10.
    """
    values = np.asarray(values, float).ravel()
    num = values.size
    if num < 10 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"A test of uniformity needs at least 10 numbers in [0, 1]; got {num}.")
    table, null = _null(num)
    counts = _counts(values)
    gamma = _gamma(table, counts[None])[0]
    p_value = (1 + np.searchsorted(null, gamma, side="right")) / (1 + null.size)
    ordered, steps = np.sort(values), np.arange(num + 1) / num
    deviation = max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))
    # The factor makes the limit law right to three digits from 10 values on (Stephens, 1970).
    ks_p = kolmogorov((np.sqrt(num) + 0.12 + 0.11 / np.sqrt(num)) * deviation)
    normal = ndtri(np.clip(values, 1e-6, 1 - 1e-6))
    return Uniformity(
        num,
        float(p_value),
        float(ks_p),
        _chi_square_p(values),
        float(deviation),
        float(-normal.mean()),
        float(1 / normal.std()),
    )


def ecdf_band(num: int, level: float = 0.99) -> Band:
    r"""The simultaneous band of the distribution function of `num` uniform values.

    At each point $z$ the count is binomial; the band goes from its quantile $\gamma / 2$ to
    $1 - \gamma / 2$, with $\gamma$ such that a share `level` of simulated uniform samples stays
    inside at all points. Source: Säilynoja, Bürkner and Vehtari (2022).
    """
    table, null = _null(num)
    gamma = null[int((1 - level) * null.size)]
    lower = np.argmax(table >= gamma / 2, axis=1)
    upper = np.argmax(table >= 1 - gamma / 2, axis=1)
    return Band(_points(), lower / num, upper / num)


def ecdf(values: Float[np.ndarray, " num"]) -> Shares:
    """The empirical distribution function at the points of `ecdf_band`."""
    return _counts(np.asarray(values, float)) / np.size(values)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for their number: the chance of any false alarm is at most what each says.

    Source: Holm (1979). Valid whatever the dependence between the tests.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _points() -> Shares:
    return np.arange(1, NUM_POINTS) / NUM_POINTS


def _counts(values: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(values), _points(), side="left")


@functools.lru_cache(maxsize=64)
def _null(num: int) -> tuple[np.ndarray, np.ndarray]:
    """The distribution functions of the counts at all points, and sorted gammas of uniform ones."""
    table = bdtr(np.arange(num + 1.0)[None], num, _points()[:, None])
    random = np.random.default_rng(0)
    counts = random.multinomial(num, np.full(NUM_POINTS, 1 / NUM_POINTS), NUM_SIMULATED)
    return table, np.sort(_gamma(table, counts.cumsum(axis=1)[:, :-1]))


def _gamma(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The smallest two-sided tail probability over the points, one for each row of counts."""
    places = np.arange(len(table))
    at_most = table[places, counts]
    less = np.where(counts > 0, table[places, np.maximum(counts - 1, 0)], 0.0)
    return 2 * np.minimum(at_most, 1 - less).min(axis=1)


def _chi_square_p(values: np.ndarray) -> float:
    bins = max(2, min(32, values.size // 10))
    counts = np.histogram(values, bins, (0.0, 1.0))[0]
    expected = values.size / bins
    return float(chdtrc(bins - 1, np.sum((counts - expected) ** 2) / expected))
