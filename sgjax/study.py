"""A study: simulator, observation and task under one name; `(key, mechanism) -> simulation`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._fingerprint import digest, without, words
from sgjax._types import Prior, PRNGKey, Theta, Times
from sgjax.observations import AbstractObservation, Observed
from sgjax.priors import merge_priors, sample_prior
from sgjax.simulators import (
    AbstractODESimulator,
    AbstractSimulator,
    AbstractStochasticSimulator,
    Latent,
    MechanismMixture,
    check_equations,
)
from sgjax.tasks import AbstractTask, Example, Inputs, Simulated, TargetSpec, World


class Simulation(eqx.Module):
    """Simulations of one study, whatever their mechanisms; the batch leads.

    `theta` holds every parameter of the study, 0 where a mechanism lacks it. `valid` is false where
    a number is not finite; inputs and targets of such a simulation are constants.
    """

    theta: Theta
    mechanism: Int[Array, " batch"]
    latent: Float[Array, "batch times channels"]
    observed: Observed
    example: Example
    valid: Bool[Array, " batch"]


class Study(eqx.Module):
    """What is simulated, how it is observed, and what is asked.

    **Arguments:** a simulator or a `MechanismMixture`; an observation model; a task; `known`, names
    of parameters that are given beside the data (population size, reporting rate): drawn like the
    others and handed to the predictor as inputs, so that one network serves many outbreaks; a name.

    Raises `ValueError` where equations cannot be compiled, where two priors name the same
    parameter, where a known parameter has no
    prior under every mechanism, or where the task cannot be asked of this world.
    """

    simulator: AbstractSimulator | MechanismMixture
    observation: AbstractObservation
    task: AbstractTask
    known: tuple[str, ...] = ()
    name: str = "study"

    def __check_init__(self):
        for simulator in self.mechanisms.values():
            if isinstance(simulator, AbstractODESimulator | AbstractStochasticSimulator):
                check_equations(simulator)
        for mechanism, prior in self.priors.items():
            absent = [name for name in self.known if name not in prior]
            if absent:
                raise ValueError(
                    f"{absent} are declared known but have no prior under {mechanism}; add one, "
                    "as wide as the values the predictor shall serve."
                )
        self.task.specs(self.world)

    @property
    def mechanisms(self) -> dict[str, AbstractSimulator]:
        """The mechanisms by name; one unless the simulator is a mixture."""
        return self.simulator.mechanisms

    @property
    def mechanism_probabilities(self) -> dict[str, float]:
        """The prior over mechanisms."""
        table = self.simulator.mechanism_table
        shares = np.bincount(table, minlength=len(self.mechanisms)) / table.size
        return dict(zip(self.mechanisms, map(float, shares), strict=True))

    @property
    def priors(self) -> dict[str, Prior]:
        """By mechanism, the prior of simulator and observation together."""
        return {
            name: merge_priors(simulator.prior, self.observation.prior)
            for name, simulator in self.mechanisms.items()
        }

    @property
    def ts(self) -> Times:
        """The times that are simulated."""
        return self.simulator.ts

    @property
    def context_ts(self) -> Times:
        """The times that the predictor sees."""
        return self.ts[: self.task.context]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the observed channels."""
        return self.simulator.channels

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Every parameter of every mechanism, in the order they are drawn."""
        return tuple(dict.fromkeys(name for prior in self.priors.values() for name in prior))

    @property
    def world(self) -> World:
        """What a task needs to know."""
        key = jax.random.key(0)
        priors = self.priors
        thetas = {
            name: jax.eval_shape(lambda key, prior=prior: sample_prior(key, prior), key)
            for name, prior in priors.items()
        }
        return World(priors, thetas, tuple(self.known), self.ts.size, self.channels)

    @property
    def specs(self) -> dict[str, TargetSpec]:
        """The blocks of targets that the task asks for."""
        return self.task.specs(self.world)

    def simulate(self, mechanism: str, keys: PRNGKey) -> Simulation:
        """One simulation of a mechanism per key."""
        theta, keys = self._draw(mechanism, keys)
        latent = self.mechanisms[mechanism].simulate_batch(keys[:, 1], theta)
        observed = self.observe(keys[:, 2], theta, latent)
        return self.finish(mechanism, theta, latent, observed)

    def parameters(self, mechanism: str, keys: PRNGKey) -> Theta:
        """The parameters of `simulate`, without solving or observing anything."""
        return self._padded(self._draw(mechanism, keys)[0], keys.shape[0])

    def _draw(self, mechanism: str, keys: PRNGKey) -> tuple[Theta, PRNGKey]:
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        prior = self.priors[mechanism]
        return jax.vmap(lambda key: sample_prior(key, prior))(keys[:, 0]), keys

    def _padded(self, theta: Theta, size: int) -> Theta:
        """Every parameter of the study, 0 where the mechanism lacks it; the batch leads."""
        drawn = self.world.thetas.values()
        shapes = {name: leaf.shape for each in drawn for name, leaf in each.items()}
        return {
            name: theta.get(name, jnp.zeros((size, *shapes[name]))) for name in self.parameter_names
        }

    def observe(self, keys: PRNGKey, theta: Theta, latent: Latent) -> Observed:
        """A record of each latent course."""

        def observe(key: PRNGKey, theta: Theta, latent: Latent) -> Observed:
            return self.observation.observe(key, theta, Observed.of(latent))

        return jax.vmap(observe)(keys, theta, latent)

    def finish(
        self, mechanism: str, theta: Theta, latent: Latent, observed: Observed
    ) -> Simulation:
        """Cuts the examples out and marks what is not finite."""
        index = list(self.mechanisms).index(mechanism)
        world = self.world

        def example(theta: Theta, latent: Latent, observed: Observed) -> Example:
            simulated = Simulated(mechanism, index, theta, latent, observed)
            inputs = self.task.inputs(world, simulated)
            return Example(inputs, self.task.targets(world, simulated))

        examples = jax.vmap(example)(theta, latent, observed)
        valid = _finite((theta, latent.values, observed.values, examples))
        return Simulation(
            self._padded(theta, valid.shape[0]),
            jnp.full(valid.shape[0], index, jnp.int32),
            latent.values,
            observed,
            _constant_where_invalid(examples, valid),
            valid,
        )

    def inputs(self, observed: Observed, known: Theta | None = None) -> Inputs:
        """A real record in the form the predictor sees."""
        given = known or {}
        absent = [name for name in self.known if name not in given]
        if absent:
            raise ValueError(f"The study needs the known quantities {absent} beside the data.")
        mechanism = next(iter(self.priors))
        theta = {name: jnp.asarray(given[name], jnp.float32) for name in self.known}
        latent = Latent(observed.ts, observed.values, None)
        return self.task.inputs(self.world, Simulated(mechanism, 0, theta, latent, observed))

    def fingerprint(self) -> str:
        """A short hash of what the study *is*: all of `parts`, without its name."""
        return digest({name: part["sha256"] for name, part in self.parts().items()})[:16]

    def parts(self) -> dict[str, dict[str, str]]:
        """What the study is made of, by name: in `words`, and its `sha256`.

        Two studies that differ can so be told where: in a prior, the time grid, the steps, the
        observation, ...
        """
        found: dict[str, Any] = {"mechanisms": self.mechanism_probabilities}
        for name, simulator in self.mechanisms.items():
            found[f"mechanism {name}"] = without(simulator, "prior", "ts", "solver")
            found[f"time grid of {name}"] = simulator.ts
            if hasattr(simulator, "solver"):
                found[f"solver of {name}"] = getattr(simulator, "solver")  # noqa: B009
            for parameter, prior in simulator.prior.items():
                found[f"prior of {parameter} under {name}"] = prior
        found["observation"] = without(self.observation, "prior")
        for parameter, prior in self.observation.prior.items():
            found[f"prior of {parameter} (observation)"] = prior
        found["channels"], found["task"] = self.channels, self.task
        found["known quantities"] = tuple(self.known)
        found["targets"] = {block: spec.names for block, spec in self.specs.items()}
        return {
            name: {"words": words(value), "sha256": digest(value)} for name, value in found.items()
        }


def _finite(tree) -> Bool[Array, " batch"]:
    def leaf(values: Array) -> Bool[Array, " batch"]:
        return jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=1)

    floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([leaf(values) for values in floating]).all(axis=0)


def _constant_where_invalid(examples: Example, valid: Bool[Array, " batch"]) -> Example:
    # Masking the loss alone would leave NaN gradients: inputs and targets must be finite too.
    def leaf(values: Array) -> Array:
        keep = valid.reshape(-1, *([1] * (values.ndim - 1)))
        return jnp.where(keep, values, jnp.zeros((), values.dtype))

    return jax.tree.map(leaf, examples)
