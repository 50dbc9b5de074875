"""States of a run on disk, kept with orbax: each complete, or not there at all, and verified."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from sgjax.checkpoint._files import RunError, reason
from sgjax.checkpoint._manifest import (
    fault_of,
    is_finished,
    read_manifest,
    unseal,
    write_manifest,
)
from sgjax.devices import is_of_others, on_first


def tell_stderr(text: str) -> None:
    """One line to the standard error stream."""
    print(f"sgjax: {text}", file=sys.stderr, flush=True)


class Checkpointer:
    """Keeps states of a run: the last `keep`, and the one of the lowest held-out `score`.

    `save` writes where `every_seconds` have passed since the last time, or `every_steps` steps, and
    always where `force` is true. In a single process it writes beside the training, from a copy;
    the state is complete when its manifest, the SHA-256 of each file, is there. `restore` holds
    states against their manifests and takes the newest intact one; what it passes over it tells in
    one line (`tell`) and, unless `create` is false, moves aside as `damaged-STEP`. Reading runs no
    code: there are arrays and JSON only.

    Raises `RunError` where a disk does not take a state (earlier ones stay usable), or where states
    were kept and none is intact.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float = 60.0,
        keep: int = 2,
        create: bool = True,
        *,
        every_steps: int | None = None,
        score: Callable[[Any], float] | None = None,
        tell: Callable[[str], None] = tell_stderr,
    ):
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1; got {keep}.")
        if not create and not folder.is_dir():
            raise RunError(f"{folder.parent} holds no checkpoint; train the run first.")
        self.folder, self._keep, self._create = folder.absolute(), keep, create
        self._every_seconds, self._every_steps = every_seconds, every_steps or math.inf
        self._score, self._tell = score, tell
        # Which are kept is decided here, after the manifest: orbax would delete the old first.
        options = ocp.CheckpointManagerOptions(
            create=create, cleanup_tmp_directories=create, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
            )
        except OSError as error:
            raise RunError(f"{folder} cannot be used: {reason(error)}.") from None
        self._worker = ThreadPoolExecutor(1) if jax.process_count() == 1 else None
        self._pending: Future | None = None
        self._last_time, self._last_step = time.monotonic(), self.latest_step or 0

    @property
    def steps(self) -> list[int]:
        """The steps of the states that were finished, in order."""
        return sorted(s for s in self._manager.all_steps() if is_finished(self._place(s)))

    @property
    def latest_step(self) -> int | None:
        """The step of the newest finished state."""
        return max(self.steps, default=None)

    @property
    def scores(self) -> dict[int, float]:
        """By step, the held-out score of the kept states that have one."""
        found = {step: (read_manifest(self._place(step)) or {}).get("score") for step in self.steps}
        return {step: score for step, score in found.items() if score is not None}

    @property
    def best_step(self) -> int | None:
        """The step of the lowest held-out score among the kept states."""
        scores = self.scores
        return min(scores, key=lambda step: (scores[step], -step), default=None)

    def restore(self, like: PyTree, step: int | None = None) -> Any:
        """The newest intact state, or that of `step`, in structure, dtypes and sharding as `like`.

        `None` where no state was ever finished.
        """
        used = on_first(lambda: self._choose(step))
        self._manager.reload()
        return None if used is None else self._read(used, like)

    def _choose(self, step: int | None) -> int | None:
        """The newest intact state; those passed over are told and moved aside."""
        faults: dict[int, str] = {}
        wanted = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        for candidate in wanted:
            fault = fault_of(self._place(candidate))
            if fault is None:
                self._pass_over(faults, candidate)
                return candidate
            faults[candidate] = fault
        if any(is_finished(self._place(candidate)) for candidate in faults) or step is not None:
            worst = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
            raise RunError(
                f"No checkpoint in {self.folder} is intact ({worst}). Put back a copy of the "
                "folder, or train again in another."
            )
        self._pass_over(faults, None)
        return None

    def _pass_over(self, faults: dict[int, str], used: int | None) -> None:
        instead = "training starts anew" if used is None else f"that of step {used} is used"
        for step, fault in faults.items():
            self._tell(f"the checkpoint of step {step} is not intact ({fault}); {instead}.")
            if self._create:
                aside = self.folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                self._place(step).rename(aside)

    def _read(self, step: int, like: PyTree) -> Any:
        leaves = _named_leaves(like)
        try:
            self._check_fit(step, _saved(leaves))
            stored = self._manager.restore(step, args=ocp.args.StandardRestore(_saved(leaves)))
        except RunError:
            raise
        except Exception as error:
            # Its files are as they were written, but not by this package: orbax says why at length.
            place = self._place(step)
            raise RunError(f"{place} is no checkpoint of sgjax: {reason(error)}.") from error
        return jax.tree.unflatten(
            jax.tree.structure(like), [stored.get(name, leaf) for name, leaf in leaves.items()]
        )

    def _check_fit(self, step: int, leaves: dict[str, Any]) -> None:
        """Raises `RunError` naming the arrays that differ, before anything is read."""
        # Left to itself, a failed read ends in pages of traceback from threads.
        stored = {
            name: (tuple(array.shape), np.dtype(array.dtype))
            for name, array in self._manager.item_metadata(step).tree.items()
        }
        wanted = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in leaves.items()}
        differing = [
            name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)
        ]
        if differing:
            name = differing[0]
            raise RunError(
                f"The checkpoint of step {step} in {self.folder} does not fit this "
                f"predictor: {len(differing)} arrays differ, such as {name}, there "
                f"{_shape(stored.get(name))}, here {_shape(wanted.get(name))}."
            )

    def save(self, state: Any, *, force: bool = False) -> None:
        """Keeps a state that has a `step`, where it is time to; at once where forced."""
        step = int(state.step)
        # Clocks and views of a disk differ, but a state is kept by all processes or none.
        if not force and not on_first(lambda: self._is_due(step)):
            return
        self.wait()
        self._last_time, self._last_step = time.monotonic(), step
        if not on_first(lambda: step in self.steps):
            score = None if self._score is None else self._score(state)
            leaves = _saved(_named_leaves(state))
            if self._worker is None:
                self._write(step, leaves, score)
            else:
                # A copy, since training goes on in these very buffers.
                copies = jax.tree.map(jnp.copy, leaves)
                self._pending = self._worker.submit(self._write, step, copies, score)
        if force:
            self.wait()

    def _is_due(self, step: int) -> bool:
        seconds = time.monotonic() - self._last_time
        return seconds >= self._every_seconds or step - self._last_step >= self._every_steps

    def wait(self) -> None:
        """Until the last state is complete; raises `RunError` where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, leaves: dict[str, Any], score: float | None) -> None:
        try:
            self._manager.save(step, args=ocp.args.StandardSave(leaves), force=True)
            self._manager.wait_until_finished()
            # By one process: another may not see the manifest yet, and would delete this state.
            on_first(lambda: self._seal(step, score))
            self._manager.reload()
        except Exception as error:
            if is_of_others(error):
                raise
            # Orbax and its store raise of many kinds; the disk's word is in all of them.
            if not is_finished(self._place(step)):
                shutil.rmtree(self._place(step), ignore_errors=True)  # room, for who has none
            kept = self.latest_step
            left = "no earlier one is kept" if kept is None else f"that of step {kept} is intact"
            raise RunError(
                f"The state of step {step} could not be written to {self.folder} "
                f"({reason(error)}); {left}. Free space on the disk and resume the run."
            ) from error

    def _seal(self, step: int, score: float | None) -> None:
        """Declares a state complete, and lets go of those that need not be kept any longer."""
        write_manifest(self._place(step), score)
        kept = {*self.steps[-self._keep :], self.best_step}
        # Of all, since a kill in the middle of this leaves a state half deleted.
        for other in self._manager.all_steps():
            if other not in kept:
                unseal(self._place(other))
                shutil.rmtree(self._place(other), ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / str(step)

    def close(self) -> None:
        """Lets the last write end, and ends the threads."""
        if self._worker is not None:
            self._worker.shutdown()
        self._manager.close()


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _shape(array: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "absent" if array is None else f"{array[1]}{list(array[0])}"


def _saved(leaves: dict[str, Any]) -> dict[str, Any]:
    # Orbax refuses arrays without elements, and there is nothing in them to keep.
    return {name: leaf for name, leaf in leaves.items() if leaf.size}
