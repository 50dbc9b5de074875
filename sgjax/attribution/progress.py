"""Long work, launch by launch, so that it can be watched and stopped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import jax
from jaxtyping import PyTree
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Telling: TypeAlias = bool | Callable[[int, int], None]
"""True for a bar in the terminal; or a function of simulations done and simulations in all."""

TELL_SECONDS = 0.2
"""The progress is told no more often."""


def in_launches(
    launch: Callable[[PyTree, int, int], PyTree],
    state: PyTree,
    blocks: int,
    together: int,
    told: tuple[int, Telling, str],
) -> PyTree:
    """`state = launch(state, first, count)` until all blocks are done, `together` at a time.

    Between launches Ctrl-C is heard and the progress told: `told` is the number of simulations in
    all, whom to tell, and what the work is called.
    """
    num_simulations, progress, description = told
    last = time.perf_counter()
    with _teller(progress, description) as tell:
        for first in range(0, blocks, together):
            count = min(together, blocks - first)
            state = jax.block_until_ready(launch(state, first, count))
            done = first + count
            if done == blocks or time.perf_counter() - last > TELL_SECONDS:
                last = time.perf_counter()
                tell(num_simulations * done // blocks, num_simulations)
    return state


@contextmanager
def _teller(progress: Telling, description: str) -> Iterator[Callable[[int, int], None]]:
    if not isinstance(progress, bool):
        yield progress
        return
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} simulations"),
        TimeRemainingColumn(compact=True),
        disable=not progress,
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
