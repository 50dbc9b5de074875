"""An index on disk: a folder with points, space and a description, complete or not there."""

import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgjax.attribution.blocks import Blocks
from sgjax.attribution.space import Space
from sgjax.checkpoint import LOCK, RunError, locked, versions, write_json
from sgjax.devices import describe_hardware
from sgjax.simulators import forms

FORMAT = 1
"""Raised whenever an index of an older version could be misread."""

TOLERANCE = 1e-2
"""How far the points of the first simulations may lie from those stored, in a coordinate's sds."""


@dataclasses.dataclass(frozen=True)
class Files:
    """An index on disk, memory-mapped: row n is the simulation numbered n."""

    folder: Path
    description: dict[str, Any]
    space: Space
    values: np.ndarray
    """Points as bytes or words."""
    squares: np.ndarray


def describe(blocks: Blocks, dtype: str, num_simulations: int) -> dict[str, Any]:
    """What an index belongs to."""
    return {
        "format": FORMAT,
        "num_simulations": num_simulations,
        "dtype": dtype,
        "space": blocks.kind,
        "scaling": blocks.scaling,
        **_identity(blocks),
        "probe": blocks.probe().tolist(),
        "versions": versions(),
        "hardware": describe_hardware(),
    }


@contextmanager
def new_files(folder: Path, description: dict[str, Any], space: Space) -> Iterator[Files]:
    """Files to be filled; the folder appears when they are.

    What killed processes have left half filled for the same folder is removed.
    """
    if folder.exists():
        raise ValueError(taken(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}-partial-"
    for left in folder.parent.glob(f"{prefix}*"):
        with suppress(RunError), locked(left):  # a dead process holds none
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        with locked(partial):
            count, word = description["num_simulations"], _WORDS[description["dtype"]]
            make = np.lib.format.open_memmap
            values = make(partial / "values.npy", "w+", word, (count, space.size))
            squares = make(partial / "squares.npy", "w+", np.float32, (count,))
            names = ("centre", "scale", "rotation", "largest")
            arrays = {name: getattr(space, name) for name in names}
            np.savez(partial / "space.npz", **{k: v for k, v in arrays.items() if v is not None})
            yield Files(partial, description, space, values, squares)
            values.flush()
            squares.flush()
            # Last, so that a folder with a description is complete.
            write_json(partial / "description.json", description)
        (partial / LOCK).unlink()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def taken(folder: Path) -> str:
    """What is said where a folder is not new."""
    return f"{folder} exists already and is not overwritten; choose another folder."


def open_files(folder: Path) -> Files:
    """Reads what `new_files` made; raises `ValueError` where it is not there, or not complete."""
    try:
        description = json.loads((folder / "description.json").read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise ValueError(
                f"{folder} was made in format {description['format']} by sgjax "
                f"{description['versions']['sgjax']}; this one reads {FORMAT}. Build it again."
            )
        with np.load(folder / "space.npz") as arrays:
            held = {name: jnp.asarray(arrays[name]) for name in arrays.files}
        values = np.load(folder / "values.npy", mmap_mode="r")
        squares = np.load(folder / "squares.npy", mmap_mode="r")
    except (OSError, KeyError, EOFError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{folder} holds no complete index ({error}); build it again, or give a folder that "
            "`SimulationIndex.save` made."
        ) from None
    space = Space(
        description["space"],
        description["scaling"],
        held["centre"],
        held["scale"],
        held.get("rotation"),
        held["largest"],
    )
    count = description["num_simulations"]
    if values.shape != (count, space.size) or squares.shape != (count,):
        raise ValueError(f"{folder} does not hold the {count} simulations it should; build again.")
    return Files(folder, description, space, values, squares)


def check_same(files: Files, blocks: Blocks) -> None:
    """Raises `ValueError` naming in what an index differs from the study, key and predictor."""
    here, there = _identity(blocks), files.description
    for name, remedy in _REMEDIES.items():
        if here[name] != there[name]:
            raise ValueError(
                f"The index in {files.folder} is of another {name}: {there[name]}, here "
                f"{here[name]}. {remedy}"
            )
    probe = np.asarray(files.description["probe"], np.float32)
    try:
        check_probe(files.space, probe, blocks.probe())
    except ValueError as error:
        made = {name: version for name, version in there["versions"].items()}
        changed = {n: (v, versions().get(n)) for n, v in made.items() if v != versions().get(n)}
        told = f" Versions differ too (then, now): {changed}." if changed else ""
        raise ValueError(f"The index in {files.folder}: {error}{told}") from None


def check_probe(
    space: Space, expected: Float[np.ndarray, "probe then"], found: Float[np.ndarray, "probe now"]
) -> None:
    """Raises `ValueError` where a predictor puts the first simulations elsewhere."""
    if expected.shape == found.shape:
        gap = float(np.max(np.abs(expected - found) / np.asarray(space.scale)))
        if gap <= TOLERANCE:
            return
        difference = f"up to {gap:.3g} sd apart"
    else:
        difference = f"of {found.shape[1]} coordinates instead of {expected.shape[1]}"
    raise ValueError(
        f"The index was made with another predictor: the points of the first simulations are "
        f"{difference}. Give the predictor it was made with, or build it again."
    )


def as_bytes(values: Array | np.ndarray) -> np.ndarray:
    """Points as NumPy can store them: bfloat16 as 16-bit words."""
    found = np.asarray(values)
    return found.view(_WORDS[found.dtype.name])


_WORDS = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}

_REMEDIES = {
    "steps": "Set its forms (`sgjax.simulators.with_forms`): others draw other simulations.",
    "study": "Give the study it was made of, or build it again.",
    "key": "Give a stream with its root key.",
}


def _identity(blocks: Blocks) -> dict[str, Any]:
    key, study = blocks.source.key, blocks.source.study
    words = [str(jax.random.key_impl(key)), *np.asarray(jax.random.key_data(key)).tolist()]
    steps = forms(study.simulator)
    return {"study": study.fingerprint(), "key": words, "steps": steps}
