"""What a reference method hands back: weighted values of every quantity -> moments, quantiles."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from sgjax._types import PRNGKey

LEVELS = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


@dataclasses.dataclass(frozen=True)
class ReferencePosterior:
    """A posterior of one mechanism: points with weights, by name, in the quantities' own units.

    `values` holds the parameters and the derived functions, an entry per grid point or per draw;
    `weights` sum to 1. `log_evidence` is `None` where the method does not give it. `diagnostics`
    says how far to trust it: see `grid_posterior`, `nuts_posterior`, `importance_posterior`.
    """

    mechanism: str
    method: str
    values: dict[str, Float[np.ndarray, " points"]]
    weights: Float[np.ndarray, " points"]
    log_evidence: float | None
    diagnostics: dict

    def mean(self, name: str) -> float:
        """The posterior mean."""
        return float(self.weights @ self.values[name])

    def sd(self, name: str) -> float:
        """The posterior standard deviation."""
        return float(np.sqrt(self.weights @ (self.values[name] - self.mean(name)) ** 2))

    def quantile(
        self, name: str, levels: float | Sequence[float] | np.ndarray
    ) -> Float[np.ndarray, "*levels"]:
        """Quantiles, of grid points through the low frequencies of the density."""
        values = self.values[name]
        if self.method == "grid":
            return _smooth_quantile(values, self.weights, levels)
        return weighted_quantile(values, self.weights, levels)

    def resample(
        self, key: PRNGKey, num: int, *, replace: bool = True
    ) -> dict[str, Float[np.ndarray, " num"]]:
        """Joint draws of equal weight of every quantity.

        With `replace=False` all come from different points, one after the other by weight; they
        keep the law only while `num` is well below the effective number of points. Raises
        `ValueError` where there are fewer points than that.
        """
        if not replace and num > self.weights.size:
            raise ValueError(
                f"{num} different draws asked of {self.weights.size} points; take more "
                "`num_samples`, or `replace=True`."
            )
        seed = np.asarray(jax.random.bits(key, (4,), np.uint32))
        random = np.random.default_rng(seed)
        chosen = random.choice(self.weights.size, num, replace=replace, p=self.weights)
        return {name: values[chosen] for name, values in self.values.items()}

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, sd and the quantiles `q05`, `q50`, `q95` of every quantity."""
        rows = {}
        for name in self.values:
            quantiles = map(float, self.quantile(name, list(LEVELS.values())))
            moments = {"mean": self.mean(name), "sd": self.sd(name)}
            rows[name] = moments | dict(zip(LEVELS, quantiles, strict=True))
        return rows


def weighted_quantile(
    values: Float[np.ndarray, " points"],
    weights: Float[np.ndarray, " points"],
    levels: float | Sequence[float] | np.ndarray,
) -> Float[np.ndarray, "*levels"]:
    """The least value that has at least the share `level` of the weight at or below it."""
    return np.quantile(values, levels, weights=weights, method="inverted_cdf")


def _smooth_quantile(
    values: Float[np.ndarray, " points"],
    weights: Float[np.ndarray, " points"],
    levels: float | Sequence[float] | np.ndarray,
) -> Float[np.ndarray, "*levels"]:
    """Quantiles of a smooth density that is known on a lattice.

    Sorted points would give a staircase. A lattice with spacing h (in standard deviations) leaves
    the frequencies below 2 pi / h as they are, and a posterior has next to none above 5; so the
    density is read off after a filter that keeps all up to 5 and nothing above 8. Positive
    quantities are treated on the log scale.
    """
    logarithmic = bool(np.all(values > 0))
    scaled = np.log(values) if logarithmic else values
    mean = weights @ scaled
    sd = np.sqrt(weights @ (scaled - mean) ** 2)
    edges, width = np.linspace(-16.0, 16.0, 4097, retstep=True)
    place = np.clip((scaled - mean) / sd, -15.9, 15.9)
    lower = np.floor((place - edges[0]) / width).astype(int)
    upper_share = (place - edges[lower]) / width
    mass = np.bincount(lower, weights * (1 - upper_share), edges.size)
    mass += np.bincount(lower + 1, weights * upper_share, edges.size)
    frequency = 2 * np.pi * np.fft.rfftfreq(edges.size, width)
    taper = np.clip((8.0 - frequency) / 3.0, 0.0, 1.0)
    density = np.fft.irfft(np.fft.rfft(mass) * np.sin(np.pi / 2 * taper) ** 2, edges.size)
    below = np.maximum.accumulate(np.cumsum(density) - density / 2)
    quantiles = mean + sd * np.interp(levels, below, edges)
    return np.exp(quantiles) if logarithmic else quantiles


def largest_change(posterior: ReferencePosterior, other: ReferencePosterior) -> float:
    """The largest difference of a mean, sd or quantile, in standard deviations of the quantity."""
    mine, theirs = posterior.summary(), other.summary()
    return max(
        abs(row[entry] - theirs[name][entry]) / row["sd"]
        for name, row in mine.items()
        for entry in row
    )


def mechanism_probabilities(
    log_evidences: Mapping[str, float], prior: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The posterior over mechanisms from their log evidences; `prior` is equal by default.

    Raises `ValueError` where the two name different mechanisms.
    """
    shares = dict.fromkeys(log_evidences, 1.0) if prior is None else prior
    if set(shares) != set(log_evidences):
        raise ValueError(
            f"The prior names {sorted(shares)}, the evidences {sorted(log_evidences)}."
        )
    logs = np.array([log_evidences[name] + np.log(shares[name]) for name in log_evidences])
    weights = np.exp(logs - logs.max())
    return dict(zip(log_evidences, map(float, weights / weights.sum()), strict=True))
