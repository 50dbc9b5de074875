"""Worlds whose Bayes predictor is known, and by how much predictions fall short of it.

A world has a study, so many test series, and for the loss it is trained by the excess risk
$R(f) - R(f^*)$: in closed form where prior and noise are normal, else against exact posteriors by
adaptive importance sampling.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from scipy import stats

import sgjax as sg
from benchmarks.claims.worlds import Cases, latent_or_not
from sgjax._types import Prior, Theta, Times, as_times
from sgjax.predictors.quantile import LEVELS
from sgjax.references import evidence, mechanism_posterior, posterior_summaries
from sgjax.references.weights import pareto_smooth
from sgjax.stream import Same
from sgjax.study import Simulation
from sgjax.tasks import AbstractTask, Target, TargetSpec

HEADS = {"squared": "point", "pinball": "quantile", "log": "gaussian_mixture"}
"""The head that is trained by each loss; the cross-entropy belongs to mechanisms."""

FIRST_TEST = 2**20
"""Test series are held-out simulations from this number on."""

PLACES = (np.arange(400) + 0.5) / 400
"""Levels at which exact quantile functions are kept."""

PROPOSED = 2048
"""Draws of a network's density, to compare it with the exact one."""


class Logarithms(AbstractTask):
    """The logarithms of all parameters, as one vector."""

    names: tuple[str, ...]
    context: int | None = None

    def specs(self, world):
        labels = tuple(f"ln {name}" for name in self.names)
        present = np.ones((len(world.priors), len(labels)), bool)
        return {"logarithms": TargetSpec("quantities", labels, present)}

    def targets(self, world, simulated):
        values = jnp.log(jnp.stack([simulated.theta[name] for name in self.names]))
        index = jnp.asarray(simulated.index)
        return {"logarithms": Target(values, jnp.ones(values.shape, bool), index)}


