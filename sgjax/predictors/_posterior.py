"""What a predictor says of one real series, in the user's own names and units."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float

from sgjax._types import PRNGKey, Theta
from sgjax.predictors._base import AbstractPredictive, ByMechanism
from sgjax.priors import from_unconstrained, log_jacobian, resolve, to_unconstrained
from sgjax.stream import Same
from sgjax.study import Study
from sgjax.tasks import (
    AbstractTask,
    Estimate,
    Forecast,
    Inputs,
    Several,
    component_names,
    flatten,
    parameter_sizes,
)

T = TypeVar("T", bound=AbstractTask)

LEVELS = (0.05, 0.5, 0.95)

CENTRAL = 0.999
"""The share of the draws that means and sds are taken over."""


class Posterior(eqx.Module):
    """The predictive distribution of one series: mechanisms, parameters within each, forecasts.

    `blocks` are the raw predictive distributions by block of the task, on the learned scale.
    """

    study: Study
    inputs: Inputs
    known: Theta
    features: Float[Array, " features"]
    blocks: dict[str, AbstractPredictive]

    @property
    def mechanisms(self) -> dict[str, float]:
        """The probability of each mechanism, among the study's mechanisms only."""
        if "mechanism" not in self.blocks:
            return self.study.mechanism_probabilities
        probabilities = np.asarray(self.blocks["mechanism"].mean(), np.float64)
        return dict(zip(self.study.mechanisms, map(float, probabilities), strict=True))

    def sample(self, key: PRNGKey, num_samples: int, mechanism: str | None = None) -> Theta:
        """Joint draws of parameters and derived quantities within one mechanism, draws leading.

        Raises `ValueError` where the study has several mechanisms and none is named, since draws of
        different mechanisms mean different things; `CannotGive` where the head has no density.
        """
        mechanism = self._mechanism(mechanism)
        draw = _draws(Same(self.study), mechanism, num_samples)
        return draw(self._within(mechanism), key, self.known)

    def log_prob(self, theta: Theta, mechanism: str | None = None) -> Float[Array, ""]:
        r"""The log density of the estimated parameters together, in their own units.

        $$\log p(\theta \mid x, M) = \log q(u) - \log \left| d\theta / du \right|$$

        with $q$ the density learned in unconstrained space. Minus infinity outside the open support
        of the prior. `theta` is one value of each parameter that mechanism $M$ has; what else it
        holds is not read, so that a draw will do. Use `jax.vmap` for many. Raises `ValueError`
        where one is absent, `CannotGive` where the head has no density.
        """
        mechanism = self._mechanism(mechanism)
        values, stretch, inside = unconstrained(self.study, mechanism, theta, self.known)
        log_density = self._within(mechanism).log_prob(values) - stretch
        return jnp.where(inside, log_density, -jnp.inf)

    def estimates(
        self,
        key: PRNGKey | None = None,
        num_samples: int = 20_000,
        levels: Sequence[float] = LEVELS,
    ) -> dict[str, dict[str, dict[str, float]]]:
        """By mechanism and quantity: mean, sd and quantiles, from `num_samples` joint draws."""
        key = jax.random.key(0) if key is None else key
        return {
            mechanism: summarise(
                self.sample(jax.random.fold_in(key, index), num_samples, mechanism), levels
            )
            for index, mechanism in enumerate(self.study.mechanisms)
        }

    def quantile(
        self, name: str, levels: Sequence[float], mechanism: str | None = None
    ) -> Float[Array, " levels"]:
        """Marginal quantiles of one parameter, for heads that have quantiles but no density."""
        mechanism = self._mechanism(mechanism)
        names = self.study.specs["parameters"].names
        if name not in names:
            raise ValueError(f"{name!r} is none of the estimated parameters {list(names)}.")
        values = self._within(mechanism).quantile(jnp.asarray(levels))

        def at_level(row: Array) -> Array:
            return natural(self.study, mechanism, row, self.known)[name]

        # The maps to the real line are monotone, so quantiles pass through them unchanged.
        return jax.vmap(at_level)(values)

    def forecast(self, levels: Sequence[float]) -> Float[Array, "levels horizon channels"]:
        """Quantiles of the next observations, on the scale of the data."""
        task = find_task(self.study.task, Forecast)
        if task is None:
            raise ValueError("The study's task has no Forecast.")
        values = self.blocks["forecast"].quantile(jnp.asarray(levels))
        shape = (len(levels), task.horizon, len(self.study.channels))
        return task.to_data(values).reshape(shape)

    def latent(self, levels: Sequence[float]) -> dict[str, Float[Array, " levels"]]:
        """Quantiles of the functions of the latent course."""
        names = self.study.specs["latent"].names if "latent" in self.blocks else ()
        if not names:
            raise ValueError("The study's task estimates no function of the latent course.")
        values = self.blocks["latent"].quantile(jnp.asarray(levels))
        return {name: values[:, index] for index, name in enumerate(names)}

    def prior_sensitivity(
        self,
        name: str,
        prior: dist.Distribution,
        key: PRNGKey | None = None,
        num_samples: int = 100_000,
    ) -> dict[str, dict[str, float]]:
        r"""The mechanisms' probabilities had parameter `name` another prior, by reweighting.

        $$P'(M \mid x) \propto P(M \mid x) \; E_{\theta \mid x, M}[p'(\theta) / p(\theta)]$$

        for the mechanisms that have the parameter. Gives `probabilities` and, by mechanism, the
        `effective_sample_size` of the weights, as a share of the draws: a small one says that the
        posterior under the old prior holds too little of the new one.
        """
        key = jax.random.key(1) if key is None else key
        factors, sizes = {}, {}
        for index, mechanism in enumerate(self.study.mechanisms):
            old = self.study.priors[mechanism]
            factors[mechanism], sizes[mechanism] = 1.0, 1.0
            if name not in old:
                continue
            theta = self.sample(jax.random.fold_in(key, index), num_samples, mechanism)
            before = resolve(old, name, theta).log_prob(theta[name])
            weights = np.exp(np.asarray(prior.log_prob(theta[name]) - before, np.float64))
            factors[mechanism] = float(weights.mean())
            sizes[mechanism] = float(weights.sum() ** 2 / (weights**2).sum() / num_samples)
        raw = {name: share * factors[name] for name, share in self.mechanisms.items()}
        total = sum(raw.values())
        return {
            "probabilities": {mechanism: value / total for mechanism, value in raw.items()},
            "effective_sample_size": sizes,
        }

    def _mechanism(self, mechanism: str | None) -> str:
        names = list(self.study.mechanisms)
        if mechanism is None and len(names) == 1:
            return names[0]
        if mechanism is None or mechanism not in names:
            raise ValueError(f"Name one of the mechanisms {names}; got {mechanism!r}.")
        return mechanism

    def _within(self, mechanism: str) -> AbstractPredictive:
        if "parameters" not in self.blocks:
            raise ValueError("The study's task estimates no parameters; add an `Estimate`.")
        block = self.blocks["parameters"]
        assert isinstance(block, ByMechanism)
        return block.select(list(self.study.mechanisms).index(mechanism))


