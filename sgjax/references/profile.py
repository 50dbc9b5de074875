r"""The profile likelihood of many series at once: what the data say of one parameter alone.

$\ell_p(\theta_i) = \max_{\theta_j, j \ne i} \log p(x \mid \theta)$: the best that can be had with
one parameter held. Those within $\tfrac12 \chi^2_1$ of the maximum are an interval of confidence.
Where it is flat, no data of this kind tell the parameter (structurally unidentifiable); where one
side never falls, these data do not bound it there (practically unidentifiable; Raue et al., 2009).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.priors import sample_prior
from sgjax.references._climb import Problem, best_draws, climb, spread
from sgjax.references.bounds import Bounds, check_bounds, free
from sgjax.references.fit import check_records
from sgjax.references.likelihood import LogJoint, log_joint
from sgjax.stream import Same
from sgjax.study import Study

FLAT = 0.05
"""A profile that rises by no more than this is flat: optimisation leaves some hundredths."""

Verdict = Literal["identified", "open below", "open above", "open on both sides", "flat", "no fit"]


@dataclasses.dataclass(frozen=True)
class Profile:
    """The profile likelihood of one parameter for each of many series."""

    mechanism: str
    name: str
    values: Float[np.ndarray, "series points"]
    """Where the parameter was held, increasing."""
    log_likelihood: Float[np.ndarray, "series points"]
    """The best there; -inf where no start gave a finite one."""
    converged: Bool[np.ndarray, "series points"]
    """Whether that optimisation met its tolerance."""
    level: float
    """Of the interval."""

    @property
    def estimate(self) -> Float[np.ndarray, " series"]:
        """The value with the largest likelihood, of those tried."""
        best = np.argmax(self.log_likelihood, axis=1)
        return self.values[np.arange(len(best)), best]

    @property
    def interval(self) -> Float[np.ndarray, "series 2"]:
        r"""Where $2(\hat\ell - \ell_p)$ is below the quantile of $\chi^2_1$; infinite where open.

        NaN for a series without any fit. Linear between the values tried; the outermost crossings
        where there are several.
        """
        bound = stats.chi2.ppf(self.level, 1) / 2
        ends = np.empty((len(self.values), 2))
        rows = zip(self.values, self.log_likelihood, strict=True)
        for row, (values, logs) in enumerate(rows):
            if not np.isfinite(logs.max()):
                ends[row] = np.nan
                continue
            drop = logs.max() - logs - bound
            inside = np.flatnonzero(drop <= 0)
            for side, at, step in ((0, inside[0], -1), (1, inside[-1], 1)):
                outer = at + step
                if outer < 0 or outer >= values.size:
                    ends[row, side] = step * np.inf
                elif np.isinf(drop[outer]):
                    ends[row, side] = values[at]
                else:
                    share = drop[at] / (drop[at] - drop[outer])
                    ends[row, side] = values[at] + share * (values[outer] - values[at])
        return ends

    @property
    def verdicts(self) -> list[Verdict]:
        """What each series says of the parameter, within the values tried."""
        best = self.log_likelihood.max(axis=1)
        words: dict[tuple[bool, bool], Verdict] = {
            (False, False): "identified",
            (True, False): "open below",
            (False, True): "open above",
            (True, True): "open on both sides",
        }
        opened = np.isinf(self.interval)
        rise = np.where(np.isfinite(best), best, np.nan) - self.log_likelihood.min(axis=1)
        return [
            "no fit" if np.isnan(change)
            else "flat" if change < FLAT
            else words[bool(below), bool(above)]
            for change, (below, above) in zip(rise, opened, strict=True)
        ]  # fmt: skip


def profile_likelihood(
    study: Study,
    mechanism: str,
    observed: Observed,
    name: str,
    key: PRNGKey,
    *,
    values: Sequence[float] | np.ndarray | None = None,
    bounds: Bounds = "prior",
    known: Theta | None = None,
    points: int = 16,
    starts: int = 3,
    level: float = 0.95,
    tolerance: float = 1e-3,
    max_steps: int = 192,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Profiles the likelihood of many series along one parameter.

    The parameter is held at `values`, the same for all series, by default at `points` from one end
    of the prior to the other (its 0.1 % and 99.9 % quantiles, evenly by the logarithm where it is
    positive); then at as many more, for each series by itself, around its interval. For another
    scale, or a function of several parameters, make it a parameter of the mechanism.

    **Arguments:** `observed`, with the series leading, or one series alone; `bounds` of the other
    parameters (see `Bounds`); `known`, the values of the study's known parameters, the same for all
    series; `starts` at each value, the likeliest of 1,024 draws of the prior and some less likely;
    `level` of the interval; `tolerance` and `max_steps` as in `fit`; `progress` hears how many
    optimisations are done, and of how many, in each of the two rounds.

    Raises `ValueError` where the mechanism or the parameter is not the study's, the parameter is
    known or a vector, it is the only one, a record has other times or channels, the likelihood is
    no closed form, a series has no value at all, or fewer than three values are asked.
    """
    if observed.values.ndim == 2:
        observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observed)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], observed)
    joint = log_joint(study, mechanism, first, known)
    check_bounds(joint.prior, bounds)
    check_records(observed)
    _check_name(joint, name)
    coarse = _ladder(joint, name, points) if values is None else np.sort(np.asarray(values, float))
    if coarse.size < 3 or not np.isfinite(coarse).all():
        raise ValueError("A profile needs three finite values at least; give more `values`.")
    frozen = tuple(sorted(bounds.items())) if isinstance(bounds, Mapping) else bounds
    held = _Held(Problem(Same(study), mechanism, frozen), observed, joint.known, name)
    limits = tolerance, max_steps
    count = len(observed.values)
    shared = np.tile(coarse, (count, 1))
    begin = held.draws(coarse, key, starts)
    logs, converged, ends = held.best(shared, begin, limits, progress)
    found = Profile(mechanism, name, shared, logs, converged, level)
    fine = _between(found, points)
    # Each begins where its neighbours ended.
    places = np.stack([np.searchsorted(coarse, row).clip(1, coarse.size - 1) for row in fine])
    rows = np.arange(count)[:, None]
    begin = np.stack([ends[rows, places - 1], ends[rows, places]], axis=2)
    more = held.best(fine, begin, limits, progress)
    both = zip((shared, logs, converged), (fine, *more[:2]), strict=True)
    joined = [np.concatenate(pair, axis=1) for pair in both]
    order = np.argsort(joined[0], axis=1, kind="stable")
    ordered = [np.take_along_axis(each, order, axis=1) for each in joined]
    return Profile(mechanism, name, ordered[0], ordered[1], ordered[2], level)