class Level(sg.simulators.AbstractSimulator):
    """A level that never changes, the mean of all values."""

    prior: Prior
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: np.arange(20.0))
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["level"], (self.ts.size, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


@dataclasses.dataclass(frozen=True)
class Excess:
    """What a prediction loses, series by series, and what even the best one pays."""

    each: np.ndarray
    bayes_risk: float
    diagnostics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """The mean with its standard error over series."""
        return {
            "excess": float(self.each.mean()),
            "standard_error": float(self.each.std() / np.sqrt(self.each.size)),
            "bayes_risk": self.bayes_risk,
            "share_of_bayes_risk": float(self.each.mean() / self.bayes_risk),
            **self.diagnostics,
        }


@dataclasses.dataclass(frozen=True)
class World:
    """A study and how its predictions are judged."""

    study: sg.Study
    judge: Callable[[str, sg.Predictor, Simulation, int], Excess]
    """`(loss, predictor, test, seed) -> Excess`."""


def level(sd: float) -> Level:
    """A level with a normal prior."""
    return Level(prior={"level": dist.Normal(0.0, sd)})


def conjugate() -> World:
    r"""$\theta \sim N(0, 1)$, 20 values $N(\theta, 1)$; posterior $N(20 \bar x / 21, 1/21)$."""
    study = sg.Study(level(1.0), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())

    def judge(loss: str, predictor: sg.Predictor, test: Simulation, seed: int) -> Excess:
        x = np.asarray(test.observed.values, np.float64)[..., 0]
        n = x.shape[1]
        mean, sd = x.sum(axis=1) / (n + 1), 1 / np.sqrt(n + 1)
        inputs = test.example.inputs
        if loss == "squared":
            found = answers(predictor, inputs, lambda one: one.mean())[:, 0]
            return Excess((found - mean) ** 2, sd**2)
        if loss == "pinball":
            found = answers(predictor, inputs, lambda one: one.quantile(LEVELS))[:, :, 0]
            z, tau = (found - mean[:, None]) / sd, np.array(LEVELS)
            risk = lambda z: sd * (stats.norm.pdf(z) + z * (stats.norm.cdf(z) - tau))
            best = risk(stats.norm.ppf(tau)).mean()
            return Excess(risk(z).mean(axis=1) - best, float(best))
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        points = jnp.asarray(mean[:, None] + sd * nodes, jnp.float32)
        logs = log_densities(predictor, inputs, points[..., None])
        exact = stats.norm.logpdf(nodes) - np.log(sd)
        entropy = float(np.log(sd) + 0.5 * np.log(2 * np.pi * np.e))
        return Excess((exact - logs) @ (weights / weights.sum()), entropy)

    return World(study, judge)


def conjugate_classes() -> World:
    r"""Levels of a narrow or a wide prior, $N(0, 1/4)$ or $N(0, 4)$: which one?"""
    sds = {"narrow": 0.5, "wide": 2.0}
    mixture = sg.simulators.MechanismMixture({n: level(sd) for n, sd in sds.items()}, table_size=2)
    study = sg.Study(mixture, sg.observations.Gaussian(sd=1.0, prior={}), sg.tasks.Identify())

    def judge(loss: str, predictor: sg.Predictor, test: Simulation, seed: int) -> Excess:
        x = np.asarray(test.observed.values, np.float64)[..., 0]
        mean, n = x.mean(axis=1), x.shape[1]
        logs = [stats.norm.logpdf(mean, 0, np.sqrt(sd**2 + 1 / n)) for sd in sds.values()]
        return divergence(predictor, test, 1 / (1 + np.exp(logs[0] - logs[1])))

    return World(study, judge)


def logistic() -> World:
    """Logistic growth of 20 values with log-normal errors: ln r, ln K, ln N0."""
    prior = {
        "growth_rate": dist.Uniform(0.2, 0.6),
        "carrying_capacity": dist.LogUniform(50.0, 2e4),
        "initial_size": dist.LogUniform(2.0, 20.0),
    }
    study = sg.Study(
        sg.simulators.Logistic(prior=prior, ts=range(20)),
        sg.observations.LogNormal(log_sd=0.1, prior={}),
        Logarithms(names=tuple(prior)),
        name="logistic",
    )
    return World(study, functools.partial(_by_references, study))


def outbreak() -> World:
    """Daily new cases of SIR, 40 days: ln beta, ln gamma and ln of the first infectious."""
    prior = {
        "beta": dist.Uniform(0.2, 0.6),
        "gamma": dist.Uniform(0.1, 0.3),
        "initial_infectious": dist.LogUniform(5.0, 50.0),
    }
    study = sg.Study(
        Cases(prior=prior, population=1e5, ts=range(1, 41), solver=sg.solvers.FixedSteps(4)),
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        Logarithms(names=tuple(prior)),
        name="outbreak",
    )
    return World(study, functools.partial(_by_references, study))


def which_outbreak() -> World:
    """SIR or SEIR from 40 days, the latter on its growing direction from the start."""
    study = latent_or_not(40, 0.05, "on the growing direction")

    def judge(loss: str, predictor: sg.Predictor, test: Simulation, seed: int) -> Excess:
        return divergence(predictor, test, _exact_shares(study, test, seed))

    return World(study, judge)


WORLDS: dict[str, Callable[[], World]] = {
    "conjugate": conjugate,
    "conjugate classes": conjugate_classes,
    "logistic growth": logistic,
    "SIR": outbreak,
    "SIR or SEIR": which_outbreak,
}


def answers(predictor: sg.Predictor, inputs: Any, ask: Callable[[Any], Array]) -> np.ndarray:
    """What the network says of the one vector it is asked for, series leading, in float64."""

    def one(inputs: Any) -> Array:
        (found,) = predictor.network(inputs)[1].values()
        by_mechanism = isinstance(found, sg.predictors.ByMechanism)
        return ask(found.select(0) if by_mechanism else found)

    return np.asarray(jax.jit(jax.vmap(one))(inputs), np.float64)


def log_densities(predictor: sg.Predictor, inputs: Any, points: Array) -> np.ndarray:
    """The log densities of each series' own points, (series, points, size)."""

    def one(given: tuple[Any, Array]) -> Array:
        (found,) = predictor.network(given[0])[1].values()
        chosen = found.select(0) if isinstance(found, sg.predictors.ByMechanism) else found
        return jax.vmap(chosen.log_prob)(given[1])

    run = jax.jit(lambda given: jax.lax.map(one, given, batch_size=64))
    return np.asarray(run((inputs, points)), np.float64)


def divergence(predictor: sg.Predictor, test: Simulation, exact: np.ndarray) -> Excess:
    """KL from exact probabilities of the second mechanism to the network's."""
    said = answers(predictor, test.example.inputs, lambda one: one.mean())[:, 1]
    p, q = (np.clip(value, 1e-12, 1 - 1e-12) for value in (exact, said))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return Excess(kl, float(-np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))))


