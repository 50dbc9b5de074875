"""The tasks of sbibm 1.1.0 as studies: `name -> Task`, definitions and numbers as published there.

Mechanisms without time have one time, and chance sits in the observation, so that the likelihood is
at hand and every answer can be corrected. Source: Lueckmann et al. (2021), appendix T.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from sgjax import Estimate, Study
from sgjax._types import Prior, Times, as_times
from sgjax.observations import (
    AbstractNoise,
    AbstractTransform,
    Binomial,
    Chain,
    Gaussian,
    LogNormal,
    Observed,
)
from sgjax.references import linear_gaussian_posterior
from sgjax.simulators import SIR, AbstractSimulator, Latent, LotkaVolterra
from sgjax.solvers import FixedSteps
from sgjax.tasks import component_names

Draws = Float[np.ndarray, "draws size"]
ExactSampler = Callable[[np.random.Generator, np.ndarray, int], Draws]
"""A generator, the data and a number of draws -> draws of the posterior in closed form."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A study, how the published numbers are laid out in it, and its exact sampler where known."""

    study: Study
    by_channel: bool = False
    """Whether the published numbers go channel by channel, rather than time by time."""
    exact: ExactSampler | None = None
    one_mode: Study | None = None
    """The same under a prior that holds one of several modes, which are mirror images."""
    mirrored: tuple[int, ...] = ()
    """The parameters whose signs tell the modes apart."""

    def observed(self, data: Float[np.ndarray, " numbers"]) -> Observed:
        """The published numbers as a record of the study."""
        times, channels = self.study.ts.size, len(self.study.channels)
        values = data.reshape(channels, times).T if self.by_channel else data
        return Observed(
            jnp.asarray(self.study.ts, jnp.float32),
            jnp.asarray(values.reshape(times, channels), jnp.float32),
            jnp.ones((times, channels), bool),
        )

    def columns(self, draws: Mapping[str, Any]) -> Draws:
        """Parameters by name, vectors whole or by component, as columns in the published order."""
        every = {}
        for name, values in draws.items():
            numbers = np.asarray(values, np.float64).reshape(len(values), -1)
            every |= dict(zip(component_names(name, numbers.shape[1]), numbers.T, strict=True))
        return np.stack([every[name] for name in self.study.specs["parameters"].names], axis=1)


class Instant(AbstractSimulator):
    """A mechanism without time: a function of the vector `theta`, seen at every time alike."""

    prior: Prior
    function: Callable[[Array], Array] = eqx.field(static=True)
    size: int = eqx.field(static=True)
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(1))

    @property
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return component_names("x", self.size)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(self.function(theta["theta"]), (self.ts.size, self.size))
        return Latent(jnp.asarray(self.ts, values.dtype), values, None)


class Clip(AbstractTransform):
    """The signal within bounds."""

    low: float
    high: float
    prior: Prior = eqx.field(default_factory=dict)

    def transform(self, theta, signal):
        return signal.with_values(jnp.clip(signal.values, self.low, self.high))


class Crescent(AbstractNoise):
    r"""$y = \mu + (1/4 + r \cos a, r \sin a)$, $r \sim N(0.1, 0.01)$, $a$ uniform on the right.

    $p(y \mid \mu) = N(r) / (\pi r)$, half of its logarithm at each of the two numbers.
    """

    prior: Prior = eqx.field(default_factory=dict)

    def draw(self, key, theta, mean):
        radius, angle = jax.random.split(key)
        r = 0.1 + 0.01 * jax.random.normal(radius, mean.shape[:1], jnp.float32)
        a = jnp.pi * (jax.random.uniform(angle, mean.shape[:1], jnp.float32) - 0.5)
        return mean + jnp.stack([0.25 + r * jnp.cos(a), r * jnp.sin(a)], axis=-1)

    def log_density(self, theta, mean, values):
        u, v = jnp.moveaxis(values - mean, -1, 0)
        r = jnp.sqrt((u - 0.25) ** 2 + v**2)
        joint = jnp.where(u > 0.25, norm.logpdf(r, 0.1, 0.01) - jnp.log(jnp.pi * r), -jnp.inf)
        return jnp.broadcast_to(joint[..., None] / 2, mean.shape)