def natural(study: Study, mechanism: str, values: Float[Array, " size"], known: Theta) -> Theta:
    """Parameters and derived quantities from the unconstrained vector of the `parameters` block."""
    task = find_task(study.task, Estimate)
    if task is None:
        raise ValueError("The study's task estimates no parameters; add an `Estimate`.")
    world, prior = study.world, study.priors[mechanism]
    sizes = parameter_sizes(world)
    shapes = jax.eval_shape(lambda theta: to_unconstrained(prior, theta), world.thetas[mechanism])
    unconstrained, start = {}, 0
    for name in task.parameters(world):
        if name in prior:
            unconstrained[name] = values[start : start + sizes[name]].reshape(shapes[name].shape)
        start += sizes[name]
    theta = from_unconstrained(prior, unconstrained, known)
    for name, function in task.derived.items():
        # A quantity made of parameters that this mechanism lacks does not exist under it.
        with contextlib.suppress(KeyError):
            theta[name] = function(theta)
    return {name: value for name, value in theta.items() if name not in known}


def unconstrained(
    study: Study, mechanism: str, theta: Theta, known: Theta
) -> tuple[Float[Array, " size"], Float[Array, ""], Bool[Array, ""]]:
    r"""The inverse of `natural`, $\log |d\theta / du|$, and whether theta is inside the support."""
    task = find_task(study.task, Estimate)
    if task is None:
        raise ValueError("The study's task estimates no parameters; add an `Estimate`.")
    world, prior = study.world, study.priors[mechanism]
    names, sizes = task.parameters(world), parameter_sizes(world)
    here = [name for name in names if name in prior]
    absent = [name for name in here if name not in theta]
    if absent:
        raise ValueError(f"The density is that of {here} together; give {absent} too.")
    given = {name: jnp.asarray(theta[name], jnp.float32) for name in here} | dict(known)
    made = to_unconstrained(prior, given, here)
    supports: list[Any] = [resolve(prior, name, given).support for name in here]
    inside = [jnp.all(support(given[name])) for name, support in zip(here, supports, strict=True)]
    inside += [jnp.all(jnp.isfinite(values)) for values in made.values()]
    missing = {name: jnp.zeros(sizes[name]) for name in names if name not in prior}
    return flatten(made | missing, names), log_jacobian(prior, made, given), jnp.stack(inside).all()


@functools.lru_cache(maxsize=64)
def _draws(same: Same, mechanism: str, num_samples: int) -> Callable:
    """A program that is compiled once for a study, not for each of its posteriors."""

    @jax.jit
    def draw(predictive: AbstractPredictive, key: PRNGKey, known: Theta) -> Theta:
        rows = predictive.sample(key, num_samples)
        return jax.vmap(lambda row: natural(same.study, mechanism, row, known))(rows)

    return draw


def summarise(
    draws: Mapping[str, ArrayLike], levels: Sequence[float] = LEVELS
) -> dict[str, dict[str, float]]:
    """Mean, sd and quantiles of draws, by name; one entry per component of a vector.

    Mean and sd are those of the central 99.9 % of the draws (which lowers the sd of a normal by
    0.6 %): a trained density puts about 1e-4 of its mass far out, where a quantity such as 1/gamma
    explodes, and that alone would decide its moments.
    """
    table: dict[str, dict[str, float]] = {}
    for name, values in draws.items():
        numbers = np.asarray(values, np.float64)
        columns = numbers.reshape(len(numbers), -1)
        for label, column in zip(component_names(name, columns.shape[1]), columns.T, strict=True):
            quantiles = np.quantile(column, levels)
            low, high = np.quantile(column, [(1 - CENTRAL) / 2, (1 + CENTRAL) / 2])
            # `not <` keeps what is not a number, so that it shows instead of vanishing.
            central = column[~((column < low) | (column > high))]
            table[label] = {"mean": float(central.mean()), "sd": float(central.std())} | {
                f"q{round(100 * level):02d}": float(value)
                for level, value in zip(levels, quantiles, strict=True)
            }
    return table


def find_task(task: AbstractTask, kind: type[T]) -> T | None:
    """The part of a task that is of a kind, if there is one."""
    parts = task.tasks if isinstance(task, Several) else (task,)
    return next((part for part in parts if isinstance(part, kind)), None)
