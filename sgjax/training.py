"""Training: one compiled scan of simulate, predict, score, update; `predictor -> predictor`."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from sgjax._interrupt import Interrupted as Interrupted
from sgjax._interrupt import Stop, deferred_interrupt
from sgjax._invalid import explain_invalid
from sgjax.devices import jit
from sgjax.predictors import Network, Predictor
from sgjax.stream import SimulationStream, batches_ahead
from sgjax.study import Simulation


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
    """Updates left out since their gradient was not finite."""


class Metrics(NamedTuple):
    """What one step measured."""

    loss: Float[Array, ""]
    losses: dict[str, Float[Array, ""]]
    valid_share: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the caller hears after each interval."""

    step: int
    num_steps: int
    steps: int
    """Updates in this interval."""
    loss: float
    losses: dict[str, float]
    valid_share: float
    skipped: int
    simulations: int
    """Simulations drawn since the run began, over all sessions."""
    seconds: float
    """Time spent in updates in this session, without compilation."""
    compile_seconds: float
    interval_seconds: float
    """Time spent in this interval."""
    simulations_per_second: float
    """In this interval."""

    @property
    def seconds_left(self) -> float:
        """At the pace of this interval."""
        each = self.simulations / max(self.step, 1)
        return (self.num_steps - self.step) * each / max(self.simulations_per_second, 1e-9)


Callback: TypeAlias = Callable[[Report], None]


@runtime_checkable
class Checkpoints(Protocol):
    """Where states are kept between sessions; `sgjax.checkpoint.Checkpointer` is one."""

    def restore(self, like: TrainState) -> TrainState | None: ...

    def save(self, state: TrainState, *, force: bool = False) -> None: ...


class InvalidSimulationsError(RuntimeError):
    """Too many simulations are not finite."""


class DivergedError(RuntimeError):
    """No update of a whole interval had a finite gradient."""


def print_report(report: Report) -> None:
    """A callback: one line per interval."""
    print(
        f"step {report.step}/{report.num_steps}  loss {report.loss:.4f}  "
        f"{report.simulations_per_second:,.0f} simulations/s  valid {report.valid_share:.2%}  "
        f"{report.seconds_left:.0f} s left",
        flush=True,
    )


def train(
    predictor: Predictor,
    stream: SimulationStream,
    num_steps: int,
    *,
    optimisation: Optimisation | None = None,
    interval: int = 100,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    minimum_valid_share: float = 0.5,
    ahead: int | None = None,
) -> Predictor:
    """Trains on `num_steps` fresh batches and returns the predictor with averaged weights.

    Each step simulates a batch on the device and takes one update; `interval` steps are one
    compiled program, after which the callbacks hear a `Report`. With `checkpoints`, a run that was
    interrupted goes on where it stopped and ends with the very numbers of an undisturbed one.
    Batches are simulated up to `ahead` at once, which changes the pace and not the batches; by
    default as many as keep the device busy and fit its memory.

    A first Ctrl-C or SIGTERM (the notice a cluster gives) stops it after the block of updates in
    hand, at most `ahead` of them, or after the compilation in hand; a second one stops at once.

    Raises `InvalidSimulationsError` where fewer than `minimum_valid_share` of the simulations of an
    interval are finite, naming the parameters at fault; `DivergedError` where every update of an
    interval had to be left out; `Interrupted` when told to stop, with the state saved.
    """
    if num_steps < 1 or interval < 1:
        raise ValueError("`num_steps` and `interval` must be at least 1.")
    trainer = Trainer(predictor, stream, (optimisation or Optimisation()), num_steps, ahead)
    state = trainer.initial_state()
    if checkpoints is not None:
        state = checkpoints.restore(state) or state
    clock, skipped = _Clock(stream.batch_size, num_steps), int(state.skipped)
    with deferred_interrupt() as interrupted:
        for length in _intervals(int(state.step), num_steps, interval):
            state, metrics = _interval(trainer, state, length, interval, clock, interrupted)
            if metrics is not None:
                report = clock.report(state, metrics)
                _check(stream, report, skipped, minimum_valid_share)
                skipped = report.skipped
                for callback in callbacks:
                    callback(report)
            step = int(state.step)
            stopped = interrupted.is_set()
            if checkpoints is not None:
                checkpoints.save(state, force=stopped or step == num_steps)
            if stopped:
                raise Interrupted(trainer.predictor(state), step, interrupted.number)
    return trainer.predictor(state)


def _interval(
    trainer: "Trainer",
    state: TrainState,
    length: int,
    interval: int,
    clock: "_Clock",
    interrupted: "Stop",
) -> tuple[TrainState, Metrics | None]:
    """`length` updates, block by block; fewer, or none at all, where told to stop."""
    parts: list[Metrics] = []
    start = int(state.step)
    clock.begin()
    # Blocks end at the same steps however a run was interrupted, so that it repeats to the bit.
    for steps in _intervals(start, start + length, trainer.block(interval)):
        with clock.compiling():
            program = trainer.compiled(steps, state)
        if interrupted.is_set():
            break
        with clock.running():
            state, metrics = jax.block_until_ready(program(state))
        parts.append(metrics)
    if not parts:
        return state, None
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _check(
    stream: SimulationStream, report: Report, skipped: int, minimum_valid_share: float
) -> None:
    if report.valid_share < minimum_valid_share:
        raise InvalidSimulationsError(explain_invalid(stream, report.step, report.valid_share))
    if report.skipped - skipped == report.steps:
        raise DivergedError(
            f"None of the updates from step {report.step - report.steps} to {report.step} had a "
            "finite gradient: training has diverged. Train again with a lower `learning_rate`."
        )