class TwoScales(AbstractNoise):
    """Normal with sd 1 or 0.1, even odds, one sd for all channels; the density in equal parts."""

    prior: Prior = eqx.field(default_factory=dict)

    def draw(self, key, theta, mean):
        which, normal = jax.random.split(key)
        sd = jnp.where(jax.random.bernoulli(which, 0.5, (len(mean), 1)), 1.0, 0.1)
        return mean + sd * jax.random.normal(normal, mean.shape, jnp.float32)

    def log_density(self, theta, mean, values):
        each = jnp.stack([norm.logpdf(values, mean, sd).sum(-1) for sd in (1.0, 0.1)])
        joint = jax.nn.logsumexp(each, axis=0) - jnp.log(2.0)
        return jnp.broadcast_to(joint[..., None] / mean.shape[-1], mean.shape)


class CorrelatedPairs(AbstractNoise):
    r"""Normal pairs with sds $\theta_3^2, \theta_4^2$ and correlation $\tanh \theta_5$.

    1e-6 is added to both variances, as there; the density is halved over the pair.
    """

    prior: Prior = eqx.field(default_factory=dict)

    def draw(self, key, theta, mean):
        normal = jax.random.normal(key, mean.shape, jnp.float32)
        a, b, c = self._factor(theta["theta"])
        first, second = normal[..., 0], normal[..., 1]
        return mean + jnp.stack([a * first, b * first + c * second], axis=-1)

    def log_density(self, theta, mean, values):
        a, b, c = self._factor(theta["theta"])
        first = (values - mean)[..., 0] / a
        second = ((values - mean)[..., 1] - b * first) / c
        joint = norm.logpdf(first) + norm.logpdf(second) - jnp.log(a) - jnp.log(c)
        return jnp.broadcast_to(joint[..., None] / 2, mean.shape)

    def _factor(self, theta: Array) -> tuple[Array, Array, Array]:
        """The Cholesky factor of the covariance: its three entries."""
        s, t, rho = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
        a = jnp.sqrt(s**2 + 1e-6)
        b = rho * s * t / a
        # Without the cancellation of t^2 - b^2 where the correlation is nearly one.
        c = jnp.sqrt(1e-6 + t**2 * (1e-6 + s**2 / jnp.cosh(theta[4]) ** 2) / a**2)
        return a, b, c


class SpikeSums(AbstractNoise):
    r"""$X^\top y$ of spikes $y_t \sim \mathrm{Bernoulli}(\sigma(X \theta)_t)$.

    $\log p = \theta^\top X^\top y - \sum_t \log(1 + e^{(X \theta)_t})$ but for a term without
    $\theta$, in equal parts.
    """

    design: np.ndarray
    prior: Prior = eqx.field(default_factory=dict)

    def draw(self, key, theta, mean):
        odds = jnp.matmul(self.design, theta["theta"], precision="highest")
        spikes = jax.random.uniform(key, odds.shape, jnp.float32) < jax.nn.sigmoid(odds)
        return jnp.matmul(spikes.astype(mean.dtype), self.design, precision="highest")[None]

    def log_density(self, theta, mean, values):
        odds = jnp.matmul(self.design, theta["theta"], precision="highest")
        joint = jnp.sum(values * theta["theta"]) - jnp.sum(jax.nn.softplus(odds))
        return jnp.broadcast_to(joint / mean.size, mean.shape)


def make_task(name: str) -> Task:
    """A task by its name in sbibm; raises `ValueError` for another."""
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; choose one of {list(TASKS)}.")
    return TASKS[name]()


def _uniform(low: float | list[float], high: float, size: int) -> Prior:
    lowest, highest = (jnp.broadcast_to(jnp.asarray(end, float), size) for end in (low, high))
    return {"theta": dist.Uniform(lowest, highest).to_event(1)}


def _sir() -> Task:
    prior = {"beta": dist.LogNormal(np.log(0.4), 0.5), "gamma": dist.LogNormal(np.log(0.125), 0.2)}
    # Largest error of 512 prior draws with 24 sub-steps: 3e-5 of the population.
    simulator = SIR(
        population=1e6, prior=prior, ts=17.0 * np.arange(10), solver=FixedSteps(num_substeps=24)
    )
    survey = Binomial(sample_size=1000.0, population=1e6)
    return Task(Study(simulator, survey, Estimate(), name="sir"))


