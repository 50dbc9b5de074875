"""Being told to stop: Ctrl-C and SIGTERM, by which clusters and shells give notice."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sgjax.predictors import Predictor


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training: the last state is saved and `predictor` holds it."""

    def __init__(self, predictor: Predictor, step: int, number: int = signal.SIGINT):
        super().__init__(f"stopped after step {step}")
        self.predictor = predictor
        self.step = step
        self.signal = signal.Signals(number)


class Stop:
    """Whether the process was told to stop, and by which signal."""

    number = 0

    def is_set(self) -> bool:
        return self.number != 0


@contextmanager
def deferred_interrupt() -> Iterator[Stop]:
    """Notes the first Ctrl-C or SIGTERM, so that a block ends whole; the second has its way."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        del frame
        stop.number = number
        signal.signal(signal.SIGINT, previous[signal.SIGINT])
        # Python's own handlers wait for the program in hand; the operating system's does not.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM outside training."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`; training, while it lasts, has its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        del number, frame
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
