r"""How far the data carry each estimate: the prior-contraction score, overall and by series.

$$c = 1 - \frac{E[\operatorname{Var}(T \mid x)]}{\operatorname{Var}(T)}, \qquad
\hat c = 1 - \frac{\overline{(T - \hat T(x))^2}}{\overline{(T - \bar T)^2}}$$

on held-out simulations, with $\hat T$ the predictor's posterior mean. 1 where the data decide, 0
where an estimate is the prior mean. $\hat c$ is at most $c$, and as much less as the predictor is
imperfect. For several parameters together $E[\operatorname{Cov}(\theta \mid x)] u = \lambda
\operatorname{Cov}(\theta) u$: combinations $u^\top \theta$ with $\lambda$ near 1 are not known.

Moments are means of draws; what their number adds to an error, $\operatorname{Var} / L$, is taken
off again. Source: Schad, Betancourt and Vasishth (2021).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int
from scipy import linalg

from sgjax._tables import as_text
from sgjax._types import PRNGKey
from sgjax.diagnostics import Skill
from sgjax.diagnostics.skill import remaining
from sgjax.identifiability._words import in_words, label_of, turned
from sgjax.identifiability.moments import Moments, Reader, readers
from sgjax.observations import Observed
from sgjax.predictors import Predictor, as_observed
from sgjax.stream import SimulationStream
from sgjax.study import Simulation

CARRIED, NOTHING = 0.9, 0.02
"""Scores above the one are called carried by the data, below the other the prior's."""


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Simulations of about the same predicted sd, which the data alone decide."""

    num: int
    low: float
    """The least predicted sd."""
    high: float
    rmse: float
    """Of the posterior mean."""
    rmse_error: float
    """Its Monte Carlo standard error."""
    predicted: float
    """The root mean square of the predicted sds: equal to `rmse` where they are right."""
    score: float
    r"""$1 - \text{rmse}^2 / \operatorname{Var}(T)$, which may be negative."""


@dataclasses.dataclass(frozen=True)
class Contraction:
    """What the data tell of one quantity, within one mechanism."""

    name: str
    mechanism: str
    logarithmic: bool
    """Whether it is measured on the log scale."""
    prior_mean: float
    prior_sd: float
    score: Skill
    expected: Skill
    r"""What the predictor itself expects, $1 - E[v(x)] / \operatorname{Var}(T)$: the score, unless
    its sds are wrong."""
    strata: tuple[Stratum, ...]

    @property
    def label(self) -> str:
        """The name with its scale."""
        return label_of(self.name, self.logarithmic)

    @property
    def verdict(self) -> str:
        """In plain words."""
        best, worst = self.strata[0].score, self.strata[-1].score
        if self.score.value <= max(NOTHING, 3 * self.score.standard_error):
            return "this is the prior mean"
        if self.score.value >= CARRIED and worst >= CARRIED:
            return "the data carry it"
        local = f"{worst:.2f} to {best:.2f} by series"
        if self.score.value >= CARRIED:
            return f"the data carry it, but not of every series ({local})"
        return f"only in part ({local})"

    def stratum(self, sds: ArrayLike) -> Int[np.ndarray, " series"]:
        """Into which of `strata` predicted sds fall."""
        edges = [stratum.low for stratum in self.strata[1:]]
        return np.searchsorted(edges, np.asarray(sds, float), side="right")


@dataclasses.dataclass(frozen=True)
class Direction:
    r"""A combination $u^\top \theta$ of the parameters, in prior sds of each, and its score."""

    mechanism: str
    labels: tuple[str, ...]
    loadings: Float[np.ndarray, " size"]
    score: Skill
    r"""$1 - \lambda$: 0 where the data tell nothing of it."""

    @property
    def words(self) -> str:
        """The loadings that count."""
        return in_words(self.loadings, self.labels)


@dataclasses.dataclass(frozen=True)
class Local:
    """What the data of given series tell of one quantity."""

    mean: Float[np.ndarray, " series"]
    sd: Float[np.ndarray, " series"]
    score: Float[np.ndarray, " series"]
    r"""$c(x) = 1 - v(x) / \operatorname{Var}(T)$; negative where the prior was surer."""
    rmse: Float[np.ndarray, " series"]
    """The error that was measured on simulations of about that sd."""


@dataclasses.dataclass(frozen=True)
class Identifiability:
    """What a predictor's data can tell of every number it is asked for."""

    contractions: tuple[Contraction, ...]
    directions: tuple[Direction, ...]
    """Combinations of the parameters of each mechanism, the best known first."""
    num_simulations: int
    notes: tuple[str, ...]
    _readers: tuple[Reader, ...] = dataclasses.field(repr=False)

    def __getitem__(self, name: str) -> Contraction:
        """Of one quantity, within the first mechanism that has it; `ValueError` for none."""
        for each in self.contractions:
            if each.name == name:
                return each
        raise ValueError(f"There is no {name!r}; known are {[c.name for c in self.contractions]}.")

    @property
    def unknown(self) -> tuple[Direction, ...]:
        """The combinations of parameters of which the data tell nothing."""
        limit = lambda score: max(NOTHING, 3 * score.standard_error)
        return tuple(each for each in self.directions if each.score.value <= limit(each.score))

    def local(
        self,
        observed: Observed | np.ndarray,
        known: Mapping[str, ArrayLike] | None = None,
        key: PRNGKey | None = None,
    ) -> dict[tuple[str, str], Local]:
        """By (name, mechanism), what the data of one or many records tell, the series leading.

        An array is one record, as a predictor takes it. `known` holds the study's known quantities,
        one number for all or one per series. Raises `ValueError` where one is absent.
        """
        study = self._readers[0].predictor.study
        record = as_observed(study, observed)
        if record.values.ndim == 2:
            record = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], record)
        found, count = {}, record.values.shape[0]
        given = {
            name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count,))
            for name, value in (known or {}).items()
        }
        inputs = jax.vmap(study.inputs)(record, given)
        key = jax.random.key(0) if key is None else key
        table = {(each.name, each.mechanism): each for each in self.contractions}
        for reader in self._readers:
            moments = reader(inputs, given, key)
            for column, name in enumerate(reader.names):
                own = table.get((name, reader.mechanism))
                if own is not None:
                    variance = moments.covariance[:, column, column]
                    rmse = np.array([stratum.rmse for stratum in own.strata])
                    found[name, reader.mechanism] = Local(
                        moments.mean[:, column],
                        np.sqrt(variance),
                        1 - variance / own.prior_sd**2,
                        rmse[own.stratum(np.sqrt(variance))],
                    )
        return found

    def table(self) -> list[dict[str, Any]]:
        """One row per quantity, in plain numbers."""
        return [
            {
                "quantity": each.label,
                "mechanism": each.mechanism,
                "prior sd": each.prior_sd,
                "score": each.score.value,
                "error": each.score.standard_error,
                "expected": each.expected.value,
                "verdict": each.verdict,
            }
            for each in self.contractions
        ]

    def strata_table(self) -> list[dict[str, Any]]:
        """One row per quantity and stratum of predicted sd."""
        return [
            {"quantity": each.label, "mechanism": each.mechanism, **dataclasses.asdict(stratum)}
            for each in self.contractions
            for stratum in each.strata
        ]

    def directions_table(self) -> list[dict[str, Any]]:
        """One row per combination of parameters."""
        return [
            {
                "combination, in prior sds": each.words,
                "mechanism": each.mechanism,
                "score": each.score.value,
                "error": each.score.standard_error,
            }
            for each in self.directions
        ]

    def __str__(self) -> str:
        title = f"What the data tell, on {self.num_simulations:,} held-out simulations"
        parts = [as_text(self.table(), title)]
        if self.directions:
            parts.append(as_text(self.directions_table(), "Combinations of parameters"))
        return "\n".join([*parts, *self.notes])


