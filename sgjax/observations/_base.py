"""What every observation model is: `(key, theta, signal) -> Observed`, one simulation at a time."""

import abc
import itertools
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sgjax._types import Prior, PRNGKey, Theta
from sgjax.priors import merge_priors
from sgjax.simulators import Latent


class Observed(eqx.Module):
    """What an instrument recorded; where `mask` is false nothing was, and the value is 0."""

    ts: Float[Array, "*batch times"]
    values: Float[Array, "*batch times channels"]
    mask: Bool[Array, "*batch times channels"]

    @classmethod
    def of(cls, latent: Latent) -> "Observed":
        """A perfect record of a latent course: the signal that the first stage receives."""
        return cls(latent.ts, latent.values, jnp.ones(latent.values.shape, bool))

    def with_values(self, values: Float[Array, "times channels"]) -> "Observed":
        """Other values at the same times, 0 where nothing was recorded."""
        return Observed(self.ts, jnp.where(self.mask, values, 0.0), self.mask)


class AbstractObservation(eqx.Module):
    """One stage between the mechanism and the data, with the prior of its own parameters."""

    prior: eqx.AbstractVar[Prior]

    @abc.abstractmethod
    def observe(self, key: PRNGKey, theta: Theta, signal: Observed) -> Observed:
        """The record of one simulation; `theta` holds the parameters of the whole study."""

    def quantity(self, theta: Theta, name: str) -> Any:
        """The value of a field: from the parameters where the prior names it, else the field's."""
        return theta[name] if name in self.prior else getattr(self, name)


class AbstractTransform(AbstractObservation):
    """A stage without chance: it changes the mean that later stages observe."""

    @abc.abstractmethod
    def transform(self, theta: Theta, signal: Observed) -> Observed:
        """The changed signal."""

    def observe(self, key: PRNGKey, theta: Theta, signal: Observed) -> Observed:
        del key
        return self.transform(theta, signal)


class AbstractNoise(AbstractObservation):
    """A stage that draws each value independently about the signal."""

    lowest: ClassVar[float] = -math.inf
    """The least value that can be drawn."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, theta: Theta, mean: Array) -> Array:
        """Values about `mean`, of its shape."""

    @abc.abstractmethod
    def log_density(self, theta: Theta, mean: Array, values: Array) -> Array:
        """The log probability (density) of each value."""

    def observe(self, key: PRNGKey, theta: Theta, signal: Observed) -> Observed:
        return signal.with_values(self.draw(key, theta, signal.values))

    def level(self, theta: Theta, name: str, mean: Array) -> Array:
        """A noise level in the shape of `mean`, from one number or one per channel."""
        return jnp.broadcast_to(jnp.asarray(self.quantity(theta, name), mean.dtype), mean.shape)


class AbstractMissingness(AbstractObservation):
    """A stage that loses values at random, whatever they were."""

    @abc.abstractmethod
    def keep(self, key: PRNGKey, theta: Theta, signal: Observed) -> Bool[Array, "times channels"]:
        """Which values stay."""

    def observe(self, key: PRNGKey, theta: Theta, signal: Observed) -> Observed:
        mask = signal.mask & self.keep(key, theta, signal)
        return Observed(signal.ts, jnp.where(mask, signal.values, 0.0), mask)


class Chain(AbstractObservation):
    """Stages one after the other, each fed with what the one before recorded.

    A chain within a chain is laid flat. No stage at all is a perfect record.

    **Good values:** the order of nature, from the source to the desk: under-reporting, reporting
    delay, weekday effect, count noise, missing values.

    Source: the surveillance pyramid, e.g. Gibbons et al. (2014).
    """

    stages: tuple[AbstractObservation, ...]
    prior: Prior

    def __init__(self, *stages: AbstractObservation):
        nested = (s.stages if isinstance(s, Chain) else (s,) for s in stages)
        self.stages = tuple(itertools.chain.from_iterable(nested))
        self.prior = merge_priors(*(stage.prior for stage in self.stages))

    def observe(self, key: PRNGKey, theta: Theta, signal: Observed) -> Observed:
        for index, stage in enumerate(self.stages):
            signal = stage.observe(jax.random.fold_in(key, index), theta, signal)
        return signal


def log_likelihood(
    observation: AbstractObservation, theta: Theta, latent: Latent, observed: Observed
) -> Float[Array, ""]:
    r"""$\log p(\text{observed} \mid \theta, \text{latent})$ over the values that were recorded.

    Exact where the stages are transforms, then one noise, then losses at random. Raises
    `ValueError` for any other chain, whose likelihood is an integral.
    """
    return jnp.sum(log_densities(observation, theta, latent, observed))


def log_densities(
    observation: AbstractObservation, theta: Theta, latent: Latent, observed: Observed
) -> Float[Array, "times channels"]:
    """The terms of `log_likelihood`, independent of each other; 0 where nothing was recorded."""
    signal = Observed.of(latent)
    stages = observation.stages if isinstance(observation, Chain) else (observation,)
    noise: AbstractNoise | None = None
    complete = True
    for stage in stages:
        if isinstance(stage, AbstractTransform) and noise is None and complete:
            signal = stage.transform(theta, signal)
        elif isinstance(stage, AbstractNoise) and noise is None:
            noise = stage
        elif isinstance(stage, AbstractMissingness):
            complete = False  # a later transform would mix the values that stayed
        else:
            raise ValueError(
                f"{type(stage).__name__} at this place leaves no closed-form likelihood; it needs "
                "transforms, then one noise, then missingness."
            )
    if noise is None:
        raise ValueError("A likelihood needs a noise stage; this observation has none.")
    values = noise.log_density(theta, signal.values, observed.values)
    return jnp.where(observed.mask, values, 0.0)