_kept: dict[Any, Any] = {}
"""References of test sets: those of one world serve all its networks."""


def _exact_shares(study: sg.Study, test: Simulation, seed: int) -> np.ndarray:
    place = (study.name, seed, len(test.mechanism))
    if place not in _kept:
        key = jax.random.fold_in(jax.random.key(7), seed)
        found = {m: evidence(study, m, test.observed, key) for m in study.mechanisms}
        _kept[place] = mechanism_posterior(found)["SEIR"]
    return _kept[place]


def _by_references(
    study: sg.Study, loss: str, predictor: sg.Predictor, test: Simulation, seed: int
) -> Excess:
    """Excess of squared and pinball loss and of the log score in a world of one mechanism."""
    ((mechanism, prior),) = study.priors.items()
    names = list(prior)
    units = np.array([np.log(np.asarray(test.theta[name], np.float64)).std() for name in names])
    inputs = test.example.inputs
    if loss == "log":
        return _density_excess(study, mechanism, predictor, test, seed)
    pair = _references(study, mechanism, names, test, seed)
    worth = {
        "median_ess": float(np.median([one.ess for one in pair])),
        "least_ess": float(min(one.ess.min() for one in pair)),
    }
    if loss == "squared":
        found = answers(predictor, inputs, lambda one: one.mean())
        first, second = (np.stack([one.mean[n] for n in names], axis=1) for one in pair)
        each = ((found - first) * (found - second) / units**2).mean(axis=1)
        variances = [np.stack([one.sd[n] for n in names], axis=1) ** 2 / units**2 for one in pair]
        return Excess(each, float(np.mean(variances)), worth)
    found = answers(predictor, inputs, lambda one: one.quantile(LEVELS)).swapaxes(1, 2)
    curves = [np.stack([one.quantiles[n] for n in names], axis=1) for one in pair]
    best = [_at_levels(curve) for curve in curves]
    # Each reference judges the other's quantiles: by its own none could be better.
    risks = [
        [_pinball(curve, q) / units for q in (found, other)]
        for curve, other in zip(curves, best[::-1], strict=True)
    ]
    gaps = np.mean([said - exact for said, exact in risks], axis=0).mean(axis=1)
    return Excess(gaps, float(np.mean([exact for _, exact in risks])), worth)


def _references(
    study: sg.Study, mechanism: str, names: list[str], test: Simulation, seed: int
) -> list[Any]:
    """Two exact posteriors of each series, with errors that are independent."""
    place = (study.name, seed, len(test.mechanism))
    if place not in _kept:
        asked = {name: functools.partial(_logarithm, name) for name in names}
        _kept[place] = [
            posterior_summaries(
                study, mechanism, test.observed, jax.random.fold_in(jax.random.key(which), seed),
                asked, levels=tuple(PLACES), num_samples=4096, min_ess=2000.0,
            )
            for which in range(2)
        ]  # fmt: skip
    return _kept[place]


def _logarithm(name: str, theta: Theta) -> Array:
    return jnp.log(theta[name])


def _at_levels(curves: np.ndarray) -> np.ndarray:
    """Quantile functions (series, size, places) at the levels of the head."""
    flat = curves.reshape(-1, PLACES.size)
    return np.stack([np.interp(LEVELS, PLACES, row) for row in flat]).reshape(
        *curves.shape[:2], len(LEVELS)
    )


