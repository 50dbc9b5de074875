"""The score of a state in training on simulations that training never sees: `state -> number`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgjax.devices import jit
from sgjax.stream import SimulationStream
from sgjax.training import Trainer, TrainState


class HeldOutScore:
    """The mean score of the averaged weights on a fixed set of held-out simulations.

    Whole batches of `stream.held_out()`, at least `num_simulations` together: always the same, so
    that states of one run compare without the noise of the draw. Lower is better. Compiled at its
    first call; no real datum ever enters.
    """

    def __init__(self, trainer: Trainer, stream: SimulationStream, num_simulations: int = 4096):
        held_out = stream.held_out()
        steps = jnp.arange(-(-num_simulations // stream.batch_size), dtype=jnp.uint32)

        def score(state: TrainState, steps: Array) -> Float[Array, ""]:
            def one(step: Array) -> Array:
                return trainer.loss(state.average, state.constants, held_out.batch(step))[0]

            return jnp.mean(jax.lax.map(one, steps))

        self._steps, self._score = steps, jit(score)

    def __call__(self, state: TrainState) -> float:
        return float(self._score(state, self._steps))
