"""Runs on disk: a folder with settings, weights (orbax) and what was measured; and back again."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from sgjax.devices import describe_hardware, on_first

FORMAT = 4
"""Raised whenever a run of an older version could be misread."""

PACKAGES = ("sgjax", "jax", "jaxlib", "flax", "optax", "diffrax", "equinox", "numpyro")


class RunError(Exception):
    """A run cannot be made, read or continued; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder that belongs to one training run."""

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> "Run":
        """Makes a new folder; raises `RunError` where it exists, so nothing is overwritten."""
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"{folder} exists already. Choose another --folder, or continue it with "
                f"`sgjax train --resume {folder}`."
            ) from None
        except OSError as error:
            raise RunError(f"Cannot make {folder}: {error.strerror}.") from None
        full = {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": describe_hardware(),
            **settings,
        }
        write_json(folder / "run.json", full)
        return cls(folder, full)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Reads a run's settings; raises `RunError` where the folder holds none it can read."""
        path = folder / "run.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{folder} holds no run: there is no {path.name} in it. Give the folder that "
                "`sgjax train` or `sgjax demo` named at the end."
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunError(f"{path} cannot be read: {error}.") from None
        found = settings.get("format") if isinstance(settings, dict) else None
        if found != FORMAT:
            made = settings.get("versions", {}).get("sgjax", "?") if found is not None else "?"
            raise RunError(
                f"{folder} was made by another version of sgjax ({made}, format {found}); this is "
                f"{versions()['sgjax']}, format {FORMAT}. Train again, or install that version."
            )
        return cls(folder, settings)

    @property
    def checkpoints(self) -> Path:
        """Where the weights are."""
        return self.folder / "checkpoints"

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises `RunError` where the study is not the one that the run was trained on."""
        stored = self.settings["fingerprint"]
        if stored != fingerprint:
            raise RunError(
                f"The study is not the one {self.folder} was trained on (fingerprint "
                f"{fingerprint}, the run's {stored}): its equations, priors, times or targets "
                "differ. Use the study of the run, or train again."
            )


def new_folder(parent: Path, name: str) -> Path:
    """A folder name under `parent` that is not taken: the name and the time, then a number."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    candidate, number = parent / f"{name}-{stamp}", 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{name}-{stamp}-{number}"
    return candidate


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Checkpointer:
    """Keeps the newest states of a run with orbax: each complete, or not there at all.

    `save` writes at most once in `every_seconds`, and always where `force` is true.
    """

    def __init__(
        self, folder: Path, every_seconds: float = 60.0, keep: int = 2, create: bool = True
    ):
        if not create and not folder.is_dir():
            raise RunError(f"{folder.parent} holds no checkpoint; train the run first.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=create, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        self._every, self._last = every_seconds, time.monotonic()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete state."""
        return self._manager.latest_step()

    def restore(self, like: PyTree) -> Any:
        """The newest state, in structure, dtypes and sharding as `like`; `None` where none is."""
        step = self._manager.latest_step()
        if step is None:
            return None
        leaves = _named_leaves(like)
        self._check_fit(step, _saved(leaves))
        stored = self._manager.restore(step, args=ocp.args.StandardRestore(_saved(leaves)))
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
                f"The checkpoint of step {step} in {self._manager.directory} does not fit this "
                f"predictor: {len(differing)} arrays differ, such as {name}, there "
                f"{_shape(stored.get(name))}, here {_shape(wanted.get(name))}."
            )

    def save(self, state: Any, *, force: bool = False) -> None:
        """Keeps a state that has a `step`."""
        now = time.monotonic()
        # Clocks differ, but a state is kept by all processes or none.
        if not force and not on_first(lambda: now - self._last >= self._every):
            return
        self._last = now
        step = int(state.step)
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(_saved(_named_leaves(state))))
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the manager's threads."""
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


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