class Trainer:
    """The compiled update of one predictor on one stream, for `train` and for benchmarks."""

    def __init__(
        self,
        predictor: Predictor,
        stream: SimulationStream,
        optimisation: Optimisation,
        num_steps: int,
        ahead: int | None = None,
    ):
        self.stream = stream
        self.ahead = batches_ahead(stream) if ahead is None else ahead
        if self.ahead < 1:
            raise ValueError(f"`ahead` must be at least 1; got {ahead}.")
        self.source = predictor
        self.graph, weights, self.constants = nnx.split(predictor.network, nnx.Param, ...)
        self.params, self._weights = ravel_pytree(weights)
        self.optimisation = optimisation
        self.transformation = optimisation.transformation(num_steps)
        self._programs: dict[int, Callable] = {}

    def initial_state(self) -> TrainState:
        """The state before the first step, on every device of the stream's mesh."""
        optimiser = self.transformation.init(self.params)
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, self.params, self.params, optimiser, self.constants, zero)
        # Copies, since the compiled program is given these buffers to write in.
        state = jax.tree.map(jnp.copy, state)
        if self.stream.mesh is not None:
            state = jax.device_put(state, NamedSharding(self.stream.mesh, PartitionSpec()))
        return state

    def predictor(self, state: TrainState) -> Predictor:
        """A predictor with the averaged weights of a state."""
        return self.source.with_network(self._network(state.average, state.constants))

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

            def block(state: TrainState, _: Any) -> tuple[TrainState, Metrics]:
                return jax.lax.scan(self.update, state, self.stream.batches(state.step, count))

            def run(state: TrainState) -> tuple[TrainState, Metrics]:
                state, metrics = jax.lax.scan(block, state, length=length // count)
                return state, jax.tree.map(lambda leaf: leaf.reshape(length), metrics)

            self._programs[length] = jit(run, donate_argnums=0).lower(state).compile()
        return self._programs[length]

    def update(self, state: TrainState, batch: Simulation) -> tuple[TrainState, Metrics]:
        """One step on a batch: predict, score, update."""
        gradient = jax.value_and_grad(self.loss, has_aux=True)
        (loss, losses), slopes = gradient(state.params, state.constants, batch)
        usable = jnp.isfinite(jnp.sum(jnp.square(slopes)))
        slopes = jnp.where(usable, slopes, 0.0)
        changes, optimiser = self.transformation.update(slopes, state.optimiser, state.params)
        params = state.params + jnp.asarray(changes)
        # The average starts short, so that it does not remember the first weights.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.optimisation.average, (1 + step) / (10 + step))
        average = decay * state.average + (1 - decay) * params
        fresh = state._replace(
            step=state.step + 1, params=params, average=average, optimiser=optimiser
        )
        kept = state._replace(step=state.step + 1, skipped=state.skipped + 1)
        state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), fresh, kept)
        return state, Metrics(loss, losses, jnp.mean(batch.valid.astype(jnp.float32)))

    def loss(
        self, params: Float[Array, " weights"], constants: PyTree, batch: Simulation
    ) -> tuple[Array, dict[str, Array]]:
        """The mean score over the valid simulations, and the same by block."""
        network = self._network(params, constants)
        scores = jax.vmap(lambda example: _scores(network, example))(batch.example)
        weights = batch.valid / jnp.maximum(jnp.sum(batch.valid), 1)
        losses = {block: jnp.sum(weights * score) for block, score in scores.items()}
        return sum(losses.values(), start=jnp.zeros(())), losses

    def _network(self, params: Float[Array, " weights"], constants: PyTree) -> Network:
        return nnx.merge(self.graph, self._weights(params), constants)


def _scores(network: Network, example: Any) -> dict[str, Array]:
    _, predictives = network(example.inputs)
    return {
        block: predictive.score(example.targets[block]) for block, predictive in predictives.items()
    }


def _most_that_divide(length: int, most: int) -> int:
    return max(n for n in range(1, min(most, length) + 1) if length % n == 0)


def _intervals(start: int, stop: int, length: int) -> Iterator[int]:
    # Boundaries are multiples of `length` wherever a run was interrupted, so that a resumed run
    # executes the same programs.
    while start < stop:
        step = min(stop, (start // length + 1) * length) - start
        yield step
        start += step


class _Clock:
    """Keeps the time of a session and writes the reports."""

    def __init__(self, batch_size: int, num_steps: int):
        self.batch_size, self.num_steps = batch_size, num_steps
        self.compile_seconds = self.seconds = self.last = 0.0

    def begin(self) -> None:
        """A new interval."""
        self.last = 0.0

    @contextmanager
    def compiling(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.compile_seconds += time.perf_counter() - start

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.last += elapsed
        self.seconds += elapsed

    def report(self, state: TrainState, metrics: Metrics) -> Report:
        steps = metrics.loss.shape[0]
        return Report(
            step=int(state.step),
            num_steps=self.num_steps,
            steps=steps,
            loss=float(np.mean(metrics.loss)),
            losses={block: float(np.mean(values)) for block, values in metrics.losses.items()},
            valid_share=float(np.mean(metrics.valid_share)),
            skipped=int(state.skipped),
            simulations=int(state.step) * self.batch_size,
            seconds=self.seconds,
            compile_seconds=self.compile_seconds,
            interval_seconds=self.last,
            simulations_per_second=steps * self.batch_size / self.last,
        )
