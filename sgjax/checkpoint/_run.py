"""The folder of a run: its settings, and what they say of the study it was trained on."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgjax.checkpoint._files import RunError, told, write_json
from sgjax.devices import describe_hardware

FORMAT = 4
"""Raised whenever a run of an older version could be misread."""

PACKAGES = ("sgjax", "jax", "jaxlib", "flax", "optax", "diffrax", "equinox", "numpyro")


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder that belongs to one training run."""

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> "Run":
        """Makes a new folder; raises `RunError` where it exists, so nothing is overwritten."""
        make_folder(folder, f", or continue it with `sgjax train --resume {folder}`")
        full = {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": describe_hardware(),
            "commit": _commit(),
            **settings,
        }
        with told(f"{folder} cannot be written", "Free space on its disk, or choose --folder."):
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

    def check_study(self, fingerprint: str, parts: Mapping[str, Mapping[str, str]]) -> None:
        """Raises `RunError`, naming what differs, where the study is not the one of the run.

        `parts` are what `Study.parts` gives; the run keeps those of its own study.
        """
        if self.settings["fingerprint"] == fingerprint:
            return
        differing = _differences(self.settings["parts"], parts)
        raise RunError(
            f"The study is not the one {self.folder} was trained on: {'; '.join(differing)}. Use "
            "the study of the run, or train again."
        )


def _differences(
    there: Mapping[str, Mapping[str, str]], here: Mapping[str, Mapping[str, str]], most: int = 4
) -> list[str]:
    """By name, what two descriptions of a study do not share, in words."""
    names = [
        name
        for name in dict.fromkeys([*there, *here])
        if name not in there or name not in here or there[name]["sha256"] != here[name]["sha256"]
    ]
    told = [_difference(name, there.get(name), here.get(name)) for name in names[:most]]
    return told + ([f"and {len(names) - most} more"] if len(names) > most else [])


def _difference(name: str, there: Mapping[str, str] | None, here: Mapping[str, str] | None) -> str:
    old, new = (part["words"] if part else "none" for part in (there, here))
    # The words leave out what functions do.
    return f"{name} was {old}, is {new}" if old != new else f"{name} has changed in its code: {new}"


def latest_run(parent: Path, study: str | None = None) -> Path:
    """The run under `parent` that was begun last, of the study named where one is.

    Raises `RunError` where there is none.
    """
    found = []
    for path in parent.glob("*/run.json"):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            name, begun = settings["study"]["name"], str(settings["created"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if study is None or name == study:
            found.append((begun, path.stat().st_mtime_ns, path.parent))
    if not found:
        of = f" of {study}" if study else ""
        raise RunError(
            f"There is no run{of} under {parent.absolute()} to go on with. Name its folder."
        )
    return max(found)[-1]


def new_folder(parent: Path, name: str) -> Path:
    """A folder name under `parent` that is not taken: the name and the time, then a number."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    candidate, number = parent / f"{name}-{stamp}", 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{name}-{stamp}-{number}"
    return candidate


def make_folder(folder: Path, instead: str = "") -> Path:
    """Makes it; raises `RunError` where it exists, with what to do `instead` of another name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RunError(f"{folder} exists already. Choose another --folder{instead}.") from None
    except OSError as error:
        raise RunError(f"Cannot make {folder}: {error.strerror}.") from None
    return folder


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str | None:
    """The commit of the package, where it runs from a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        # Looking must not write to the repository; `describe --dirty` would renew its index.
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
