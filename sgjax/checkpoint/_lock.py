"""One process writes in a folder at a time: a lock that dies with its owner."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sgjax.checkpoint._files import RunError, told

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"
"""The name of its file in a folder."""

BEAT_SECONDS = 10.0
"""How often an owner touches its lock, by a thread of its own."""

DEAD_SECONDS = 60.0
"""An owner on another host that has not touched its lock for so long is taken for dead."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; raises `RunError`, naming the owner, where another does.

    The operating system's lock on an open file is let go when its process dies, however it dies.
    Not every shared file system carries it to other hosts, so that an owner also says that it
    lives: one on another host holds the folder until it has been silent for `DEAD_SECONDS`.
    """
    path = folder / LOCK
    with told(f"{folder} cannot be written", "Give a folder that can be, with room on its disk."):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        owner = _owner(path)
        if not _take(descriptor) or _lives_elsewhere(path, owner):
            raise RunError(_refusal(folder, owner))
        with told(f"{folder} cannot be written", "Free space on its disk."):
            _sign(descriptor)
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            os.ftruncate(descriptor, 0)  # let go in good order: nobody's
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Whether the lock was free; so it seems where the file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sign(descriptor: int) -> None:
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _owner(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives_elsewhere(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") in (None, socket.gethostname()):
        return False
    # Both times are the file system's own: clocks of hosts differ.
    probe = path.with_name(f"{LOCK}.{os.getpid()}")
    with told(f"{path.parent} cannot be written", "Free space on its disk."):
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    return now - path.stat().st_mtime < DEAD_SECONDS


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):  # a shared file system may be away for a while
            os.utime(path)


def _refusal(folder: Path, owner: dict[str, Any]) -> str:
    host, pid = owner.get("host", "an unknown host"), owner.get("pid", "?")
    return (
        f"{folder} is in use by process {pid} on {host}. Wait for it or stop it; one "
        f"that was killed lets go by itself, on another host after {DEAD_SECONDS:.0f} s. If it "
        f"cannot be alive, remove {folder / LOCK}."
    )
