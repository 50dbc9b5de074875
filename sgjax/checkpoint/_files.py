"""Files of a run: written whole or not at all, and what is said where that fails."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np


class RunError(Exception):
    """A run cannot be made, read or continued; the message says what to do."""


@contextmanager
def told(task: str, remedy: str) -> Iterator[None]:
    """Turns a fault of the file system into one `RunError`: what failed, why, and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{task}: {reason(error)}. {remedy}") from None


def reason(error: Exception) -> str:
    """Why something failed, in a line: the operating system's word where it is in the error."""
    found = re.search(r"os_error_code='(\d+)'", str(error))  # as TensorStore writes it
    if found is not None:
        return os.strerror(int(found[1]))
    return getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    text = json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n"
    write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step; where that fails (a full disk) the old one stays as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Some file systems replace the name before the bytes are on disk.
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
