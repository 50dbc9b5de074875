"""The compiled update: `state -> state`, a scan of simulate, predict, score and update.

Each device simulates and scores its own share of a batch; the only exchange is the sum of gradients
and metrics. The state lies whole on every device, or is shared out among them (`sharded`).
"""

import dataclasses
from collections.abc import Callable
from math import lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from sgjax.devices import AXIS, fetched, jit
from sgjax.faults import Faults, count_faults
from sgjax.predictors import AbstractNetwork, Predictor
from sgjax.stream import SimulationStream, batches_ahead
from sgjax.study import Simulation

PADDING = 1024
"""A shared state is filled up to a multiple of this, so that other numbers of devices can go on."""

REMEMBERED = 0.99
"""The decay of the running mean of gradients' lengths."""


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """How weights are updated: AdamW with warm-up, cosine decay, clipping, and averaged weights."""

    learning_rate: float = 1e-3
    """The peak, reached after the warm-up."""
    warmup_share: float = 0.05
    """The share of all steps over which the rate rises linearly from 0."""
    final_share: float = 0.01
    """The rate at the end of the cosine decay, as a share of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay; endless fresh simulations rarely need any."""
    clip_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    average: float = 0.999
    """The decay of the exponential moving average of the weights, which is what is returned."""
    spike: float = 1e3
    """An update whose gradient is so many times longer than is usual is left out; usual is the
    running geometric mean of its lengths. Shorter excesses are dealt with by `clip_norm`."""

    def transformation(self, num_steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `num_steps`."""
        warmup = max(1, round(self.warmup_share * num_steps))
        rate = optax.warmup_cosine_decay_schedule(
            0.0,
            self.learning_rate,
            warmup,
            max(num_steps, warmup + 1),
            end_value=self.final_share * self.learning_rate,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, weight_decay=self.weight_decay),
        )


class TrainState(NamedTuple):
    """All that changes during a run. The simulations need no state but the step.

    The weights are one vector: the optimiser is a few operations on it instead of a dozen on each
    array of the network, and would otherwise be the largest part of the program to compile.
    """

    step: Int[Array, ""]
    params: Float[Array, " weights"]
    average: Float[Array, " weights"]
    optimiser: PyTree
    constants: PyTree
    """The network's untrained variables: the scales measured from simulations."""
    skipped: Int[Array, ""]
    """Updates left out since their gradient was not finite or a spike."""
    in_a_row: Int[Array, ""]
    """How many of these came last, one after another."""
    usual: Float[Array, ""]
    """The running mean of the logarithm of the gradient's length; infinite before the first."""


class Metrics(NamedTuple):
    """What one step measured, or each of several steps."""

    loss: Float[Array, "*steps"]
    losses: dict[str, Float[Array, "*steps"]]
    valid_share: Float[Array, "*steps"]
    faults: Faults | None = None
    """Of all steps of a program together."""


class Trainer:
    """The compiled update of one predictor on one stream, for `train` and for benchmarks.

    With `sharded`, each device of the stream's mesh keeps its part of weights, average and
    optimiser; the weights are gathered for the length of an update (ZeRO, Rajbhandari et al., 2020;
    fully sharded data parallelism, Zhao et al., 2023).

    Raises `ValueError` where `ahead` is less than 1, or a state is to be shared out over no mesh.
    """

    def __init__(
        self,
        predictor: Predictor,
        stream: SimulationStream,
        optimisation: Optimisation,
        num_steps: int,
        ahead: int | None = None,
        sharded: bool = False,
    ):
        if ahead is not None and ahead < 1:
            raise ValueError(f"`ahead` must be at least 1; got {ahead}.")
        if sharded and stream.mesh is None:
            raise ValueError("`sharded` needs a stream with a `mesh` to share the state out over.")
        self.stream, self.sharded = stream, sharded
        self.ahead = batches_ahead(stream) if ahead is None else ahead
        self.source = predictor
        self.graph, weights, self.constants = nnx.split(predictor.network, nnx.Param, ...)
        self.params, self._weights = ravel_pytree(weights)
        self._size = self.params.size
        if sharded and stream.mesh is not None:
            missing = -self._size % lcm(PADDING, stream.mesh.size)
            self.params = jnp.pad(self.params, (0, missing))
        self.optimisation = optimisation
        self.transformation = optimisation.transformation(num_steps)
        self._programs: dict[int, Callable] = {}

    def initial_state(self) -> TrainState:
        """The state before the first step, on the devices of the stream's mesh."""
        optimiser = self.transformation.init(self.params)
        zero = jnp.zeros((), jnp.int32)
        usual = jnp.full((), jnp.inf, jnp.float32)
        state = TrainState(
            zero, self.params, self.params, optimiser, self.constants, zero, zero, usual
        )
        # Copies, since the compiled program is given these buffers to write in.
        state = jax.tree.map(jnp.copy, state)
        return state if self.stream.mesh is None else jax.device_put(state, self._places(state))

    def predictor(self, state: TrainState) -> Predictor:
        """A predictor with the averaged weights of a state, on the process's own device."""
        params, constants = state.average, state.constants
        if self.stream.mesh is not None:
            params, constants = jax.tree.map(jnp.asarray, fetched((params, constants)))
        return self.source.with_network(self._network(params, constants))

    def block(self, interval: int) -> int:
        """How many updates are one program when reports come every `interval` updates.

        As many as are simulated at once: a process that is told to stop ends the block in hand.
        """
        return _most_that_divide(interval, self.ahead)

    def compiled(self, length: int, state: TrainState) -> Callable[[TrainState], tuple]:
        """`length` updates as one program; compiled once."""
        if length not in self._programs:
            # As many at once as divide the length, so that there is one kind of block to compile.
            count = _most_that_divide(length, self.ahead)

            def block(state: TrainState, _: Any) -> tuple[TrainState, tuple[Metrics, Faults]]:
                batches = self.stream.batches(state.step, count)
                state, metrics = jax.lax.scan(self.update, state, batches)
                return state, (metrics, count_faults(self.stream, batches))

            def run(state: TrainState) -> tuple[TrainState, Metrics]:
                state, (metrics, faults) = jax.lax.scan(block, state, length=length // count)
                metrics = jax.tree.map(lambda leaf: leaf.reshape(length), metrics)
                # Devices add up their counts once, not in each block.
                faults = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=(0, 1)), faults)
                return state, metrics._replace(faults=faults)

            split = {}
            if self.stream.mesh is not None:
                whole = NamedSharding(self.stream.mesh, PartitionSpec())
                split["out_shardings"] = (self._places(state), whole)
            program = jit(run, donate_argnums=0, **split)
            self._programs[length] = program.lower(state).compile()
        return self._programs[length]

    def update(self, state: TrainState, batch: Simulation) -> tuple[TrainState, Metrics]:
        """One step on a batch: predict, score, update."""
        slopes, losses, valid = self._slopes(state, batch)
        length = jnp.sqrt(jnp.sum(jnp.square(slopes)))
        finite, logarithm = jnp.isfinite(length), jnp.log(length)
        # Before the first gradient and after one of 0 there is nothing to compare with.
        usable = finite & (length <= self.optimisation.spike * jnp.exp(state.usual))
        slopes = jnp.where(usable, slopes, 0.0)
        changes, optimiser = self.transformation.update(slopes, state.optimiser, state.params)
        params = state.params + jnp.asarray(changes)
        # Averages start short, so that they do not remember the first weights.
        early = (1 + state.step.astype(jnp.float32)) / (10 + state.step.astype(jnp.float32))
        decay = jnp.minimum(self.optimisation.average, early)
        average = decay * state.average + (1 - decay) * params
        # Spikes count too, so that a lasting change of scale is soon no spike any more.
        drift = (1 - jnp.minimum(REMEMBERED, early)) * (logarithm - state.usual)
        moved = jnp.where(jnp.isinf(state.usual), logarithm, state.usual + drift)
        usual = jnp.where(finite & (length > 0), moved, state.usual)
        state = state._replace(step=state.step + 1, usual=usual)
        fresh = state._replace(
            params=params, average=average, optimiser=optimiser, in_a_row=jnp.zeros_like(state.step)
        )
        kept = state._replace(skipped=state.skipped + 1, in_a_row=state.in_a_row + 1)
        state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), fresh, kept)
        return state, Metrics(sum(losses.values(), start=jnp.zeros(())), losses, valid)

    def _slopes(
        self, state: TrainState, batch: Simulation
    ) -> tuple[Float[Array, " weights"], dict[str, Array], Array]:
        """The gradient of the mean score over the valid simulations, scores, and their share."""
        gradient = jax.grad(self._loss, has_aux=True)

        def own(params: Array, constants: PyTree, batch: Simulation) -> tuple[Array, Any]:
            if self.sharded:
                params = jax.lax.all_gather(params, AXIS, tiled=True)
            slopes, losses = gradient(params, constants, batch, self.stream.batch_size)
            valid = jnp.sum(batch.valid, dtype=jnp.float32) / self.stream.batch_size
            if self.stream.mesh is None:
                return slopes, (losses, valid)
            if self.sharded:
                measured, back = ravel_pytree((losses, valid))
                slopes = jax.lax.psum_scatter(slopes, AXIS, tiled=True)
                return slopes, back(jax.lax.psum(measured, AXIS))
            # One vector, so that there is one message a step.
            together, back = ravel_pytree((slopes, (losses, valid)))
            return back(jax.lax.psum(together, AXIS))

        if self.stream.mesh is not None:
            held = PartitionSpec(AXIS) if self.sharded else PartitionSpec()
            own = jax.shard_map(
                own,
                mesh=self.stream.mesh,
                in_specs=(held, PartitionSpec(), PartitionSpec(AXIS)),
                out_specs=(held, PartitionSpec()),
                check_vma=False,
            )
        slopes, (losses, valid) = own(state.params, state.constants, batch)
        # Exactly 1 where all are valid.
        scale = jnp.where(valid > 0, 1 / valid, 0.0)
        return slopes * scale, jax.tree.map(lambda loss: loss * scale, losses), valid

    def loss(
        self, params: Float[Array, " weights"], constants: PyTree, batch: Simulation
    ) -> tuple[Array, dict[str, Array]]:
        """The mean score over the valid simulations, and the same by block."""
        return self._loss(params, constants, batch, jnp.maximum(jnp.sum(batch.valid), 1))

    def _loss(
        self,
        params: Float[Array, " weights"],
        constants: PyTree,
        batch: Simulation,
        count: ArrayLike,
    ) -> tuple[Array, dict[str, Array]]:
        """The sum of the scores of the valid simulations, over a count."""
        network = self._network(params, constants)
        scores = jax.vmap(lambda example: network.scores(example))(batch.example)
        weights = batch.valid / count
        losses = {block: jnp.sum(weights * score) for block, score in scores.items()}
        return sum(losses.values(), start=jnp.zeros(())), losses

    def _places(self, state: TrainState) -> TrainState:
        """Where each array of a state lies: what is as long as the weights may be shared out."""
        mesh = self.stream.mesh
        assert mesh is not None

        def place(leaf: Array) -> NamedSharding:
            split = self.sharded and leaf.shape == self.params.shape
            return NamedSharding(mesh, PartitionSpec(AXIS) if split else PartitionSpec())

        places = jax.tree.map(place, state)
        whole = NamedSharding(mesh, PartitionSpec())
        return places._replace(constants=jax.tree.map(lambda _: whole, state.constants))

    def _network(self, params: Float[Array, " weights"], constants: PyTree) -> AbstractNetwork:
        return nnx.merge(self.graph, self._weights(params[: self._size]), constants)


def _most_that_divide(length: int, most: int) -> int:
    return max(n for n in range(1, min(most, length) + 1) if length % n == 0)