def identifiability(
    predictor: Predictor,
    stream: SimulationStream,
    key: PRNGKey,
    *,
    num_simulations: int = 10_000,
    num_strata: int = 5,
    num_draws: int = 512,
    log_scale: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Identifiability:
    """Measures what the data tell of every target of a study, on simulations never trained on.

    Parameters, functions of parameters, and, where their head has draws, functions of the latent
    course; each within each mechanism.

    **Arguments:** `num_strata` of equal counts by predicted sd; `num_draws` of each posterior;
    `log_scale`, the names measured by their logarithm (all that are positive where `None`);
    `progress` hears how many readings are done, and of how many.

    Raises `ValueError` for fewer than 20 simulations a stratum and mechanism, a `log_scale` of
    others or of what is not positive, and where no head has draws.
    """
    if num_strata < 1 or num_draws < 8 or num_simulations < 20 * num_strata:
        raise ValueError(
            "It needs a stratum, 8 draws and 20 simulations a stratum at least; got "
            f"{num_strata}, {num_draws} and {num_simulations}."
        )
    made, notes = readers(predictor, num_draws)
    if not made:
        raise ValueError(" ".join(notes) or "The task asks for no number; add an `Estimate`.")
    _check_names(made, log_scale)
    period = predictor.study.simulator.mechanism_table.size
    count = -(-num_simulations // period) * period
    drawn = jax.device_get(stream.held_out().take(count))
    contractions, directions = [], []
    for step, reader in enumerate(made):
        mechanism = list(predictor.study.mechanisms).index(reader.mechanism)
        rows = np.flatnonzero((drawn.mechanism == mechanism) & drawn.valid)
        if rows.size < 20 * num_strata:
            raise ValueError(
                f"Only {rows.size} of {count} simulations are of {reader.mechanism} and finite; "
                f"raise `num_simulations`, or take fewer than {num_strata} strata."
            )
        ours = jax.tree.map(lambda leaf, at=rows: leaf[at], drawn)
        truths, moments = _read(reader, ours, log_scale, jax.random.fold_in(key, step))
        found = [
            _contraction(reader, column, truths, moments, num_strata)
            for column in range(len(reader.names))
        ]
        contractions += [each for each in found if each is not None]
        if reader.parameters > 1:
            directions += _directions(reader, truths, moments)
        if progress is not None:
            progress(step + 1, len(made))
    return Identifiability(
        tuple(contractions), tuple(directions), int(drawn.valid.sum()), tuple(notes), tuple(made)
    )


def _check_names(made: list[Reader], log_scale: Collection[str] | None) -> None:
    names = {name for reader in made for name in reader.names}
    absent = sorted(set(log_scale or ()) - names)
    if absent:
        raise ValueError(f"`log_scale` names {absent}; the quantities are {sorted(names)}.")


def _read(
    reader: Reader, ours: Simulation, log_scale: Collection[str] | None, key: PRNGKey
) -> tuple[np.ndarray, Moments]:
    """True quantities and the moments of their posteriors, on the scale they are measured on."""
    known = {name: ours.theta[name] for name in reader.predictor.study.known}
    truths = reader.truths(ours.example.targets[reader.block], known)
    positive = [name for name, row in zip(reader.names, truths.T, strict=True) if row.min() > 0]
    if reader.block != "parameters":
        positive = []  # a head that learns a marginal may answer below 0
    chosen = positive if log_scale is None else [n for n in reader.names if n in log_scale]
    wrong = [name for name in chosen if name not in positive]
    if wrong:
        raise ValueError(f"{wrong} are not always positive; leave them out of `log_scale`.")
    reader.measure(chosen)
    return reader.scaled(truths), reader(ours.example.inputs, known, key)


def _contraction(
    reader: Reader, column: int, truths: np.ndarray, moments: Moments, num_strata: int
) -> Contraction | None:
    truth, mean = truths[:, column], moments.mean[:, column]
    variance = moments.covariance[:, column, column]
    kept = np.isfinite(truth) & np.isfinite(mean) & np.isfinite(variance)
    truth, mean, variance = truth[kept], mean[kept], variance[kept]
    if truth.size < num_strata or not truth.std() > 0:
        return None
    errors = (truth - mean) ** 2 - variance / reader.num_draws
    spread = (truth - truth.mean()) ** 2
    name = reader.names[column]
    parts = np.array_split(np.argsort(variance, kind="stable"), num_strata)
    prior = float(spread.mean())
    return Contraction(
        name, reader.mechanism, name in reader.logarithmic, float(truth.mean()),
        float(np.sqrt(prior)), remaining(errors, spread), remaining(variance, spread),
        tuple(_stratum(errors[part], variance[part], prior) for part in parts),
    )  # fmt: skip


def _stratum(errors: np.ndarray, variance: np.ndarray, prior: float) -> Stratum:
    mean = max(float(errors.mean()), np.finfo(float).tiny)
    rmse = float(np.sqrt(mean))
    return Stratum(
        errors.size,
        float(np.sqrt(variance.min())),
        float(np.sqrt(variance.max())),
        rmse,
        float(errors.std() / np.sqrt(errors.size) / (2 * rmse)),
        float(np.sqrt(variance.mean())),
        1 - mean / prior,
    )


def _directions(reader: Reader, truths: np.ndarray, moments: Moments) -> list[Direction]:
    """The generalised eigenvectors of mean posterior and prior covariance, best known first."""
    size = reader.parameters
    kept = np.isfinite(truths[:, :size]).all(axis=1) & np.isfinite(moments.mean).all(axis=1)
    truth, mean = truths[kept, :size], moments.mean[kept, :size]
    covariance = moments.covariance[kept, :size, :size] / reader.num_draws
    centred, error = truth - truth.mean(axis=0), truth - mean
    sd = centred.std(axis=0)
    if not np.all(sd > 0):
        return []
    centred, error, scale = centred / sd, error / sd, np.outer(sd, sd)
    after = (error.T @ error) / len(error) - covariance.mean(axis=0) / scale
    before = (centred.T @ centred) / len(centred)
    _, vectors = linalg.eigh(after, before)
    labels = tuple(label_of(name, name in reader.logarithmic) for name in reader.names[:size])
    made = []
    for vector in vectors.T:
        own = np.einsum("i,nij,j->n", vector, covariance / scale, vector)
        score = remaining((error @ vector) ** 2 - own, (centred @ vector) ** 2)
        made.append(Direction(reader.mechanism, labels, turned(vector), score))
    return made