@dataclasses.dataclass(frozen=True)
class _Held:
    """Optimisations with one parameter held."""

    problem: Problem
    observed: Observed
    known: Theta
    name: str

    def draws(
        self, values: Float[np.ndarray, " points"], key: PRNGKey, starts: int
    ) -> Float[np.ndarray, "series points starts size"]:
        """Where to begin at each value."""
        made = [
            best_draws(self.problem, self.observed, self._with(value), key, starts)
            for value in values
        ]
        return np.stack(made, axis=1)

    def best(
        self,
        values: Float[np.ndarray, "series points"],
        begin: Float[np.ndarray, "series points starts size"],
        limits: tuple[float, int],
        progress: Callable[[int, int], None] | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log likelihoods, whether they converged, and where they are."""
        count, points, starts, size = begin.shape
        series = np.repeat(np.arange(count), points * starts)
        lanes = spread(self.known, series.size)
        lanes[self.name] = jnp.asarray(np.repeat(values.ravel(), starts), jnp.result_type(float))
        given = begin.reshape(-1, size), series
        vectors, losses, converged = climb(
            self.problem, self.observed, lanes, given, limits, progress
        )
        shape = count, points, starts
        losses, converged = losses.reshape(shape), converged.reshape(shape)
        at = (*np.indices((count, points)), np.argmin(losses, axis=2))
        found = vectors.reshape(*shape, size)[at]
        return -losses[at], converged[at] & np.isfinite(losses[at]), found

    def _with(self, value: float) -> Theta:
        return self.known | {self.name: jnp.asarray(value, jnp.result_type(float))}


def _check_name(joint: LogJoint, name: str) -> None:
    if name not in joint.prior:
        raise ValueError(f"{name!r} is no unknown parameter; those are {list(joint.prior)}.")
    if int(np.prod(joint.shapes[name])) != 1:
        raise ValueError(f"{name!r} is a vector; a profile is along one number.")
    if len(joint.prior) == 1:
        raise ValueError(
            f"{name!r} is the only unknown parameter: its profile is the likelihood itself; "
            "use `fit` or `grid_posterior`."
        )


def _ladder(joint: LogJoint, name: str, points: int) -> Float[np.ndarray, " points"]:
    """Values from one end of the prior to the other."""

    def draw(key: PRNGKey) -> tuple[Theta, Any]:
        theta = joint.known | sample_prior(key, joint.prior)
        return theta, free(joint.prior, name, theta).inv(theta[name])

    theta, drawn = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4096))
    ends = np.quantile(np.asarray(drawn, np.float64), (0.001, 0.999))
    ladder = np.linspace(ends[0], ends[1], points)
    one = jax.tree.map(lambda leaf: leaf[0], theta)
    return np.asarray(free(joint.prior, name, one)(jnp.asarray(ladder)), np.float64)


def _between(found: Profile, points: int) -> Float[np.ndarray, "series points"]:
    """More values between those next to the interval of each series."""
    bound = stats.chi2.ppf(found.level, 1) / 2
    fine = np.empty((len(found.values), points))
    for row, logs in enumerate(found.log_likelihood):
        inside = np.flatnonzero(logs >= logs.max() - bound)
        low, high = max(inside[0] - 1, 0), min(inside[-1] + 1, logs.size - 1)
        steps = np.linspace(low, high, points + 2)[1:-1]
        # Evenly between neighbours on the scale of the values tried, never on one of them.
        fine[row] = np.interp(steps, np.arange(logs.size), found.values[row])
    return fine
