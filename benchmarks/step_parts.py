"""Programs that hold one part of an update each, to see what an update is made of.

Simulating is cut short by leaving out what is not asked for: XLA drops what a program does not
return, so one that returns only parameters draws only parameters. Differences of the programs'
costs are the parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from sgjax.devices import jit
from sgjax.study import Simulation
from sgjax.tasks import Example
from sgjax.training import Trainer, TrainState

Run = Callable[[], np.ndarray]

UNTIL: dict[str, Callable[[Simulation], Any]] = {
    "prior draws": lambda batch: batch.theta,
    "solve": lambda batch: batch.latent,
    "noise": lambda batch: batch.observed.values,
    "cut into examples": lambda batch: (batch.example, batch.valid),
}
"""The stages of a batch in order, each by what it ends in."""

TINY = 1e-12
"""Couples the rounds of a scan, so that none is computed once for all."""


class Given(NamedTuple):
    """What an update needs of a batch."""

    example: Example
    valid: Array


def needed(batch: Simulation) -> Given:
    """What an update needs of a batch; what is left out is not even computed."""
    return Given(batch.example, batch.valid)


def programs(trainer: Trainer, steps: int) -> dict[str, Callable[[], Run]]:
    """By name, what makes a program that runs its part `steps` times."""
    made: dict[str, Callable[[], Run]] = {
        name: lambda pick=pick: _simulating(trainer, pick, steps) for name, pick in UNTIL.items()
    }
    network = {"forward": _forward, "backward": _backward, "optimiser": _update}
    for name, step in network.items():
        made[name] = lambda step=step: _training(trainer, step, steps)
    return made | {"matrix products": lambda: _products(trainer, steps)}


def costs(seconds: dict[str, np.ndarray], steps: int, batch: int) -> dict[str, dict[str, float]]:
    """By part: CPU microseconds per simulation, and the share of the fused step (medians)."""
    whole = seconds["fused"]

    def cost(spent: np.ndarray) -> dict[str, float]:
        each = 1e6 * float(np.median(spent)) / (steps * batch)
        return {"microseconds_per_simulation": each, "share": float(np.median(spent / whole))}

    found, simulating, training = {}, list(UNTIL), ["forward", "backward", "optimiser"]
    for chain in (simulating, training):
        before = np.zeros_like(whole)
        for name in chain:
            found[name] = cost(seconds[name] - before)
            before = seconds[name]
    # What the whole costs beyond its parts run by themselves. XLA may compute a draw once for each
    # use of it when the network follows, so this may be simulation too.
    found["remainder"] = cost(whole - seconds[simulating[-1]] - seconds[training[-1]])
    found["all of simulating"] = cost(seconds[simulating[-1]])
    found["added by simulating"] = cost(whole - seconds[training[-1]])
    found["whole step"] = cost(whole)
    found["matrix products alone"] = cost(seconds["matrix products"])
    return found


def _simulating(trainer: Trainer, pick: Callable[[Simulation], Any], steps: int) -> Run:
    # As many at once as in the fused program.
    count = max(n for n in range(1, min(trainer.ahead, steps) + 1) if steps % n == 0)

    def block(number: Array, _: Any) -> tuple[Array, Any]:
        found = pick(trainer.stream.batches(number, count))
        return number + count, jax.tree.map(lambda leaf: jnp.sum(leaf.astype(jnp.float32)), found)

    program = jit(lambda first: jax.lax.scan(block, first, length=steps // count))
    number = np.uint32(0)

    def run() -> np.ndarray:
        nonlocal number
        number, sums = program(number)
        return np.asarray(jax.block_until_ready(jax.tree.leaves(sums)[0]))

    return run


Step = Callable[[Trainer, TrainState, Given], tuple[TrainState, Array]]


def _training(trainer: Trainer, step: Step, steps: int) -> Run:
    """A part of the update, over and over on one batch."""

    def scan(state: TrainState, batch: Given) -> tuple[TrainState, Array]:
        return jax.lax.scan(lambda state, _: step(trainer, state, batch), state, length=steps)

    batch = jax.jit(lambda: needed(trainer.stream.batch(0)))()
    program, state = jit(scan, donate_argnums=0), trainer.initial_state()

    def run() -> np.ndarray:
        nonlocal state
        state, losses = program(state, batch)
        return np.asarray(losses)

    return run


def _forward(trainer: Trainer, state: TrainState, batch: Given) -> tuple[TrainState, Array]:
    loss, _ = trainer.loss(state.params, state.constants, batch)  # pyright: ignore[reportArgumentType]
    return state._replace(params=state.params + TINY * loss), loss


def _backward(trainer: Trainer, state: TrainState, batch: Given) -> tuple[TrainState, Array]:
    gradient = jax.value_and_grad(trainer.loss, has_aux=True)
    (loss, _), slopes = gradient(state.params, state.constants, batch)
    return state._replace(params=state.params - TINY * slopes), loss


def _update(trainer: Trainer, state: TrainState, batch: Given) -> tuple[TrainState, Array]:
    state, metrics = trainer.update(state, batch)  # pyright: ignore[reportArgumentType]
    return state, metrics.loss


def _products(trainer: Trainer, steps: int) -> Run:
    """Nothing but the matrix products of forward and backward: no network is faster."""
    weights = jax.tree.leaves(nnx.state(trainer.source.network, nnx.Param))
    matrices = [jnp.asarray(leaf) for leaf in weights if leaf.ndim == 2]
    keys = jax.random.split(jax.random.key(0), len(matrices))
    size = trainer.stream.batch_size
    inputs = [
        jax.random.normal(key, (size, m.shape[0])) for key, m in zip(keys, matrices, strict=True)
    ]

    def step(matrices: list[Array], _: Any) -> tuple[list[Array], Array]:
        new, total = [], jnp.zeros(())
        for x, matrix in zip(inputs, matrices, strict=True):
            y = x @ matrix
            total += jnp.sum(y @ matrix.T)
            new.append(matrix + TINY * (x.T @ y))
        return new, total

    program = jit(lambda matrices: jax.lax.scan(step, matrices, length=steps))

    def run() -> np.ndarray:
        return np.asarray(program(matrices)[1])

    return run
