"""Training, interval by interval, until it is done, stopped or lost; `predictor -> predictor`."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

from sgjax._interrupt import Interrupted as Interrupted
from sgjax._interrupt import Stop, deferred_interrupt
from sgjax.devices import from_all, is_first, several_processes
from sgjax.faults import describe_faults, explain_faults
from sgjax.predictors import Predictor
from sgjax.stream import SimulationStream
from sgjax.trainer import Metrics, Optimisation, Trainer, TrainState


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
    """Updates left out since the run began, as their gradient was not finite or a spike."""
    simulations: int
    """Simulations drawn since the run began, over all sessions."""
    seconds: float
    """Time spent in updates in this session, without compilation."""
    compile_seconds: float
    interval_seconds: float
    """Time spent in this interval."""
    simulations_per_second: float
    """In this interval."""
    invalid: dict[str, Any]
    """Simulations of this interval that were not finite: their `count`, their shares of each of the
    `mechanisms`, and in the `quarters` of each parameter's draws. Empty where there were none."""

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
    """Too many updates in a row were left out."""


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
    patience: int = 100,
    ahead: int | None = None,
    sharded: bool = False,
) -> Predictor:
    """Trains on `num_steps` fresh batches and returns the predictor with averaged weights.

    Each step simulates a batch on the device and takes one update; `interval` steps are one
    compiled program, after which the callbacks hear a `Report`. With `checkpoints`, a run that was
    interrupted goes on where it stopped and ends with the very numbers of an undisturbed one.
    Batches are simulated up to `ahead` at once, which changes the pace and not the batches; by
    default as many as keep the device busy and fit its memory.

    A first Ctrl-C or SIGTERM (the notice a cluster gives) stops it after the block of updates in
    hand, at most `ahead` of them, or after the compilation in hand; a second one stops at once.

    Where the stream's mesh spans several processes, all of them call this alike; callbacks are
    heard on process 0, and being told to stop on any stops all after the interval in hand. With
    `sharded`, every device keeps only its part of the weights and of the optimiser's state.

    Simulations that are not finite are left out, and counted in the reports; so are updates whose
    gradient is not finite, or a spike (`Optimisation.spike`).

    Raises `InvalidSimulationsError` where fewer than `minimum_valid_share` of the simulations of an
    interval are finite, naming the parameters at fault; `DivergedError` where the last `patience`
    updates had all to be left out; `Interrupted` when told to stop, with the state saved.
    """
    if num_steps < 1 or interval < 1 or patience < 1:
        raise ValueError("`num_steps`, `interval` and `patience` must be at least 1.")
    trainer = Trainer(predictor, stream, optimisation or Optimisation(), num_steps, ahead, sharded)
    state = trainer.initial_state()
    if checkpoints is not None:
        state = checkpoints.restore(state) or state
    clock, mesh = _Clock(stream, num_steps), stream.mesh
    heard = callbacks if is_first() or not several_processes(mesh) else ()
    with deferred_interrupt() as interrupted:
        for length in _intervals(int(state.step), num_steps, interval):
            state, metrics = _interval(trainer, state, length, interval, clock, interrupted)
            if metrics is not None:
                report = clock.report(state, metrics)
                _check(report, int(state.in_a_row), minimum_valid_share, patience)
                for callback in heard:
                    callback(report)
            step = int(state.step)
            told = int(from_all(interrupted.number, mesh).max())
            if checkpoints is not None:
                checkpoints.save(state, force=told != 0 or step == num_steps)
            if told:
                raise Interrupted(trainer.predictor(state), step, told)
    return trainer.predictor(state)


def _interval(
    trainer: Trainer,
    state: TrainState,
    length: int,
    interval: int,
    clock: "_Clock",
    interrupted: Stop,
) -> tuple[TrainState, Metrics | None]:
    """`length` updates, block by block; fewer, or none at all, where told to stop."""
    parts: list[Metrics] = []
    start = int(state.step)
    clock.begin()
    # Several processes end a whole interval, so that all of them stop at the same step.
    together = several_processes(trainer.stream.mesh)
    block = interval if together else trainer.block(interval)
    # Blocks end at the same steps however a run was interrupted, so that it repeats to the bit.
    for steps in _intervals(start, start + length, block):
        with clock.compiling():
            program = trainer.compiled(steps, state)
        if interrupted.is_set() and not together:
            break
        with clock.running():
            state, metrics = jax.block_until_ready(program(state))
        parts.append(jax.device_get(metrics))
    return state, _joined(parts) if parts else None


def _joined(parts: Sequence[Metrics]) -> Metrics:
    steps = [part._replace(faults=None) for part in parts]
    faults = jax.tree.map(lambda *counts: sum(counts), *(part.faults for part in parts))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *steps)._replace(faults=faults)


def _check(report: Report, in_a_row: int, minimum_valid_share: float, patience: int) -> None:
    if report.valid_share < minimum_valid_share:
        share = f"Only {report.valid_share:.1%} of the simulations up to step {report.step}"
        explained = explain_faults(report.invalid, report.steps * report.simulations // report.step)
        raise InvalidSimulationsError(f"{share} are finite. {explained}")
    if in_a_row >= patience:
        raise DivergedError(
            f"None of the last {in_a_row} updates up to step {report.step} had a gradient that is "
            "finite and no spike: training has diverged. Train again with a lower `learning_rate`."
        )


def _intervals(start: int, stop: int, length: int) -> Iterator[int]:
    # Boundaries are multiples of `length` wherever a run was interrupted, so that a resumed run
    # executes the same programs.
    while start < stop:
        step = min(stop, (start // length + 1) * length) - start
        yield step
        start += step


class _Clock:
    """Keeps the time of a session and writes the reports."""

    def __init__(self, stream: SimulationStream, num_steps: int):
        self.study, self.batch_size, self.num_steps = stream.study, stream.batch_size, num_steps
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
        drawn = metrics.loss.size * self.batch_size
        assert metrics.faults is not None
        return Report(
            step=int(state.step),
            num_steps=self.num_steps,
            steps=metrics.loss.size,
            loss=float(np.mean(metrics.loss)),
            losses={block: float(np.mean(values)) for block, values in metrics.losses.items()},
            valid_share=float(np.mean(metrics.valid_share)),
            skipped=int(state.skipped),
            simulations=int(state.step) * self.batch_size,
            seconds=self.seconds,
            compile_seconds=self.compile_seconds,
            interval_seconds=self.last,
            simulations_per_second=drawn / self.last,
            invalid=describe_faults(self.study, metrics.faults, drawn),
        )
