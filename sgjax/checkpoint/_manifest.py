"""The manifest of a checkpoint: the SHA-256 of each of its files, written when it is complete."""

import json
import math
from pathlib import Path
from typing import Any

from sgjax.checkpoint._files import sha256, write_json

NAME = "manifest.json"


def write_manifest(folder: Path, score: float | None) -> None:
    """Seals a complete checkpoint: what each file holds, and the held-out score where measured."""
    kept = score if score is not None and math.isfinite(score) else None
    write_json(folder / NAME, {"score": kept, "files": _digests(folder)})


def unseal(folder: Path) -> None:
    """Declares a checkpoint unfinished, so that a kill in its deletion leaves no damaged one."""
    (folder / NAME).unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; `None` where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("files"), dict)
    score = found.get("score") if whole else ""
    return found if whole and isinstance(score, int | float | None) else None


def is_finished(folder: Path) -> bool:
    """Whether a checkpoint was ever sealed; one that a kill cut short was not."""
    return (folder / NAME).exists()


def fault_of(folder: Path) -> str | None:
    """What sets a checkpoint apart from its manifest, in words; `None` where it is intact.

    Nothing of the checkpoint is interpreted, only hashed. A manifest guards against accidents; it
    is no signature.
    """
    if not is_finished(folder):
        return "it was not finished"
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{NAME} cannot be read"
    try:
        found = _digests(folder)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    for name, digest in manifest["files"].items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is truncated or altered"
    surplus = sorted(found.keys() - manifest["files"].keys())
    return f"{surplus[0]} does not belong to it" if surplus else None


def _digests(folder: Path) -> dict[str, str]:
    own = (NAME, f"{NAME}.partial")
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: sha256(path) for name, path in names.items() if name not in own}
