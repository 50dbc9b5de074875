"""Long work in launches of about a second, so that it can be watched and stopped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import jax
from jaxtyping import PyTree
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Telling: TypeAlias = bool | Callable[[int, int], None]
"""True for a bar in the terminal; or a function of simulations done and simulations in all."""

LAUNCH_SECONDS = 0.5


def in_launches(
    launch: Callable[[PyTree, int, int], PyTree],
    state: PyTree,
    steps: int,
    num_simulations: int,
    progress: Telling,
    description: str,
) -> PyTree:
    """`state = launch(state, first, count)` until all steps are done, ever more at a time.

    Between launches Ctrl-C is heard and the progress told.
    """
    done, count = 0, 1
    with _told(progress, description) as tell:
        while done < steps:
            start = time.perf_counter()
            count = min(count, steps - done)
            state = jax.block_until_ready(launch(state, done, count))
            done += count
            tell(num_simulations * done // steps, num_simulations)
            if time.perf_counter() - start < LAUNCH_SECONDS:
                count *= 2
    return state


@contextmanager
def _told(progress: Telling, description: str) -> Iterator[Callable[[int, int], None]]:
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
