"""The predictor a user holds: a study and a network; `real data -> posterior`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sgjax._types import PRNGKey, Theta
from sgjax.observations import Observed
from sgjax.predictors._base import AbstractPredictive
from sgjax.predictors._posterior import Posterior
from sgjax.predictors.network import AbstractNetwork, build_network
from sgjax.priors import fold_name
from sgjax.stream import SimulationStream
from sgjax.study import Study
from sgjax.tasks import Inputs

PILOT_SIMULATIONS = 8192
"""How many simulations the scaling of inputs and targets is measured from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A study with the network that answers it.

    `predictor(real)` takes one real series, an array `(times,)` or `(times, channels)` in which NaN
    means missing, or an `Observed`, and returns its `Posterior`. For many simulated series at once
    use `predictor.predict`.
    """

    study: Study
    network: AbstractNetwork

    def __call__(
        self, real: Observed | np.ndarray | Array, known: Mapping[str, float] | None = None
    ) -> Posterior:
        given = {name: jnp.asarray(value, jnp.float32) for name, value in (known or {}).items()}
        inputs, features, blocks = self._answer(as_observed(self.study, real), given)
        return Posterior(self.study, inputs, given, features, blocks)

    @cached_property
    def _answer(self) -> Callable[[Observed, Theta], tuple[Inputs, Array, dict]]:
        @jax.jit
        def answer(record: Observed, given: Theta):
            inputs = self.study.inputs(record, given)
            return inputs, *self.network(inputs)

        return answer

    def predict(
        self, inputs: Inputs
    ) -> tuple[Float[Array, "batch features"], dict[str, AbstractPredictive]]:
        """Features and predictive distributions of many inputs, batch leading; use under `jit`.

        Each predictive distribution is whole, so that those of a flow hold its weights. For one
        number of each example, ask for it inside `jax.vmap(lambda one: self.network(one)...)`.
        """
        return jax.vmap(lambda one: self.network(one))(inputs)

    def with_network(self, network: AbstractNetwork) -> "Predictor":
        """The same study with other weights."""
        return Predictor(self.study, network)


def for_study(
    study: Study,
    key: PRNGKey,
    *,
    encoder: str = "mlp",
    heads: Mapping[str, str] | None = None,
    width: int = 256,
    depth: int = 3,
    measure: bool = True,
) -> Predictor:
    """An untrained predictor that fits a study, its scaling measured from pilot simulations.

    **Arguments:** `encoder` one of "mlp", "convolution", "transformer"; `heads` by block of the
    task where the default is not wanted; `width` and `depth` of the encoder;
    `measure=False` leaves the scaling blank, for weights and scaling that will be restored.
    """
    pilot = SimulationStream(study, fold_name(key, "pilot"), study.simulator.mechanism_table.size)
    if measure:
        batch = pilot.take(PILOT_SIMULATIONS)
    else:
        shapes = jax.eval_shape(lambda: pilot.batch(0))
        batch = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    if not bool(jnp.any(batch.valid)):
        raise ValueError("No simulation of the study is finite; check its equations and priors.")
    network = build_network(
        study.specs,
        batch.example.inputs,
        batch.example.targets,
        batch.valid,
        encoder=encoder,
        heads=dict(heads or {}),
        width=width,
        depth=depth,
        rngs=nnx.Rngs(fold_name(key, "weights")),
    )
    return Predictor(study, network)


def as_observed(study: Study, real: Observed | np.ndarray | Array) -> Observed:
    """Real data as a record of the study, NaN as missing; `ValueError` on a wrong shape."""
    if isinstance(real, Observed):
        return real
    values = np.asarray(real, np.float32)
    values = values[:, None] if values.ndim == 1 else values
    expected = (study.context_ts.size, len(study.channels))
    if values.shape != expected:
        raise ValueError(
            f"The data have shape {values.shape}; the study sees {expected[0]} times and "
            f"{expected[1]} channel(s) {study.channels}. Give missing values as NaN."
        )
    if np.isinf(values).any():
        raise ValueError("The data hold an infinite value; give missing values as NaN.")
    mask = ~np.isnan(values)
    if not mask.any():
        raise ValueError("Every value of the data is missing.")
    ts = jnp.asarray(study.context_ts, jnp.float32)
    return Observed(ts, jnp.asarray(np.where(mask, values, 0.0)), jnp.asarray(mask))
