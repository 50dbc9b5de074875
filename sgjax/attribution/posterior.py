r"""From neighbours to a posterior: `series -> AttributedPosterior`, a cloud of simulations.

$$\hat\Pi_k(x) = \sum_{i \in NN_k(h(x))} w_i \, \delta_{\theta_i}$$

As the number of simulations searched grows, with k growing more slowly, it tends to
$p(\theta \mid h(x))$ (Stone, 1977), which is the posterior only where the space $h$ has lost
nothing about $\theta$: see `check_sufficiency`. How many neighbours: see `choose_k`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.attribution.clouds import (
    FOR_SHARES,
    PER_REGRESSOR,
    Clouds,
    Method,
    Weighted,
    draw_clouds,
    weigh,
)
from sgjax.attribution.coordinates import Coordinates
from sgjax.attribution.index import SimulationIndex
from sgjax.attribution.progress import Telling
from sgjax.attribution.source import Source
from sgjax.attribution.weighting import effective
from sgjax.predictors import Posterior, Predictor, find_task, summarise
from sgjax.simulators import Latent
from sgjax.stream import SimulationStream
from sgjax.study import Study
from sgjax.tasks import Estimate

LEVELS = (0.05, 0.5, 0.95)

SUMMARISED = 20_000
"""Points that a summary is made of, taken from the cloud at even steps of its weight."""

LatentFunctions = Mapping[str, Callable[[Theta, Latent], Array]]


@dataclasses.dataclass(frozen=True)
class AttributedPosterior:
    """The simulations nearest to one series as a distribution.

    `values` holds, by mechanism and name, the parameters, the derived quantities and the functions
    of the latent course of the neighbours of that mechanism; `weights` those of the neighbours,
    which sum to 1 within it. `mechanisms` are the shares. `notes` says what was not done, and why.
    """

    study: Study
    method: Method
    k: int
    effective_k: float
    r"""$(\sum w)^2 / \sum w^2$ over all neighbours."""
    distances: Float[np.ndarray, " k"]
    ids: tuple[int, ...]
    values: dict[str, dict[str, np.ndarray]]
    weights: dict[str, Float[np.ndarray, " own"]]
    mechanisms: dict[str, float]
    mechanisms_error: dict[str, float]
    """Monte Carlo standard errors of the shares."""
    notes: tuple[str, ...]
    _effective: dict[str, dict[str, float]]

    def mean(self, name: str, mechanism: str | None = None) -> np.ndarray:
        """The mean of a quantity within a mechanism."""
        values, weights = self._cloud(name, mechanism)
        return np.asarray(np.tensordot(weights, values, axes=1))

    def sd(self, name: str, mechanism: str | None = None) -> np.ndarray:
        """The standard deviation of a quantity within a mechanism."""
        values, weights = self._cloud(name, mechanism)
        squares = (values - self.mean(name, mechanism)) ** 2
        return np.asarray(np.sqrt(np.tensordot(weights, squares, axes=1)))

    def quantile(
        self, name: str, levels: Sequence[float], mechanism: str | None = None
    ) -> Float[np.ndarray, "levels ..."]:
        """Quantiles of a quantity within a mechanism, linear between the middles of the weights."""
        values, weights = self._cloud(name, mechanism)
        columns = values.reshape(len(values), -1)
        rows = [_quantile(column, weights, levels) for column in columns.T]
        return np.stack(rows, axis=1).reshape(len(levels), *values.shape[1:])

    def sample(self, key: PRNGKey, num_samples: int, mechanism: str | None = None) -> Theta:
        """Joint draws from the cloud within one mechanism, with replacement, draws leading."""
        mechanism = self._mechanism(mechanism)
        weights = jnp.asarray(self.weights[mechanism])
        chosen = np.asarray(jax.random.choice(key, weights.size, (num_samples,), p=weights))
        return {name: jnp.asarray(v[chosen]) for name, v in self.values[mechanism].items()}

    def monte_carlo_error(self, name: str, mechanism: str | None = None) -> np.ndarray:
        """The standard error of a mean that comes from having only so many neighbours.

        It knows nothing of the bias of neighbours that are not at the same place.
        """
        mechanism = self._mechanism(mechanism)
        root = np.sqrt(self._effective[mechanism][name])
        return np.asarray(self.sd(name, mechanism) / root)

    def summary(self, levels: Sequence[float] = LEVELS) -> dict[str, dict[str, dict[str, float]]]:
        """By mechanism and quantity: mean, sd and quantiles, as `Posterior.estimates` gives them.

        Mechanisms without any neighbour are left out.
        """
        there = [mechanism for mechanism, weights in self.weights.items() if weights.size]
        return {name: summarise(self._even(name, SUMMARISED), levels) for name in there}

    def points(self, mechanism: str | None = None) -> dict[str, np.ndarray]:
        """The cloud within a mechanism as points of equal weight, as many as it is worth."""
        mechanism = self._mechanism(mechanism)
        worth = effective(self.weights[mechanism][None])[0]
        return self._even(mechanism, max(2, round(float(worth))))

    def _even(self, mechanism: str, count: int) -> dict[str, np.ndarray]:
        """Points at even steps of the weight, in the order of the neighbours."""
        weights, steps = self.weights[mechanism], (np.arange(count) + 0.5) / count
        chosen = np.searchsorted(np.cumsum(weights), steps).clip(max=weights.size - 1)
        return {name: values[chosen] for name, values in self.values[mechanism].items()}

    def _cloud(self, name: str, mechanism: str | None) -> tuple[np.ndarray, np.ndarray]:
        mechanism = self._mechanism(mechanism)
        values = self.values[mechanism]
        if name not in values:
            raise ValueError(f"{name!r} is none of the quantities {list(values)} of {mechanism}.")
        return values[name], self.weights[mechanism]

    def _mechanism(self, mechanism: str | None) -> str:
        names = list(self.values)
        mechanism = names[0] if mechanism is None and len(names) == 1 else mechanism
        if mechanism not in names:
            raise ValueError(f"Name one of the mechanisms {names}; got {mechanism!r}.")
        if not self.weights[mechanism].size:
            raise ValueError(f"None of the {self.k} neighbours is a simulation of {mechanism}.")
        return mechanism


def attribute_posterior(
    predictor: Predictor,
    stream: SimulationStream | SimulationIndex,
    real: Posterior | np.ndarray | Array,
    k: int,
    num_simulations: int = 100_000,
    *,
    method: Method = "kernel",
    latent: LatentFunctions | None = None,
    space: str = "features",
    scaling: str = "sd",
    progress: Telling = False,
) -> AttributedPosterior:
    """The posterior of one series made of the k simulations most like it.

    **Arguments:** as of `attribute`; `k`, see `choose_k`; `method`, how neighbours are weighted:
    "uniform" (alike), "kernel" (by distance) or "regression" (by distance, and moved along a local
    line on the predictor's means); `latent`, functions `(theta, latent) -> number` beside those of
    the task. The latent courses are the neighbours' own, so that functions of them are never moved.

    Raises `ValueError` as `attribute` does, and where k is too small for a line.
    """
    posterior = real if isinstance(real, Posterior) else predictor(real)
    source = Source(predictor, stream, num_simulations, space, scaling)
    found = source.nearest(posterior, k, progress)
    inputs = jax.tree.map(lambda leaf: leaf[None], posterior.inputs)
    clouds = draw_clouds(predictor, source.stream, found, inputs, method)
    return posterior_of(source.stream, clouds, method, 0, posterior.known, latent)


def posterior_of(
    stream: SimulationStream,
    clouds: Clouds,
    method: Method,
    query: int,
    known: Theta,
    latent: LatentFunctions | None = None,
) -> AttributedPosterior:
    """The posterior of one of many queries; `known` are its known quantities."""
    one = clouds.part(slice(query, query + 1))
    weighted = weigh(one, method)
    drawn, _ = stream.parameters(one.ids[0])
    courses = _latent(stream, one.ids[0], latent or {})
    values, weights, counts = {}, {}, {}
    for index, name in enumerate(stream.study.mechanisms):
        (rows,) = np.nonzero(one.mechanism[0] == index)
        own = weighted.weights[0, rows]
        weights[name] = own / own.sum() if own.sum() > 0 else np.zeros(0)
        rows = rows[: weights[name].size]
        theta = _theta(one.coordinates, name, rows, drawn, weighted, index, known)
        values[name] = theta | {key: course[rows] for key, course in courses.items()}
        counts[name] = dict.fromkeys(theta, float(weighted.effective[0, index]))
        counts[name] |= dict.fromkeys(courses, float(effective(weights[name][None])[0]))
    shares = dict(zip(values, map(float, weighted.shares[0]), strict=True))
    effective_shares = float(weighted.effective_shares[0])
    return AttributedPosterior(
        stream.study,
        method,
        one.mechanism.shape[1],
        float(effective(weighted.weights)[0]),
        one.distances[0],
        tuple((int(high) << 32) + int(low) for high, low in one.ids[0]),
        values,
        weights,
        shares,
        # Shares that add up to 1 may round to a little more.
        {n: float(np.sqrt(max(p * (1 - p), 0.0) / effective_shares)) for n, p in shares.items()},
        _notes(one, weighted, method, list(values)),
        counts,
    )


def _theta(
    coordinates: Coordinates,
    mechanism: str,
    rows: np.ndarray,
    drawn: Theta,
    weighted: Weighted,
    index: int,
    known: Theta,
) -> dict[str, np.ndarray]:
    """Parameters and derived quantities of the neighbours of one mechanism."""
    if not rows.size:
        return {}
    theta = {name: np.asarray(value)[rows] for name, value in drawn.items()}
    if weighted.moved[0, index]:
        theta |= {
            name: np.broadcast_to(np.asarray(value, np.float32), (rows.size, *np.shape(value)))
            for name, value in known.items()
        }
        theta |= coordinates.theta(mechanism, weighted.values[0, rows], known)
    derived = coordinates.derived(mechanism, theta)
    here = coordinates.study.priors[mechanism]
    own = {name: theta[name] for name in coordinates.names if name in here}
    return {name: np.asarray(value, np.float64) for name, value in (own | derived).items()}


def _latent(
    stream: SimulationStream, ids: np.ndarray, more: LatentFunctions
) -> dict[str, np.ndarray]:
    """Functions of the latent course, of simulations drawn again."""
    task = find_task(stream.study.task, Estimate)
    functions = ({} if task is None else task.latent) | dict(more)
    if not functions:
        return {}
    drawn = stream.simulate(ids)

    ts = jnp.asarray(stream.study.ts, jnp.float32)

    def one(theta: Theta, values: Array) -> dict[str, Array]:
        latent = Latent(ts, values, None)
        return {name: jnp.asarray(f(theta, latent)) for name, f in functions.items()}

    made = jax.jit(jax.vmap(one))(drawn.theta, drawn.latent)
    return {name: np.asarray(value, np.float64) for name, value in made.items()}


def _notes(
    one: Clouds, weighted: Weighted, method: Method, mechanisms: Sequence[str]
) -> tuple[str, ...]:
    if method != "regression":
        return ()
    notes = [
        f"{name} has too few neighbours ({int(np.sum(one.mechanism[0] == index))}) for a line "
        f"({PER_REGRESSOR} a regressor): its points are where they were drawn."
        for index, name in enumerate(mechanisms)
        if not weighted.moved[0, index]
    ]
    k = one.mechanism.shape[1]
    if len(mechanisms) > 1 and k < FOR_SHARES:
        notes.append(
            f"{k} neighbours are too few to fit the mechanisms' shares ({FOR_SHARES}): they are "
            "weighted counts."
        )
    return tuple(notes)


def _quantile(
    column: np.ndarray, weights: np.ndarray, levels: Sequence[float]
) -> Float[np.ndarray, " levels"]:
    order = np.argsort(column, kind="stable")
    own = weights[order]
    return np.interp(levels, np.cumsum(own) - own / 2, column[order])