def _lotka_volterra() -> Task:
    prior = {
        "alpha": dist.LogNormal(-0.125, 0.5),
        "beta": dist.LogNormal(-3.0, 0.5),
        "gamma": dist.LogNormal(-0.125, 0.5),
        "delta": dist.LogNormal(-3.0, 0.5),
    }
    # Largest error of 512 prior draws with 96 sub-steps: 8e-4 of each value.
    simulator = LotkaVolterra(
        initial_prey=30.0,
        initial_predator=1.0,
        prior=prior,
        ts=2.1 * np.arange(10),
        solver=FixedSteps(num_substeps=96),
    )
    observation = Chain(Clip(low=1e-10, high=1e4), LogNormal(log_sd=0.1, prior={}))
    study = Study(simulator, observation, Estimate(), name="lotka_volterra")
    return Task(study, by_channel=True)


def _two_moons() -> Task:
    def folded(theta: Array) -> Array:
        z = jnp.stack([theta[0] + theta[1], theta[1] - theta[0]]) / jnp.sqrt(2.0)
        return jnp.stack([-jnp.abs(z[0]), z[1]])

    def exact(random: np.random.Generator, data: np.ndarray, num: int) -> Draws:
        r, a = random.normal(0.1, 0.01, 4 * num), np.pi * (random.random(4 * num) - 0.5)
        fold, along = 0.25 + r * np.cos(a) - data[0], data[1] - r * np.sin(a)
        across = fold * random.choice([-1, 1], fold.size)
        theta = np.stack([across - along, across + along], axis=1) / np.sqrt(2)
        return theta[(fold >= 0) & (np.abs(theta) <= 1).all(1)][:num]

    simulator = Instant(prior=_uniform(-1, 1, 2), function=folded, size=2)
    return Task(Study(simulator, Crescent(), Estimate(), name="two_moons"), exact=exact)


def _slcp() -> Task:
    def study(low: list[float]) -> Study:
        simulator = Instant(
            prior=_uniform(low, 3, 5), function=lambda theta: theta[:2], size=2, ts=range(4)
        )
        return Study(simulator, CorrelatedPairs(), Estimate(), name="slcp")

    return Task(study([-3] * 5), one_mode=study([-3, -3, 0, 0, -3]), mirrored=(2, 3))


def _gaussian_linear() -> Task:
    variance = 0.1 * np.eye(10)

    def exact(random: np.random.Generator, data: np.ndarray, num: int) -> Draws:
        law = linear_gaussian_posterior(np.eye(10), data, 0.1**0.5, np.zeros(10), variance)
        return random.multivariate_normal(law.mean, law.covariance, num)

    prior = {"theta": dist.Normal(jnp.zeros(10), 0.1**0.5).to_event(1)}
    noise = Gaussian(sd=0.1**0.5, prior={})
    simulator = Instant(prior=prior, function=lambda theta: theta, size=10)
    return Task(Study(simulator, noise, Estimate(), name="gaussian_linear"), exact=exact)


def _gaussian_mixture() -> Task:
    def exact(random: np.random.Generator, data: np.ndarray, num: int) -> Draws:
        sd = random.choice([1.0, 0.1], (4 * num, 1))
        theta = random.normal(data, sd, (4 * num, 2))
        return theta[(np.abs(theta) <= 10).all(1)][:num]

    simulator = Instant(prior=_uniform(-10, 10, 2), function=lambda theta: theta, size=2)
    return Task(Study(simulator, TwoScales(), Estimate(), name="gaussian_mixture"), exact=exact)


def _bernoulli_glm() -> Task:
    stimulus = np.random.RandomState(42).randn(100).astype(np.float32)
    delayed = [np.concatenate([np.zeros(lag), stimulus[: 100 - lag]]) for lag in range(9)]
    design = np.stack([np.ones(100), *delayed], axis=1).astype(np.float32)

    def expected(theta: Array) -> Array:
        odds = jnp.matmul(design, theta, precision="highest")
        return jnp.matmul(jax.nn.sigmoid(odds), design, precision="highest")

    difference = np.eye(9) - np.eye(9, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    prior = {
        "theta": dist.MultivariateNormal(
            jnp.zeros(10), covariance_matrix=jnp.asarray(np.linalg.inv(precision), jnp.float32)
        )
    }
    simulator = Instant(prior=prior, function=expected, size=10)
    return Task(Study(simulator, SpikeSums(design=design), Estimate(), name="bernoulli_glm"))


TASKS: dict[str, Callable[[], Task]] = {
    "sir": _sir,
    "lotka_volterra": _lotka_volterra,
    "two_moons": _two_moons,
    "slcp": _slcp,
    "gaussian_linear": _gaussian_linear,
    "gaussian_mixture": _gaussian_mixture,
    "bernoulli_glm": _bernoulli_glm,
}