def _pinball(curves: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The expected loss of quantiles (series, size, levels) under quantile functions."""
    total = np.zeros(curves.shape[:2])
    for place, tau in enumerate(LEVELS):
        above = curves - quantiles[..., place, None]
        total += np.maximum(tau * above, (tau - 1) * above).mean(axis=-1)
    return total / len(LEVELS)


def _density_excess(
    study: sg.Study, mechanism: str, predictor: sg.Predictor, test: Simulation, seed: int
) -> Excess:
    r"""KL from the exact posterior to the network's density, by draws of the latter.

    With $r = p(\theta, x) / q(\theta \mid x)$, KL $= E_q[r \log r] / E_q[r] - \log E_q[r]$: the
    nearer the two, the smaller the error.
    """
    density = _compared(Same(study), mechanism)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(11), seed), len(test.mechanism))
    each, entropy, tails = [], [], []
    for start in range(0, len(test.mechanism), 16):
        rows = slice(start, start + 16)
        part = jax.tree.map(
            lambda leaf, rows=rows: leaf[rows], (test.example.inputs, test.observed)
        )
        points, logs = _drawn(predictor, part[0], keys[rows])
        joint = density(part[1], points)
        ratios = np.asarray(joint, np.float64) - np.asarray(logs, np.float64)
        tails += [pareto_smooth(row)[1] for row in ratios]
        largest = ratios.max(axis=1, keepdims=True)
        weights = np.exp(ratios - largest)
        log_mean = np.log(weights.mean(axis=1)) + largest[:, 0]
        share = weights / weights.sum(axis=1, keepdims=True)
        finite = np.where(share > 0, ratios, 0.0)
        each.append((share * finite).sum(axis=1) - log_mean)
        inside = np.where(share > 0, np.asarray(joint, np.float64), 0.0)
        entropy.append(log_mean - (share * inside).sum(axis=1))
    worth = {"pareto_k_above_0.7": float(np.mean(np.array(tails) > 0.7))}
    return Excess(np.concatenate(each), float(np.concatenate(entropy).mean()), worth)


def _drawn(predictor: sg.Predictor, inputs: Any, keys: Any) -> tuple[Array, Array]:
    return _program(predictor)(inputs, keys)


@functools.lru_cache(maxsize=2)
def _program(predictor: sg.Predictor) -> Callable:
    @jax.jit
    def run(inputs: Any, keys: Any) -> tuple[Array, Array]:
        def one(inputs: Any, key: Any) -> tuple[Array, Array]:
            (found,) = predictor.network(inputs)[1].values()
            points = found.sample(key, PROPOSED)
            return points, jax.vmap(found.log_prob)(points)

        return jax.vmap(one)(inputs, keys)

    return run


@functools.lru_cache(maxsize=4)
def _compared(same: Same, mechanism: str) -> Callable:
    """The log joint density of logarithms of parameters and each series, compiled."""
    study = same.study
    prior: Any = study.priors[mechanism]
    simulator = study.mechanisms[mechanism]

    @jax.jit
    def run(observed: Any, points: Array) -> Array:
        count, draws, size = points.shape
        flat = points.reshape(-1, size)
        thetas = {name: jnp.exp(flat[:, place]) for place, name in enumerate(prior)}
        inside = jnp.ones(len(flat), bool)
        priors = jnp.sum(flat, axis=1)  # of the logarithms: the Jacobian
        for name, entry in prior.items():
            low, high = entry.support.lower_bound, entry.support.upper_bound
            inside &= (thetas[name] > low) & (thetas[name] < high)
            thetas[name] = jnp.clip(thetas[name], low, high)
            priors += entry.log_prob(thetas[name])
        latents = simulator.simulate_batch(jax.random.split(jax.random.key(0), len(flat)), thetas)
        rows = lambda leaf: leaf.reshape(count, draws, *leaf.shape[1:])

        def series(thetas: Theta, latents: Any, record: Any) -> Array:
            score = lambda theta, latent: sg.observations.log_likelihood(
                study.observation, theta, latent, record
            )
            return jax.vmap(score)(thetas, latents)

        thetas, latents = jax.tree.map(rows, (thetas, latents))
        likelihoods = jax.vmap(series)(thetas, latents, observed)
        return jnp.where(rows(inside), rows(priors) + likelihoods, -jnp.inf)

    return run
