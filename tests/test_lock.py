"""One trainer in a folder: who is refused, and that the dead hold nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sgjax.checkpoint import Log, RunError, _lock, _log, locked

HOLD = """
import sys, time
from pathlib import Path
from sgjax.checkpoint import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_refused_and_a_killed_one_lets_go(holder, tmp_path):
    named = rf"process {holder.pid} on {socket.gethostname()}.*remove .*lock"
    with pytest.raises(RunError, match=named), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def sign_elsewhere(folder: Path, seconds_ago: float) -> None:
    lock = folder / "lock"
    lock.write_text(json.dumps({"host": "node17", "pid": 4711}))
    then = lock.stat().st_mtime - seconds_ago
    os.utime(lock, (then, then))


def test_another_host_holds_while_it_gives_signs_of_life(tmp_path):
    # As where a shared file system does not carry locks between hosts.
    sign_elsewhere(tmp_path, _lock.DEAD_SECONDS / 2)
    with pytest.raises(RunError, match="process 4711 on node17"), locked(tmp_path):
        pass
    sign_elsewhere(tmp_path, _lock.DEAD_SECONDS + 1)
    with locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "BEAT_SECONDS", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        for _ in range(1000):
            if (tmp_path / "lock").stat().st_mtime > 0:
                break
            signal.sigtimedwait([], 0.01)
        assert (tmp_path / "lock").stat().st_mtime > 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def read_only(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_lock.os, "open", read_only)
    with pytest.raises(RunError, match="cannot be written: Read-only"), locked(tmp_path):
        pass


def row(step: int, steps: int = 10, loss: float = 1.0) -> dict:
    return {
        "step": step, "steps": steps, "loss": loss, "losses": {"parameters": loss},
        "valid_share": 1.0, "interval_seconds": 0.5, "compile_seconds": 2.0,
        "simulations": 100 * step,
    }  # fmt: skip


def test_a_log_stays_bounded_and_keeps_its_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(_log, "MOST_ROWS", 16)
    log = Log(tmp_path / "metrics.jsonl")
    for number in range(1, 201):
        log.add(row(10 * number, loss=float(number)))
        assert len(log.rows()) <= 16
    rows = log.rows()
    assert rows[-1]["step"] == 2000 and sum(row["steps"] for row in rows) == 2000
    assert sum(row["interval_seconds"] for row in rows) == pytest.approx(100.0)
    mean = sum(row["loss"] * row["steps"] for row in rows) / 2000
    assert mean == pytest.approx(100.5)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_a_log_forgets_what_a_killed_session_told_too_much(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Log(path)
    for step in (10, 20, 24):
        first.add(row(step))
    with open(path, "a") as file:
        file.write('{"step": 30, "ste')  # killed in the middle
    again = Log(path)  # goes on from the state of step 10
    again.add(row(20, loss=7.0))
    assert [(row["step"], row["loss"]) for row in again.rows()] == [(10, 1.0), (20, 7.0)]
    # A resumed run hears nothing of rows that are no rows.
    path.write_bytes(b'\xff\xfe\n[1]\n"x"\n{"step": 10}\n')
    assert [row["step"] for row in Log(path).rows()] == [10]
