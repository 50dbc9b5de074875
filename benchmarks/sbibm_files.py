"""The published observations and reference posteriors of sbibm: `task, number -> Published`.

They are read from the files of an installed `sbibm`, which is never imported: its own dependencies
are old and not needed. Source: Lueckmann, Boelts, Greenberg, Goncalves and Macke (2021).
"""

import bz2
import csv
import dataclasses
import importlib.util
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float

NUM_OBSERVATIONS = 10
NUM_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Published:
    """One observation of a task: the parameters it was made with, the data, the posterior."""

    parameters: Float[np.ndarray, " size"]
    data: Float[np.ndarray, " numbers"]
    draws: Float[np.ndarray, "10000 size"]


def published(task: str, number: int) -> Published:
    """Observation `number`, from 1 to 10, of a task.

    Raises `ValueError` where sbibm is not installed, or holds no such file.
    """
    folder = _package() / "tasks" / task / "files" / f"num_observation_{number}"
    if not folder.is_dir():
        raise ValueError(f"The installed sbibm has no observation {number} of {task!r}: {folder}.")
    draws = _table(bz2.decompress((folder / "reference_posterior_samples.csv.bz2").read_bytes()))
    if len(draws) != NUM_DRAWS:
        raise ValueError(f"{folder} holds {len(draws)} draws; {NUM_DRAWS} were expected.")
    parameters, data = (
        _table((folder / f"{name}.csv").read_bytes())[0]
        for name in ("true_parameters", "observation")
    )
    return Published(parameters, data, draws)


def _package() -> Path:
    found = importlib.util.find_spec("sbibm")
    if found is None or not found.submodule_search_locations:
        raise ValueError("The reference posteriors are missing: pip install --no-deps sbibm==1.1.0")
    return Path(next(iter(found.submodule_search_locations)))


def _table(text: bytes) -> Float[np.ndarray, "rows columns"]:
    """The numbers below the line of names."""
    rows = [row for row in csv.reader(io.StringIO(text.decode())) if row]
    return np.array(rows[1:], np.float64)
